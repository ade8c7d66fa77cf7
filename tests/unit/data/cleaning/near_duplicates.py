"""Planted pairs of texts: some differ in what matters to a patient, others say the same.

All texts are invented. `critical_pairs` puts each contrast into long texts that are equal apart
from it; `same_pairs` edits texts without changing what they say.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

TEXTS = (
    "医生您好，我父亲最近半个月总是觉得胸口发闷，爬楼梯的时候更明显，休息几分钟以后可以缓解。"
    "之前在当地医院做过检查，说问题不大，{}。现在家里人都很担心，想请您帮忙看看下一步应该怎么安排，"
    "是继续观察还是住院治疗。从您的描述来看，首先考虑和劳累有关，建议尽快到医院完善检查，"
    "平时注意休息，饮食清淡，保持心情舒畅，如果症状加重要立刻就诊。",
    "问：孩子昨天晚上开始发烧，精神还可以，能吃能玩，{}，请问需要去医院吗？答：根据目前的情况，"
    "大多数是普通感冒引起的，先多喝温水，观察体温变化，保持室内空气流通。如果持续不退或者精神变差，"
    "应该带孩子到儿科就诊，由医生检查以后决定下一步的处理，家长不用过于紧张。",
    "出院记录：入院以后完善相关检查，明确诊断以后给予对症支持治疗，{}，经过治疗病情平稳，"
    "一般情况良好，准予出院。出院以后按照医嘱继续治疗，规律作息，避免劳累，门诊定期复查，"
    "有任何变化请随时联系主管医生，同时请家属配合做好护理工作，记录每天的情况并带来复诊。",
)

CONTRASTS = (
    # numbers
    ("每次服用2.5毫克", "每次服用25毫克"),
    ("每次服用5毫克", "每次服用10毫克"),
    ("体温38.5度", "体温39.5度"),
    ("空腹血糖6.1", "空腹血糖16.1"),
    ("服药3天", "服药7天"),
    ("连续吃两周", "连续吃四周"),
    ("今年二十岁", "今年二十一岁"),
    ("血压120/80", "血压180/120"),
    ("一次1、2片", "一次12片"),
    ("体温下降到36～37度", "体温下降到36～39度"),
    ("白细胞10²", "白细胞10³"),
    ("基础体温-3.5", "基础体温3.5"),
    ("服用半片", "服用一片"),
    ("服用一片", "服用两片"),
    ("浓度为５％", "浓度为１５％"),
    ("第三期临床试验", "第二期临床试验"),
    # units
    ("每次5mg", "每次5g"),
    ("每次10毫克", "每次10微克"),
    ("每次10毫升", "每次10升"),
    ("用药三天", "用药三周"),
    ("钾4.1mmol/L", "钾4.1mg/L"),
    ("每次两片", "每次两粒"),
    ("胰岛素8单位", "胰岛素8毫升"),
    ("半年复查", "半月复查"),
    # frequency and time
    ("每日一次", "每日三次"),
    ("一天2次", "一天3次"),
    ("医嘱bid", "医嘱tid"),
    ("每8小时一次", "每6小时一次"),
    ("隔日服用", "每日服用"),
    ("饭前服用", "饭后服用"),
    ("早上服用", "晚上服用"),
    ("空腹服用", "餐后服用"),
    ("术前禁食", "术后禁食"),
    ("晨起服用", "睡前服用"),
    # sides
    ("左侧疼痛", "右侧疼痛"),
    ("双侧疼痛", "左侧疼痛"),
    ("左眼视力下降，右眼正常", "右眼视力下降，左眼正常"),
    ("上腹部不适", "下腹部不适"),
    ("内侧半月板", "外侧半月板"),
    ("前壁心肌", "后壁心肌"),
    # negations
    ("可以服用", "不可以服用"),
    ("有过敏史", "无过敏史"),
    ("可以吃海鲜", "禁吃海鲜"),
    ("宜食辛辣", "忌食辛辣"),
    ("已经手术", "未手术"),
    ("有呕吐", "没有呕吐"),
    ("属于典型表现", "属于非典型表现"),
    ("需要停药", "需要用药"),
    ("必须用药", "避免用药"),
    # opposites
    ("诊断为高血压", "诊断为低血压"),
    ("甲状腺功能亢进", "甲状腺功能减退"),
    ("血糖升高", "血糖降低"),
    ("剂量增加", "剂量减少"),
    ("试验阳性", "试验阴性"),
    ("试验（+）", "试验（-）"),
    ("诊断为急性肾炎", "诊断为慢性肾炎"),
    ("性别男", "性别女"),
    ("良性肿瘤", "恶性肿瘤"),
    ("收缩压偏高", "舒张压偏高"),
    ("结果正常", "结果异常"),
    ("动脉出血", "静脉出血"),
    ("口服给药", "静脉给药"),
    ("病情好转", "病情恶化"),
    ("风热感冒", "风寒感冒"),
    ("儿童用量", "成人用量"),
    ("指标≥5", "指标≤5"),
    ("指标↑", "指标↓"),
    # names
    ("服用阿莫西林", "服用头孢克肟"),
    ("服用头孢克肟", "服用头孢克洛"),
    ("服用硝苯地平", "服用尼群地平"),
    ("服用氯沙坦", "服用缬沙坦"),
    ("服用青霉素", "服用红霉素"),
    ("服用阿司匹林", "服用布洛芬"),
    ("服用二甲双胍", "服用格列美脲"),
    ("服用氯化钠", "服用氯化钾"),
    ("服用六味地黄丸", "服用杞菊地黄丸"),
    ("黄芪泡水", "黄芩泡水"),
    ("诊断为甲肝", "诊断为乙肝"),
    ("诊断为胃炎", "诊断为肠炎"),
    ("诊断为肺癌", "诊断为肝癌"),
    ("诊断为帕金森病", "诊断为亨廷顿病"),
    ("诊断为川崎病", "诊断为白塞病"),
    ("查HBsAg", "查HBsAb"),
    ("维生素A", "维生素B"),
    ("维生素B1", "维生素B12"),
    ("查α受体", "查β受体"),
    ("做胃镜", "做肠镜"),
    ("到内科看", "到外科看"),
    ("接种流感疫苗", "接种水痘疫苗"),
)

FILLED = tuple(
    text.format(contrast[0]) for text, contrast in zip(TEXTS * 12, CONTRASTS[::2], strict=False)
)
GREETINGS = ("您好，", "你好！", "医生，您好。", "谢谢医生。", "请问一下，", "早上好，", "Hello, ")
CLOSINGS = (
    "祝您早日康复！",
    "祝您身体健康。",
    "以上建议仅供参考。",
    "希望我的回答对您有所帮助。",
    "不客气。",
    "以上内容仅供参考，不能代替医生面诊。",
)
TYPOS = (
    ("检查", "捡查"),
    ("建议", "建义"),
    ("治疗", "治聊"),
    ("考虑", "考律"),
    ("情况", "情矿"),
    ("休息", "修息"),
    ("医院", "医园"),
    ("问题", "问提"),
    ("安排", "按排"),
    ("家属", "家署"),
    ("的", "地"),
    ("描述", "苗述"),
)


class Pair(NamedTuple):
    """Two texts and how the second differs from the first."""

    kind: str
    first: str
    second: str


def critical_pairs() -> Iterator[Pair]:
    """Each contrast in each text; never near-duplicates."""
    for first, second in CONTRASTS:
        for text in TEXTS:
            yield Pair(f"{first} | {second}", text.format(first), text.format(second))


def same_pairs(seed: int = 0) -> Iterator[Pair]:
    """Each edit of each text; near-duplicates."""
    draw = random.Random(seed)
    for text in FILLED:
        for kind, edit in EDITS.items():
            yield Pair(kind, text, edit(text, draw))


def _punctuation(text: str, draw: random.Random) -> str:
    other = {"，": ["、", "；", ",", " "], "。": ["！", ".", "\n", "；"], "：": [":", " "]}
    return "".join(draw.choice(other[c]) if c in other and draw.random() < 0.5 else c for c in text)


def _blanks(text: str, draw: random.Random) -> str:
    blank = {"，": "， ", "。": "。\n\u3000\u3000", "？": "？\n"}
    return "".join(blank.get(c, c) if draw.random() < 0.7 else c for c in text)


def _full_width(text: str, draw: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and c not in ",;" else c for c in text)


def _typos(text: str, draw: random.Random) -> str:
    for right, wrong in draw.sample(TYPOS, len(TYPOS))[:3]:
        text = text.replace(right, wrong, 1)
    return text


def _particles(text: str, draw: random.Random) -> str:
    for right, wrong in (("，", "呢，"), ("。", "的。")):
        text = text.replace(right, wrong, 1)
    return text


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "punctuation": _punctuation,
    "no punctuation": lambda text, draw: "".join(c for c in text if c not in "，。：？；"),
    "blanks": _blanks,
    "full width": _full_width,
    "greeting": lambda text, draw: draw.choice(GREETINGS) + text,
    "closing": lambda text, draw: text + draw.choice(CLOSINGS),
    "greeting and closing": lambda text, draw: (
        draw.choice(GREETINGS) + text + draw.choice(CLOSINGS)
    ),
    "moved closing": lambda text, draw: draw.choice(CLOSINGS) + text,
    "typos": _typos,
    "particles": _particles,
}
