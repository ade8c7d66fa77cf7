"""Words of the page in English and Chinese; the reader chooses, both are in the page."""

import html
from collections.abc import Mapping
from types import MappingProxyType

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "Evaluation": "评测",
        "Overview": "总览",
        "Models": "模型",
        "model": "模型",
        "source": "来源",
        "measure": "指标项",
        "metric": "指标",
        "group": "分组",
        "by group": "按分组",
        "items": "题目数",
        "95 % interval": "95% 置信区间",
        "without knowledge": "无知识基线",
        "Not evaluated": "未评测",
        "reason": "原因",
        "all items were evaluated": "全部题目均已评测",
        "Differences between models": "模型间差异",
        "difference": "差值",
        "p-value": "p 值",
        "test": "检验",
        "Highest and lowest answers": "最高分与最低分的回答",
        "highest": "最高",
        "lowest": "最低",
        "prompt": "提示",
        "answer": "回答",
        "scores": "得分",
        "none": "无",
        "accuracy": "准确率",
        "accuracy (mean of groups)": "准确率（各组平均）",
        "accuracy_per_character": "准确率（按字符归一）",
        "accuracy_per_character (mean of groups)": "准确率（按字符归一，各组平均）",
        "unparsed_rate": "无法解析的比例",
        "accuracy of random answers": "随机作答的准确率",
        "accuracy of always A": "总选 A 的准确率",
        "score (0 to 1)": "得分（0 到 1）",
        "score (0 to 1), PMI-corrected": "得分（0 到 1，PMI 校正）",
        "score of an item": "单题得分",
        "score of an item, PMI-corrected": "单题得分（PMI 校正）",
        "order effect": "顺序效应",
        "order effect, PMI-corrected": "顺序效应（PMI 校正）",
        "recency": "近因偏差",
        "recency, PMI-corrected": "近因偏差（PMI 校正）",
        "inconsistency (0 to 1)": "不一致程度（0 到 1）",
        "inconsistency (0 to 1), PMI-corrected": "不一致程度（0 到 1，PMI 校正）",
        "inconsistent pairs": "自相矛盾的题对",
        "inconsistent pairs, PMI-corrected": "自相矛盾的题对（PMI 校正）",
        "options without probabilities": "没有概率的选项",
        "refusals": "拒答",
        "off-scale answers": "量表之外的回答",
        "unparsed answers": "无法解析的回答",
        "score (0 to 1) of random answers": "随机作答的得分（0 到 1）",
        "score (0 to 1) of always the first option": "总选第一项的得分（0 到 1）",
        "order effect of random answers": "随机作答的顺序效应",
        "order effect of always the first option": "总选第一项的顺序效应",
        "recency of random answers": "随机作答的近因偏差",
        "recency of always the first option": "总选第一项的近因偏差",
        "does not differ from random answers": "与随机作答无差别",
        "does not differ from always the first option": "与总选第一项无差别",
        "does not differ from random answers and always the first option": (
            "与随机作答和总选第一项均无差别"
        ),
        "all": "全部",
        "answers that reach the threshold": "达到阈值的回答",
        "compared by": "对比评审：",
        "graded by": "评分评审：",
        "prompt SHA-256": "提示的 SHA-256",
        "calls": "调用数",
        "asked on": "评审日期",
        "people": "人工",
        "aspect or tag": "方面或标签",
        "used": "采用",
        "no verdict": "无结论",
        "Agreement": "评审一致性",
        "with": "对照评审",
        "priority": "按优先顺序",
        "safety": "安全性",
        "professionalism": "专业性",
        "fluency": "流畅性",
        "wins": "胜",
        "ties": "平",
        "losses": "负",
        "win rate": "胜率",
        "length-controlled win rate": "长度校正胜率",
        "strength": "强度",
        "rubric score": "评分标准得分",
        "length": "长度（字符）",
        "empty answers": "空回答",
        "Wins, ties and losses are of the first of two models; a win needs both orders.": (
            "胜、平、负均以两个模型中的前者为准；两种顺序结论一致才算胜。"
        ),
        "A judge is no physician: calibrate it with people before you believe differences.": (
            "评审模型不是医生：采信差异之前，请先用人工标注校准。"
        ),
        "Points are values, lines their 95 % intervals; dashed: answers without knowledge.": (
            "点为数值，横线为 95% 置信区间；虚线为不具备知识时的得分。"
        ),
        "Only measures from 0 to 1 are drawn.": "仅绘制取值在 0 到 1 之间的指标。",
        "Items are the sample: intervals say how far a value would move with other items of the "
        "same kind, not with other prompts or seeds.": (
            "以题目为样本：区间表示换用同类题目时数值的波动范围，不包含更换提示或随机种子的影响。"
        ),
    }
)


def both(text: str) -> str:
    """HTML of a text in both languages; a text without translation is the same in both."""
    chinese = WORDS.get(text)
    if chinese is None:
        return html.escape(text)
    return f'<span class="en">{html.escape(text)}</span><span class="zh">{chinese}</span>'
