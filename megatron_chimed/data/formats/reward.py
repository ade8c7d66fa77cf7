"""Pairs of one prompt and two answers: shibing624/medical (reward), and those of TRL and ms-swift.

https://huggingface.co/datasets/shibing624/medical
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import has_texts, ranking_of, text_at

SHAPES = (
    ("question", "response_chosen", "response_rejected"),
    ("prompt", "chosen", "rejected"),
    ("question", "chosen", "rejected"),
    ("query", "response", "rejected_response"),
)


def _recognise(row: JsonRow) -> bool:
    return any(has_texts(row, *keys) for keys in SHAPES)


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    shape = next((keys for keys in SHAPES if set(keys) <= set(row)), SHAPES[0])
    question, chosen, rejected = (text_at(row, key) for key in shape)
    return (ranking_of(row, question, (chosen, rejected), (0, 1)),)


REWARD = Format(
    name="reward",
    recognise=_recognise,
    read=_read,
    keys=frozenset({key for shape in SHAPES for key in shape}),
    one_of=tuple(tuple(dict.fromkeys(keys)) for keys in zip(*SHAPES, strict=True)),
    sample={
        "question": "感冒了要吃抗生素吗？",
        "response_chosen": "普通感冒多由病毒引起，一般不需要抗生素。",
        "response_rejected": "要，越多越好。",
    },
)
