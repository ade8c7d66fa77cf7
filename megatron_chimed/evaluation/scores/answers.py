"""Finds the chosen options in an answer to a multiple-choice question.

Rules are tried from the surest to the vaguest; within a rule the last statement wins, because
models correct themselves. Where no rule finds an answer there is none, with a reason to count:
guessing the first capital letter would read CT检查 as C. Nothing is ever evaluated as code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.answer_text import (
    Problem,
    final_text,
    is_refusal,
    without_next_turn,
)
from megatron_chimed.evaluation.scores.option_reading import Options, Reading

_BRACKETS = r"\s\[({<「『《【】」』》)\]>\"'“”‘’"
# Words between a cue such as 答案 and the letters; no negation among them.
_FILLERS = (
    r"(?:应该|应当|应|就|只能|最可能|可能|显然|大概|我认为|我选|选择|选|是|为|有|包括|如下|[:=,~]|->|→"
    rf"|选项|option\b|should|be\b|is\b|[{_BRACKETS}])*"
)
_WRAPPED = re.compile(
    r"\\boxed\s*\{|<answer>|[\"'](?:answer|答案|choice|选项)[\"']\s*:\s*", re.IGNORECASE
)
_STRONG = re.compile(
    r"(?:答案|正解|正确(?:的)?(?:选项|说法|叙述|描述|做法|组合)|正确的?(?=是|为|有|包括|:)"
    r"|(?:最佳|最终|最合适|最恰当|最符合题意|符合题意|合适|恰当)的?(?:选项|选择|是)|answer"
    r"|correct (?:option|choice|one)"
    r"|(?:故|因此|所以|因而|综上(?:所述)?|总之|本题|此题|该题|这道题|最终|更正|修正|纠正|结论|可见)"
    r"[,:\s]*(?:我|考虑|可|需|就|正确|最终|该题|本题)*(?=应|选|是|为|:|答案|[A-Za-z\[(【“\"])"
    r"|(?:综上(?:所述)?|因此|所以|总之|综合)[^。\n不非]{0,25}?(?:是|为|选择|选|:)"
    r"|(?:应该|应当|应|只能|宜|改)选|而是)" + _FILLERS,
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"(?:选择|选项|选|option|choose|pick|select|认为|考虑|倾向于?|属于|诊断为|首选|是|为)"
    + _FILLERS,
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"不对|等等|等一下|更正|修正|纠正|错了|重新|再想|\bwait\b|actually|correction", re.IGNORECASE
)
# Before a statement: it is denied, supposed, or somebody else's.
_NOT_MEANT = re.compile(
    r"(?:不|误|错|若|如果|假如|假设|倘若|有人|有同学|很多人|易|未|没有?|别|勿|并非|而非|为什么|为何|除非|除了"
    r"|排除|\bnot|n't|\bif)(?:再|能|会|应该|应当|应|该|可能|可以|可|宜|要|把|将|容易|就|是|为|属于|的|正确|\s|the|an?\b)*$",
    re.IGNORECASE,
)
_WRONG_WORDS = (
    r"(?:错误|错|有误|不(?:太|完全|够|大|是很|甚)?(?:符合|正确|对|合适|恰当|合理|成立)|不符|不属于|不支持"
    r"|(?:不能选|不选|可?排除|不是)(?!\s*[A-Z])|可能性(?:较|很|更)?(?:小|低)|×|❌|✗|incorrect|wrong)"
)
_RIGHT_WORDS = (
    r"(?:正确|对(?![应于症照比称])|符合|最(?:佳|合适|恰当|合理|可能)|√|✓|✔|✅|成立|correct|right)"
)
# After the letters: the statement denies them, asks, or speaks of those who choose them.
_TAKEN_BACK = re.compile(
    r"\s*(?:选项|项|这个选项)?\s*(?:(?:[:.、\s]|是|为|均|都|也|就|可|(?:的)?(?:说法|描述))*"
    rf"(?:{_WRONG_WORDS}|[^。\n]{{0,3}}(?:吗|\?|么)|的(?:人|同学|话|考生|学生)|与题意不符|会导致)"
    rf"|,\s*{_WRONG_WORDS}(?=$|[。;,\n!]))",
    re.IGNORECASE,
)
_PRAISED = re.compile(
    rf"\s*(?:选项|项)?\s*(?:是|为|均|都|也|最|更|[:.、\s])*{_RIGHT_WORDS}", re.IGNORECASE
)
_CLAUSE = re.compile(
    r"[\n;。!?]|,(?=\s*(?:选项)?[A-Z]{1,8}(?![A-Za-z0-9]))|(?<=[确误错对×√✓])\s*(?=[A-Z](?![A-Za-z0-9]))"
)
_AFTER_LETTERS = re.compile(r"$|[\s。.,;:!?)\]】》、(\[（]|选项|项|是正确|吧|最|更|均|都|而|不")
_ALL_BUT = re.compile(r"除(?:了|去|开)?(?=\s*(?:选项)?\s*[A-Z])(?:选项)?")
_OUT_OF = re.compile(r"\s*(?:选项|项)?(?:以外|之外|外)[^。\n]*(?:都|均|全|其余|其他|其它)")
_ALL_OF_OPTIONS = re.compile(
    r"(?:以上|上述|所有)?(?:选项)?(?:全部?|均|都|全都|皆)(?:正确|对|是|选|符合)|全选|以上(?:皆|都|均)是"
    r"|all of the above",
    re.IGNORECASE,
)
_NONE_OF_OPTIONS = re.compile(
    r"(?:以上|上述|所有|这些|四个|五个)(?:选项|答案|说法)?(?:全|全部|均|都|皆|全都)(?:不|错|无|没|非)"
    r"|(?:没有|无)(?:一个)?(?:任何)?(?:正确|合适|符合题意|对)的?(?:答案|选项)"
    r"|none of the (?:above|options)",
    re.IGNORECASE,
)
_OR_ELSE = re.compile(r"(?:也|或|或者|亦|还)(?:有)?(?:可能|可以|可)?$")
_LABEL = re.compile(r"(?<![A-Za-z0-9])[A-Z]\s*[.、:)]")
_SHORT = 6  # characters in which a small letter after a cue is an answer
_OUTSIDE = re.compile(r"[A-Z](?=$|[\s。.,;:!)\]}】])")


@dataclass(frozen=True, kw_only=True)
class ChoiceAnswer:
    """What a text answers to a multiple-choice question."""

    letters: str
    """The chosen letters in the order of the options; empty with a problem."""
    problem: Problem | None
    """Why there are none."""
    rule: str
    """Which rule decided, for tables of how answers were read."""


def extract_choice(
    text: str, options: Mapping[str, str], *, multiple: bool = False
) -> ChoiceAnswer:
    """The options that a model's answer chooses.

    Args:
        text: What the model wrote, with reasoning, markup and any width of letters.
        options: Text by letter, in order. Texts of one character are options like others.
        multiple: Whether several letters may be right. Otherwise two letters are no answer.

    Raises:
        DataError: A key of `options` is not one capital letter.
    """
    wrong = [key for key in options if len(key) != 1 or not "A" <= key <= "Z"]
    if wrong or not options:
        raise DataError(
            f"options need keys of one capital letter each, not {list(options)}: rename them "
            "to A, B, C, ..."
        )
    final, problem = final_text(text)
    if problem:
        return ChoiceAnswer(letters="", problem=problem, rule="none")
    read_options = Options(options)
    first_turn = _before_next_question(without_next_turn(final), read_options)
    answer = _extract(first_turn, read_options, multiple)
    if answer.problem and first_turn != final:
        whole = _extract(final, read_options, multiple)
        return answer if whole.problem else whole
    return answer


def _before_next_question(text: str, options: Options) -> str:
    """The first line, if it is an answer after which other options than ours are listed.

    A base model after a few-shot prompt writes its answer, then questions like those before.
    """
    first, _, rest = text.partition("\n")
    reading = options.read(first, 0)
    if reading is None or re.search(r"[^\W_]", first[reading.end :]) or _RETRACTION.search(rest):
        return text
    lines = [line for line in rest.split("\n") if _LABEL.match(line)]
    own = [line for line in lines if (found := options.read(line, 0)) and found.with_texts]
    is_review = any(re.search(rf"{_WRONG_WORDS}|{_RIGHT_WORDS}", line) for line in lines)
    return first if len(lines) > 1 and not own and not is_review else text


def _extract(text: str, options: Options, multiple: bool) -> ChoiceAnswer:
    for name, rule in _RULES:
        found = rule(text, options, multiple)
        if found:
            if len(found) > 1 and not multiple:
                return ChoiceAnswer(letters="", problem="several", rule=name)
            return ChoiceAnswer(letters=found, problem=None, rule=name)
        if found is None:  # the rule is sure that there is no answer
            problem = "none_of_options" if rule is _all_or_none else "refusal"
            return ChoiceAnswer(letters="", problem=problem, rule=name)
    cues = [*_STRONG.finditer(text), *_WEAK.finditer(text)]
    outside = any(_OUTSIDE.match(text, cue.end()) for cue in cues)
    outside = outside or re.fullmatch(r"\W*[A-Z]\W*", text) is not None
    problem: Problem = "outside_options" if outside else "unparsed"
    return ChoiceAnswer(letters="", problem=problem, rule="none")


def _statements(
    cue: re.Pattern[str], text: str, options: Options, *, lower: bool
) -> list[tuple[int, Reading]]:
    """Place and options of each statement that follows a cue and is meant."""
    found: list[tuple[int, Reading]] = []
    for match in cue.finditer(text):
        if found and match.start() < found[-1][1].end:  # the second cue of a list
            continue
        reading = options.read(text, match.end(), lower=lower)
        if reading is None or _NOT_MEANT.search(text, max(0, match.start() - 9), match.start()):
            continue
        if not _TAKEN_BACK.match(text, reading.end):
            found.append((match.start(), reading))
    return found


def _wrapped(text: str, options: Options, multiple: bool) -> str:
    """In a box, an answer tag or a field of JSON, where a list counts as its members."""
    readings = [
        options.read(re.sub(r"[\"'\[\]{]|\\text", " ", text[match.end() : match.end() + 200]), 0)
        for match in _WRAPPED.finditer(text)
    ]
    return next((reading.letters for reading in reversed(readings) if reading), "")


def _stated(text: str, options: Options, multiple: bool) -> str:
    """After 答案是, 故选 and the like; after 选 or 是 where the text has taken back another."""
    strong = _statements(_STRONG, text, options, lower=True)
    if not strong:
        return ""
    _, last = strong[-1]
    retraction = _RETRACTION.search(text, last.end)
    if retraction:
        weak = _statements(_WEAK, text[retraction.end() :], options, lower=False)
        if weak:
            return weak[-1][1].letters
    return last.letters


def _begins_with(text: str, options: Options, multiple: bool) -> str:
    """The text is the answer, or begins with it; not where it restates or reviews the options."""
    if multiple and re.fullmatch(r"[a-z\W]+", text):
        text = text.upper()
    reading = options.read(text, 0)
    if reading is None or not _AFTER_LETTERS.match(text, reading.end):
        return ""
    if _TAKEN_BACK.match(text, reading.end) or _PRAISED.match(text, reading.end):
        return ""
    if text[:1] == "a" and re.match(r"\s+\S", text[1:]):  # the English article
        return ""
    retraction = _RETRACTION.search(text, reading.end)
    if retraction:
        weak = _statements(_WEAK, text[retraction.end() :], options, lower=False)
        if weak:
            return weak[-1][1].letters
    lines = [line for line in text.split("\n") if line.strip()]
    by_line = [line for line in (options.read(one, 0, lower=False) for one in lines) if line]
    labelled = options.sort("".join(line.letters for line in by_line if len(line.letters) == 1))
    is_bare = [not re.search(r"[^\W_]", one[_end_of(options, one) :]) for one in lines]
    if len(labelled) > 1 and is_bare[0] and not reading.with_texts and not all(is_bare):
        return reading.letters  # a review of the options follows
    if len(labelled) > 1:
        with_texts = any(line.with_texts for line in by_line)
        is_list = len(by_line) == len(lines) and not (with_texts and labelled == options.letters)
        return labelled if is_list and (multiple or not with_texts) else ""
    restated = reading.with_texts and reading.letters == options.letters
    return "" if restated else reading.letters


def _end_of(options: Options, line: str) -> int:
    reading = options.read(line, 0, lower=False)
    return reading.end if reading else 0


def _all_but(text: str, options: Options, multiple: bool) -> str:
    """除C外均正确: the others where several may be right, else the exception itself."""
    for match in _ALL_BUT.finditer(text):
        reading = options.read(text, match.end(), lower=False)
        if reading and _OUT_OF.match(text, reading.end):
            others = "".join(one for one in options.letters if one not in reading.letters)
            return others if multiple else reading.letters
    return ""


def _verdicts(text: str, options: Options, multiple: bool) -> str:
    """From a review such as `A错误；B正确`: what is right, or the one that is wrong among all."""
    right, wrong = "", ""
    for clause in _CLAUSE.split(text):
        start = re.match(r"\W*(?:选项|\d+[.、])?\s*", clause)
        reading = options.read(clause, start.end() if start else 0, lower=False)
        if reading is None:
            continue
        rest = clause[reading.end :]
        if re.search(_WRONG_WORDS, rest, re.IGNORECASE):
            wrong += reading.letters
        elif re.search(rf"^(?:应|该|可)*选|{_RIGHT_WORDS}", rest, re.IGNORECASE):
            right += reading.letters
    right, wrong = options.sort(right), options.sort(wrong)
    if multiple or len(right) == 1:
        return right
    # 下列说法错误的是: all others are right.
    is_exception = len(wrong) == 1 and len(right) == len(options.letters) - 1 > 1
    return wrong if is_exception and wrong not in right else ""


def _weakly_stated(text: str, options: Options, multiple: bool) -> str:
    """After 选, 是 or 考虑, in capitals or spelled out."""
    found = _statements(_WEAK, text, options, lower=len(text) <= _SHORT)
    found = [(at, one) for at, one in found if _AFTER_LETTERS.match(text, one.end)]
    if not found:
        return ""
    letters = found[-1][1].letters
    for (at, _), (_, before) in zip(found[:0:-1], found[-2::-1], strict=True):
        if not _OR_ELSE.search(text, max(0, at - 5), at):
            break
        letters += before.letters
    return options.sort(letters)


def _last_line(text: str, options: Options, multiple: bool) -> str:
    """The last line, or what follows the last full stop, colon or space, is letters."""
    line = text.rstrip().rsplit("\n", 1)[-1]
    restated = [one for one in text.split("\n") if _LABEL.match(one)]
    for match in re.finditer(r"(?:^|(?<=[\s。,:;!?→])|(?=[(\[【]))", line):
        reading = options.read(line, match.start(), lower=False)
        if reading is None or re.search(r"[A-Za-z]\s*$", line[: match.start()]):
            continue
        if reading.with_texts and (len(restated) > 1 or len(_LABEL.findall(line)) > 1):
            continue
        if not re.search(r"[^\W_]", line[reading.end :]):
            return reading.letters
    return ""


def _all_or_none(text: str, options: Options, multiple: bool) -> str | None:
    """以上都不对 and 以上都对: the option that says so, else no option or all of them."""
    for pattern in (_NONE_OF_OPTIONS, _ALL_OF_OPTIONS):
        if not pattern.search(text):
            continue
        said = [letter for letter, own in options.texts.items() if pattern.search(own)]
        if len(said) == 1:
            return said[0]
        if pattern is _NONE_OF_OPTIONS:
            return None
        return options.letters if multiple else ""
    return ""


def _refused(text: str, options: Options, multiple: bool) -> str | None:
    return None if is_refusal(text) else ""


def _spelled_out(text: str, options: Options, multiple: bool) -> str:
    """The one option whose text the answer contains, or a list that consists of options."""
    listed = options.read(text, 0)
    if listed and not re.search(r"[^\W_]", text[listed.end :]):
        return "" if len(_LABEL.findall(text)) > 1 else listed.letters
    found = ""
    for letter, start, end in options.occurrences(text):
        if end - start > 1 and not _NOT_MEANT.search(text, max(0, start - 9), start):
            found += "" if _TAKEN_BACK.match(text, end) else letter
    found = options.sort(found)
    return found if len(found) == 1 else ""


def _alone(text: str, options: Options, multiple: bool) -> str:
    """The only letter of the text that is no part of a word or a medical term."""
    found = [
        letter for letter, end in options.single_letters(text) if not _TAKEN_BACK.match(text, end)
    ]
    found = options.sort("".join(found))
    return found if len(found) == 1 else ""


_RULES = (
    ("wrapped", _wrapped),
    ("stated", _stated),
    ("begins_with", _begins_with),
    ("all_but", _all_but),
    ("verdicts", _verdicts),
    ("weakly_stated", _weakly_stated),
    ("last_line", _last_line),
    ("all_or_none", _all_or_none),
    ("refused", _refused),
    ("spelled_out", _spelled_out),
    ("alone", _alone),
)
