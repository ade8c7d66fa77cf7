"""What a near-duplicate may not differ in: the parts of a text that carry its medical meaning.

One character decides between two doses, sides or diagnoses, and leaves the n-grams of a long text
almost as they were. So a text's critical parts are taken out in order and compared for equality:
numbers, units, signs, Latin words, negations, one or both of each pair of opposites, routes, and
the characters of which names of organs, diseases and drugs are made.

Two texts with different critical parts are never near-duplicates; that is certain. The converse is
not: a name written in everyday characters only, without an ending such as "disease" or "tablet",
is not seen. What a typing error usually hits (function words, verbs, politeness) is left out, as
are greetings and closing phrases.
"""

import functools
import hashlib
import re
from collections.abc import Callable

NUMERALS = "二三四五六七八九十百千万亿零〇半两俩几数倍双单"
UNITS = "克毫微升片粒袋支瓶滴包丸勺盒针次天日周月年时秒岁度颗贴喷枚斤厘米卡帕每隔餐饭晨晚午夜睡早"
NEGATIONS = "不无未没非禁忌勿别否停避免缺失拒防"
OPPOSITES = (
    "左右侧前后下内低高降减少小弱慢急缓女母阴阳负异恶良轻重冷寒凉坏短薄细"
    "窄瘦幼儿婴孕哺老空软湿虚退入静继复松碱稀抑促激拮抗亢闭缩逆远末终加增升"
)
ROUTES = "注射敷吸栓肌"
ORGANS = (
    "肝肺胃肠心脑肾脾胆胰膀胱宫卵巢乳腺骨椎髓脊关节肌腱韧血管脉皮肤眼睛耳鼻喉咽口唇舌牙齿龈头颅颈胸腹"
    "背腰臀手足脚腿膝髋踝肘腕趾肩肛睾精尿粪便痰汗泪涕淋巴细胞胎盘囊瓣膜房室颌颊额甲"
)
DISEASES = (
    "炎癌瘤症痛疼痒肿胀疹疮疡痘斑癣疣疱疖痈结石栓梗塞糖脂酸压晕眩吐泻秘喘咳嗽烧渴麻痹瘫痪抽搐癫痫狂郁焦"
    "躁痴呆虫菌毒霉疟疫蛋白酶贫衰竭瘀裂折脱垂疝畸聋哑盲斜劳损伤烫冻蛇"
)
DRUGS = (
    "莫林孢克洛司匹布芬霉素硝苯普尔托卡沙坦辛伐汀瑞舒双格列奥拉唑兰索雷尼替丁氧氟星诺环塞泼甘露醇维氨茶胺"
    "孟鲁氯扑敏酮康氢钠钾钙镁铁锌碘溴磷锂铂砷汞芪参归芍芎苓术桂枝麻黄柴胡葛柏连翘菊杞贝母桔陈丹桃杏枣姜附"
    "朴枳薄荷荆藿蝉龙虎鹿龟胶阿甲乙丙戊己庚辛青红紫"
)
SIGNS = "%‰℃℉±≤≥<>↑↓μµ°×÷^+√①②③④⑤⑥⑦⑧⑨⑩½¼¾⅓⅔²³¹⁰⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉"
NAME_ENDINGS = "[炎癌瘤症征疹疮癣片丸汤散膏剂苗菌酶]|病(?![情人因历程史房床例理变])|霉素|地平|普利"

# Politeness: it says nothing about the patient, though it has critical characters. None of these
# may hide a negation or a number of the text beside it. Each starts with a literal character, so
# that the search skips ahead.
GOOD_WISH = r"[您你]?[^，。！？；\s\d]{0,6}(?:康复|恢复|痊愈|健康|愉快|顺利)"
PHRASES = re.compile(
    rf"祝{GOOD_WISH}|愿{GOOD_WISH}|早日(?:康复|恢复|痊愈)|以上内容|仅供[您你]?参考|供[您你]?参考"
    r"|希望[^，。！？；\s\d不无没]{0,14}帮助"
    r"|不(?:能|可|可以|应|应该)?(?:作为|代替|替代|取代)(?:执业)?(?:医[生师]|专业|面诊|线下|就[医诊])"
    r"|如果?[还仍]?(?:有|出现)(?:任何|其他|其它)?(?:不适|疑问|问题)|若[还仍]?(?:有|出现)(?:不适|疑问)"
    r"|不(?:用|必)?(?:客气|用谢|谢)|不好意思|早上好|晚上好|上午好|下午好|中午好|一下|时候|及时|尽快"
)
WORDS = re.compile(
    r"\b(?:the|an|of|is|are|was|were|and|to|this|that|it|please|hello|hi|dear|doctor|thanks?|your?)"
    r"\b",
    re.IGNORECASE | re.ASCII,
)
FULL_WIDTH = re.compile(
    "[\uff0b\uff0d\uff0e\uff05\uff1c\uff1e\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"
)
FULL_WIDTH_OFFSET = 0xFEE0
RARE = 0xD8  # first byte in GB 2312 of the characters of its second level, which are rare


def critical_parts(text: str) -> str:
    """The critical parts of a text, in order, without what lies between them.

    Texts that differ only in punctuation, blanks, width, case and everyday words have the same.
    """
    text = FULL_WIDTH.sub(lambda match: chr(ord(match[0]) - FULL_WIDTH_OFFSET), text)
    text = WORDS.sub(" ", PHRASES.sub("\n", text)).lower()
    # The mark before a number keeps "1, 2" from "12".
    return "".join([f"#{part}" if part[0] in "-.0123456789" else part for part in _parts()(text)])


def critical_digest(text: str) -> int:
    """64 bits that differ for texts with different critical parts."""
    parts = critical_parts(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "little")


@functools.cache
def _parts() -> Callable[[str], list[str]]:
    """Finds the parts; compiling the pattern takes 20 ms."""
    chinese = [*map(chr, range(0x4E00, 0xA000))]
    listed = {*UNITS, *NEGATIONS, *OPPOSITES, *ROUTES, *ORGANS, *DISEASES, *DRUGS, *NUMERALS}
    plain = "".join(c for c in chinese if c not in listed and not _is_rare(c))
    critical = "".join(sorted({*chinese} - {*plain}))
    other = f"a-z\u0370-\u03ff{re.escape(SIGNS)}\u2460-\u24ff\U00010000-\U0010ffff"
    return re.compile(
        rf"[{critical}{other}]+|(?:(?<![0-9A-Za-z\-])-)?[0-9]+(?:\.[0-9]+)?"
        rf"|(?<=[{NUMERALS}])一|一(?=[{NUMERALS}])"
        rf"|[{plain}](?=[\u4e00-\u9fff]?(?:{NAME_ENDINGS}))"
        r"|(?<=[(（])-(?=[)）])"
    ).findall


def _is_rare(character: str) -> bool:
    code = character.encode("gb2312", "ignore")
    return not code or code[0] >= RARE
