"""The policy on keys: each is read, inert, a change of what the row means, or unread.

A format names the keys that it uses. Of the others, those in `INERT` say where a row comes from or
what it is about, and are dropped. Those in `ANNOTATIONS` are applied to any row by
`annotations.py`. Those in `MEANINGS` change what the row teaches, so a row with a value under one
is bad. Any other key is unread: counted per file, with an example, or a bad row with
`--strict-keys`. Names are compared in lower case, with `-`, `_`, `.` and spaces left out. A key
whose value is null or empty says nothing, whatever its name.

Rows of a file share their keys, so a lookup per row is all that this costs.
"""

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.formats.row import NOTHING, RowError

EXAMPLE_CHARACTERS = 60
CACHED_SETS = 1 << 12  # distinct sets of keys that are remembered
Group = tuple[str, ...]


def _folded(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_. ")


def _table(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(map(_folded, names.split()), reason)


INERT = frozenset(
    map(
        _folded,
        """
        id ids pubid uid uuid guid idx index no number row_id row_index example_id sample_id data_id
        item_id question_id answer_id prompt_id dialogue_id dialog_id conversation_id session_id
        doc_id document_id message_id thread_id group_id pair_id unnamed:0 __index_level_0__ __id__
        编号 序号 id号 source sources src origin data_source data_set dataset dataset_name subset
        split file filename file_name path url urls link href license licence copyright author
        creator annotator annotator_id labeler worker_id provider publisher site website domain
        来源 出处 数据来源 type types type_en kind task task_type task_name task_id category
        categories class subject subjects subject_name topic topics topic_name field fields
        department departments dept specialty speciality cate cate1 cate2 cate3 category1
        category2 subcategory sub_category tag tags keyword keywords label_name label_en
        related_diseases disease diseases disease_name icd icd10 meta meta_info metadata info
        exam_type exam_class exam_subject chapter section level difficulty grade year language lang
        locale country region 科室 类别 分类 类型 标签 科目 学科 题型 难度 年份 章节 疾病 关键词
        score scores rating ratings reward quality quality_score chosen_score rejected_score
        score_chosen score_rejected chosen_rating rejected_rating chosen_model rejected_model
        margin_info toxicity perplexity ppl confidence similarity votes likes upvotes downvotes
        view_count num_answers helpfulness harmlessness judge judgement_model model model_name
        generator generator_model teacher engine finish_reason stop_reason usage prompt_tokens
        completion_tokens num_tokens token_count tokens_count n_tokens length len num_turns
        turn_count word_count char_count hash sha256 md5 checksum version revision date time
        timestamp created created_at create_time updated updated_at date_time datetime hospital
        hospital_name doctor doctor_id doctor_title doctor_name patient_id
        is_multi_turn is_synthetic embedding embeddings
        """.split(),
    )
)
"""Names of keys that say nothing about what a row teaches."""

MEDIA = _table(
    "belongs to the prompt but cannot be used: texts only",
    """
    image images img imgs image_path image_paths image_url image_urls image_file picture pictures
    pic photo photos figure figures pixel_values video videos video_path video_url audio audios
    audio_path audio_url speech voice media medias attachment attachments objects bbox bboxes
    multi_modal_data multimodal 图片 图像 视频 音频
    """,
)
TOOLS = _table(
    "offers or calls tools, which this format cannot use; write them as messages",
    """
    tools tool functions function tool_calls tool_call function_call function_calls tool_choice
    tool_call_id tool_responses tool_response tool_results observation observations plugins apis
    parallel_tool_calls available_tools api_list
    """,
)
LOSS_REASON = (
    "says what is learned, in a way that is not known here; remove it, or write 'weight' 0 or 1 "
    "into the messages"
)
LOSS = _table(
    LOSS_REASON,
    """
    mask masks label_mask labels_mask answer_mask turn_mask train_mask train_detail training_detail
    train_on_turn train_on_input train_on_inputs train_on_prompt trainable training train loss
    loss_scale loss_weight loss_weights weight weights sample_weight learn ignore_loss no_loss
    """,
)
JUDGES = _table(
    "compares answers, which this format cannot use",
    """
    rejected rejected_response rejected_responses rejected_messages rejected_answer
    response_rejected rejected_output rejected_completion chosen chosen_response chosen_messages
    chosen_answer response_chosen chosen_output chosen_completion is_chosen
    is_rejected is_desirable desirable preference preferred better worse winner best_answer
    bad_answer negative negatives neg pos_ans_id neg_ans_id margin margins ranks ranking
    responses candidates is_good is_bad thumbs_up thumbs_down accepted is_accepted is_correct
    is_wrong incorrect_answers
    """,
)
SYSTEM = _table(
    "instructs the model, but the row has its own system prompt elsewhere",
    "system system_prompt system_message system_instruction sys_prompt sysprompt systemprompt",
)
REASONING = _table(
    "is reasoning before an answer, which this format cannot use",
    """
    reasoning_content reasoning reasoning_text thinking think thought thoughts complex_cot cot
    chain_of_thought long_cot scratchpad 思维链 推理 思考 思考过程 推理过程
    """,
)
CHOICES = _table(
    "holds choices, which this format cannot use: only exam rows have them",
    """
    option options choice choices option_a option_b option_c option_d optiona optionb optionc
    optiond opa opb opc opd ope a b c d e f g h i j 选项 选项a 选项b 选项c 选项d
    answer_idx answer_index
    correct_option correct_answer correct_index cop distractor1 distractor2 distractor3
    """,
)
CONTEXT = _table(
    "is a text that the question may refer to, which this format does not read; join it to the "
    "question",
    """
    context contexts ctx passage passages paragraph document documents doc docs background knowledge
    evidence evidences abstract article materials material retrieved
    retrieved_docs search_results case case_text history_of_illness chief_complaint 上下文 背景
    材料 病例 病历 参考资料
    """,
)
TURNS_REASON = (
    "is another text of the conversation, which this format does not read; remove the key, or "
    "pass the format that reads it with --format"
)
TURNS = _table(
    TURNS_REASON,
    """
    messages conversations conversation dialogue dialogues dialog dialogs dialogue_turns utterances
    history turns_text chat chat_history text texts content contents body prompt prompts prefix
    suffix question questions query queries instruction instructions instruct input inputs ask
    answer answers response output outputs completion completions
    reply replies assistant gpt bot 问 答 问题 回答 提问 内容 正文
    题目 题干 解答 指令 输入 输出
    """,
)
MEANINGS: Mapping[str, str] = {
    **TURNS,
    **CONTEXT,
    **CHOICES,
    **REASONING,
    **SYSTEM,
    **JUDGES,
    **LOSS,
    **TOOLS,
    **MEDIA,
}
"""Why a key that a format does not use makes a row bad, by name."""

TEXT_MEANINGS: Mapping[str, str] = {**TOOLS, **MEDIA, **LOSS}
"""As `MEANINGS`, for plain texts, which have no question that other keys could belong to."""

LOSS_KEYS = (
    *("loss", "loss_scale", "train", "weight", "train_on_turn", "training", "trainable"),
    *("loss_mask", "loss_weight"),
)
"""Keys of a message that say whether it is learned."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Keys of a message of the assistant with its thoughts before it."""

CALL_KEYS = ("tool_calls", "function_call")
"""Keys of a message of the assistant with its calls of tools."""

MESSAGE_KEYS = frozenset(
    {"from", "value", "role", "content", *LOSS_KEYS, *REASONING_KEYS, *CALL_KEYS, "tool_call_id"}
)
MESSAGE_ONE_OF = (("from", "role"), ("value", "content"), REASONING_KEYS, CALL_KEYS)
MESSAGE_MEANINGS: Mapping[str, str] = {
    **MEANINGS,
    **_table("names the speaker, which a template cannot say", "name speaker recipient"),
}


LABEL, REASON, MASK, TOOL = "label", "reasoning", "mask", "tools"
ANNOTATIONS: Mapping[str, str] = {
    **_table(LABEL, "label kto_tag kto_label"),
    **_table(MASK, "loss_mask mask weight loss_weight sample_weight train loss train_on_turn"),
    **_table(TOOL, "tools functions"),
    **dict.fromkeys(REASONING, REASON),
}
"""Keys that say something about any row, by name: which of the four kinds it is."""


@dataclass(frozen=True, slots=True)
class KeyTable:
    """What the keys of a row are to a format."""

    annotations: tuple[tuple[str, str], ...]
    """Keys of `ANNOTATIONS`, each with its kind."""

    refused: tuple[tuple[str, str], ...]
    """Keys that change the meaning, each with the reason."""

    unread: Group
    """Keys that nothing is known about."""

    doubled: tuple[Group, ...]
    """Groups of keys of the row that say the same thing."""

    is_clear: bool
    """Whether nothing but `annotations` has entries."""


@functools.lru_cache(maxsize=CACHED_SETS)
def key_table(
    names: Group, used: frozenset[str], one_of: tuple[Group, ...], kind: str = "row"
) -> KeyTable:
    """Sorts the keys of a row.

    Args:
        names: The row's keys.
        used: Keys that the format reads, or is known to drop.
        one_of: Groups of keys that say the same thing, of which a row may have one.
        kind: `row`, `text` for rows that are plain texts, or `message`.
    """
    meanings = {"row": MEANINGS, "text": TEXT_MEANINGS, "message": MESSAGE_MEANINGS}[kind]
    annotations, refused, unread = [], [], []
    for name in names:
        folded = _folded(name)
        if name in used or not folded:
            continue
        if kind == "row" and folded in ANNOTATIONS:
            annotations.append((name, ANNOTATIONS[folded]))
        elif reason := meanings.get(folded):
            refused.append((name, reason))
        elif folded not in INERT:
            unread.append(name)
    present = [tuple(name for name in group if name in names) for group in one_of]
    doubled = tuple(group for group in present if len(group) > 1)
    is_clear = not (refused or unread or doubled)
    return KeyTable(tuple(annotations), tuple(refused), tuple(unread), doubled, is_clear)


def refuse_meanings(
    row: Mapping[str, Any], table: KeyTable, where: str = "", texts: Collection[str] = ()
) -> None:
    """Refuses a row whose meaning would change if a key were dropped.

    Args:
        row: A row, or a message of one.
        table: Of its keys.
        where: The place of a message in the row, for the message.
        texts: What the format read, stripped: repeating one of these changes nothing.

    Raises:
        RowError: A key of `table.refused` has a value, or two keys of a group differ.
    """
    for name, reason in table.refused:
        value = row[name]
        is_repeated = isinstance(value, str) and reason == TURNS_REASON and value.strip() in texts
        if value not in NOTHING and not is_repeated:
            raise RowError(f"{where}{name!r} {reason}")
    for group in table.doubled:
        values = [row[name] for name in group if row[name] not in NOTHING]
        if any(value != values[0] for value in values[1:]):
            names = " and ".join(map(repr, group))
            raise RowError(f"{where}{names} differ: a row has one of them")


def refuse_media(row: Mapping[str, Any]) -> None:
    """Refuses a prompt with more than texts.

    Raises:
        RowError: A key of `MEDIA`, or one that offers or calls tools, has a value.
    """
    for name, value in row.items():
        folded = _folded(name)
        if (folded in MEDIA or folded in TOOLS) and value not in NOTHING:
            raise RowError(f"{name!r} {MEDIA['image']}")


def unread_names(row: Mapping[str, Any], table: KeyTable) -> list[str]:
    """The unread keys of a row that have a value."""
    return [name for name in table.unread if row[name] not in NOTHING]


@dataclass(slots=True)
class UnreadKey:
    """A key that nothing reads."""

    rows: int
    """Rows that have a value under it; for a key of messages, messages."""

    example: str
    """The first value, as JSON, shortened."""


class UnreadKeys:
    """Counts the unread keys of a file, in the order of the file.

    Attributes:
        keys: By name; `messages[].name` for a key of messages.
    """

    def __init__(self) -> None:
        self.keys: dict[str, UnreadKey] = {}

    def add(self, name: str, value: Any) -> None:
        """Counts a row or message with a value under a key."""
        if name in self.keys:
            self.keys[name].rows += 1
        else:
            self.keys[name] = UnreadKey(1, _shortened(value))

    def __add__(self, later: "UnreadKeys") -> "UnreadKeys":
        """The counts of these rows and of later ones."""
        if not later.keys:
            return self
        total = UnreadKeys.from_json(self.to_json())
        for name, key in later.keys.items():
            if name in total.keys:
                total.keys[name].rows += key.rows
            else:
                total.keys[name] = UnreadKey(key.rows, key.example)
        return total

    def to_json(self) -> list[dict[str, Any]]:
        """One object per key, as the sidecar has it."""
        return [
            {"name": name, "rows": key.rows, "example": key.example}
            for name, key in self.keys.items()
        ]

    @classmethod
    def from_json(cls, value: Iterable[Mapping[str, Any]]) -> "UnreadKeys":
        """Reads what `to_json` returned."""
        found = cls()
        found.keys = {item["name"]: UnreadKey(item["rows"], item["example"]) for item in value}
        return found


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 3] + "..."
