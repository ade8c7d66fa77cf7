"""Values of a template's slots in one document: a disease, a patient, a related disease.

Random values are drawn once per document, so repeated slots agree. List slots walk through a
shuffled list: a second use gives the items that the first has not used.
"""

import random

from .facts import Disease
from .grammar import sample_numbers

SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯董萧程曹袁邓许傅沈曾彭吕"
PET_NAMES = ("乐乐", "豆豆", "朵朵", "小宇", "安安", "天天", "果果", "小雨", "阳阳", "可可")
DURATIONS = {
    "acute": ("半天", "一天", "一天半", "两天", "三天"),
    "gradual": ("五天", "一周", "十来天", "半个月", "三周", "一个月", "两个多月", "三个月"),
}
# (lowest, highest) systolic and diastolic pressure of adults in mmHg.
PRESSURES = {"low": (74, 89, 42, 56), "normal": (104, 134, 64, 84), "high": (152, 178, 92, 106)}
# Values that start with these follow their examination without a verb.
VERBLESS = tuple("升降为低加增缩延明仅达未超可阳阴正大基轻无短血不")


class Slots:
    """Fills the slots of one document.

    Args:
        disease: The document's subject.
        peers: Other diseases of the same split, for comparisons and wrong answers.
        rng: The document's random numbers.
    """

    def __init__(self, disease: Disease, peers: list[Disease], rng: random.Random) -> None:
        near = [peer for peer in peers if peer.department == disease.department]
        self._values = {
            **_facts(disease, rng),
            **_patient(disease, rng),
            **_quiz(disease, peers, rng),
        }
        self._queues = _queues(disease, rng)
        other = rng.choice(near or peers)
        self._values |= {f"other.{key}": text for key, text in _facts(other, rng).items()}
        self._queues |= {f"other.{key}": queue for key, queue in _queues(other, rng).items()}
        for key, item in (("exams", "exam"), ("drugs", "drug")):
            first, detail = self._queues[key][0]
            self._values |= {item: first, f"{item}.detail": detail}
        # One of the first two, the most typical ones. It moves to the end of the queue, so that
        # other symptoms are named with it.
        chief = rng.choice(disease.items["symptoms"][:2])
        self._values["chief"] = chief[0]
        self._queues["symptoms"].sort(key=lambda pair: pair[0] == chief[0])
        self._used = dict.fromkeys(self._queues, 0)

    def __call__(self, call: str) -> str:
        """The text of `{call}`; raises KeyError for an unknown slot."""
        field, *options = call.split(":")
        if field in self._values:
            return self._values[field]
        queue = self._queues[field]
        count = min(int(options[0]), len(queue)) if options else len(queue)
        separator = options[1] if len(options) > 1 else "、"
        link = options[2] if len(options) > 2 else None
        start = self._used[field]
        self._used[field] += count
        chosen = [queue[(start + i) % len(queue)] for i in range(count)]
        return separator.join(item if link is None else join(item, link, d) for item, d in chosen)


def join(item: str, link: str, detail: str) -> str:
    """Joins an item and its detail, without the verb if the detail has its own."""
    if link in ("提示", "显示", "示", "可见", "结果是") and detail.startswith(VERBLESS):
        link = ""
    elif link in ("提示", "显示", "示", "可见") and detail[0].isdigit():
        link = "为"
    return f"{item}{link}{detail}"


def _queues(disease: Disease, rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Every list of the disease in random order, with its numbers drawn."""
    queues = {}
    for field, pairs in disease.items.items():
        drawn = [(item, sample_numbers(detail, rng)) for item, detail in pairs]
        queues[field] = rng.sample(drawn, len(drawn))
    return queues


def _facts(disease: Disease, rng: random.Random) -> dict[str, str]:
    """Slots with one phrase about a disease."""
    return {
        "name": disease.name,
        "alias": f"（又称{rng.choice(disease.also)}）" if disease.also else "",
        "department": disease.department,
        **disease.texts,
    }


def _patient(disease: Disease, rng: random.Random) -> dict[str, str]:
    """An invented patient with vital signs that fit age and disease."""
    sex, _, ages = disease.patient.rpartition(" ")
    sex = sex or rng.choice("男女")
    years = rng.randint(*map(int, ages.split("-")))
    child, baby, newborn = years < 14, years == 0, ages == "0-0"
    age = f"{years}岁"
    if baby:
        age = f"出生{rng.randint(2, 9)}天" if newborn else f"{rng.randint(5, 11)}个月"
    surname = rng.choice(SURNAMES)
    elder = "大爷" if sex == "男" else "阿姨"
    adult = surname + (elder if years >= 62 else "先生" if sex == "男" else "女士")
    celsius = rng.uniform(*map(float, disease.celsius.split("-")))
    low, high, low2, high2 = PRESSURES[disease.bp]
    drop = 18 if child else 0
    extra = 24 if child else 0
    return {
        "age": age,
        "sex": sex,
        "who": f"{age}{'的' if baby else ''}{sex}{'婴' if baby else '孩' if child else '性'}",
        "patient": "患儿" if child else "患者",
        "self": "孩子" if child else "我",
        "you": "孩子" if child else "您",
        "speaker": "家长" if child else "患者",
        "title": rng.choice(PET_NAMES) if child else adult,
        "doctor": rng.choice(SURNAMES),
        "temperature": f"{celsius:.1f}",
        "pulse": str(rng.randint(70, 96) + extra + (16 if celsius > 37.7 else 0)),
        "breath": str(rng.randint(16, 21) + extra // 2),
        "bp": f"{rng.randint(low, high) - drop}/{rng.randint(low2, high2) - drop}",
        "days": rng.choice(DURATIONS[disease.course]),
    }


def _quiz(disease: Disease, peers: list[Disease], rng: random.Random) -> dict[str, str]:
    """Four options of an examination question and the letter of the right one."""
    names = [disease.name, *(peer.name for peer in rng.sample(peers, 3))]
    rng.shuffle(names)
    options = [f"{letter}．{name}" for letter, name in zip("ABCD", names, strict=True)]
    return {"options": "　".join(options), "answer": "ABCD"[names.index(disease.name)]}
