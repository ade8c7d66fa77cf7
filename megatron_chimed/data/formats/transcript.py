"""Transcripts: a whole conversation as one text with a name before each utterance.

HH-RLHF (https://huggingface.co/datasets/Anthropic/hh-rlhf) holds two transcripts that differ in the
last answer, `chosen` and `rejected`; sets made from it move what they share to `prompt`.
"""

import re
from collections.abc import Sequence

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import Message, split_turns
from megatron_chimed.data.formats.row import RowError, has_texts, optional_text, ranking_of, text_at

NAME = re.compile(r"(?:\A\s*|\n\s*\n)(Human|Assistant):[ \t]?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether a text starts with `Human:` and has an utterance of the assistant."""
    match = NAME.match(text)
    if match is None or match[1] != "Human":
        return False
    return any(found[1] == "Assistant" for found in NAME.finditer(text))


def read_transcript(text: str) -> list[Message]:
    """The messages of a transcript, without the spaces around them.

    Raises:
        RowError: The text does not start with `Human:` or `Assistant:`.
    """
    names = list(NAME.finditer(text))
    if not names or names[0].start() != 0:
        raise RowError(f"a transcript does not start with Human: or Assistant: {text[:20]!r}")
    ends = [match.start() for match in names[1:]] + [len(text)]
    return [
        Message(SPEAKERS[match[1]], text[match.end() : end].strip())
        for match, end in zip(names, ends, strict=True)
    ]


def _recognise(row: JsonRow) -> bool:
    if not has_texts(row, "chosen", "rejected"):
        return False
    return is_transcript(row["prompt"] if has_texts(row, "prompt") else row["chosen"])


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    shared = optional_text(row, "prompt")
    sides = []
    for key in ("chosen", "rejected"):
        side = text_at(row, key)
        messages = read_transcript(side if side.startswith(shared) else shared + side)
        if messages[-1].role != "assistant":
            raise RowError(f"{key!r} does not end with an answer of the assistant")
        sides.append(messages)
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected answer different prompts")
    _, turns, question = split_turns(chosen[:-1])
    answers = (chosen[-1].text, rejected[-1].text)
    return (ranking_of(row, question, answers, (0, 1), turns=turns),)


HH_RLHF = Format(
    name="hh_rlhf",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"prompt", "chosen", "rejected"}),
    sample={
        "chosen": "\n\nHuman: 牙疼怎么办？\n\nAssistant: 疼多久了？\n\nHuman: 三天。"
        "\n\nAssistant: 建议尽快看牙医，可先用温盐水漱口。",
        "rejected": "\n\nHuman: 牙疼怎么办？\n\nAssistant: 疼多久了？\n\nHuman: 三天。"
        "\n\nAssistant: 忍一忍就好。",
    },
)
