"""CMtMedQA of Zhongjing: multi-turn consultations, mixed with safety rows of another shape.

https://github.com/SupritYoung/Zhongjing (data). The safety rows, `{"instruct", "output"}`, start
with stray spaces, which are removed.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.alpaca import read_alpaca
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import conversation_of, has_texts, text_at


def _recognise(row: JsonRow) -> bool:
    if has_texts(row, "instruct", "output"):
        return True
    return has_texts(row, "cate1", "cate2", "instruction", "output") and "history" in row


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    if "instruct" not in row:
        return read_alpaca(row, options)
    turn = Turn(text_at(row, "instruct").strip(), text_at(row, "output").strip())
    return (conversation_of(row, [turn]),)


CMTMEDQA = Format(
    name="cmtmedqa",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"instruct", "instruction", "input", "output"}),
    one_of=(("instruct", "instruction"), ("instruct", "input")),
    sample={
        "id": "j1",
        "cate1": "内科",
        "cate2": "消化内科",
        "instruction": "需要做胃镜吗？",
        "input": "",
        "output": "建议先做胃镜明确诊断。",
        "history": [["最近总是反酸。", "您好，反酸多久了？"]],
    },
)
