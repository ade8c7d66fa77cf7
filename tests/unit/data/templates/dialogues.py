"""Random conversations for the templates of model families, as ours and as messages."""

import json
import random
from dataclasses import replace

from megatron_chimed.data.formats.example import Conversation, ToolCall, ToolStep, Turn

PIECES = (
    *("发热三天，咳嗽。", "多饮水 ", "体温38.5℃", "患者男，35岁", "阿莫西林 0.5g tid", "　全角"),
    *("What about fever?", "It's 3.14", " a", "b ", "<div>", "don't", "x_1", "1234567", "\t", ":"),
    *("\n", "\n\n", " \n", "\r\n", "  ", "   ", "😀", "👍🏽", "𠮷", "e\u0301", "İ", "\u0301", "'s"),
    *("{{ x }}", "{% y %}", "\\n", '"quoted"', "`code`", "user\n", "assistant\n", "</", "|>"),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "查药",
            "description": "Looks up a drug. 查询药品",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "bmi", "description": "kg/m2", "parameters": {}}},
]


def text(rng, *, blank=True):
    """A text; `blank` says whether it may be of white space alone."""
    found = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))
    return found if blank or found.strip() else found + "好"


def step(rng, *, calls, beside, reasoning):
    names = [rng.choice(("查药", "bmi")) for _ in range(calls)]
    found = tuple(
        ToolCall(
            name,
            json.dumps({"name": text(rng), "n": rng.choice((1, 1.5, None))}, ensure_ascii=False),
            "".join(rng.choices("abcXYZ019", k=9)),
        )
        for name in names
    )
    return ToolStep(
        found,
        tuple(rng.choice((text(rng), "")) for _ in names),
        text(rng) if beside and rng.random() < 0.5 else "",
        text(rng) if reasoning and rng.random() < 0.5 else "",
    )


def conversation(rng, *, reasoning=False, calls=2, beside=True, tools=True):
    """A conversation with up to four turns, with whatever the family can write."""
    has_tools = tools and rng.random() < 0.4
    turns = []
    for _ in range(rng.randint(1, 4)):
        turn = Turn(text(rng) if rng.random() < 0.95 else "", text(rng, blank=False))
        if reasoning and rng.random() < 0.5:
            turn = replace(turn, reasoning=text(rng))
        if has_tools and rng.random() < 0.6:
            steps = tuple(
                step(rng, calls=rng.randint(1, calls), beside=beside, reasoning=reasoning)
                for _ in range(rng.randint(1, 2))
            )
            turn = replace(turn, steps=steps)
        turns.append(turn)
    if has_tools and turns[-1].steps and rng.random() < 0.3:  # it ends with a call
        *earlier, last = turns[-1].steps
        turns[-1] = replace(
            turns[-1], answer="", reasoning="", steps=(*earlier, replace(last, results=()))
        )
    listed = json.dumps(TOOLS, ensure_ascii=False) if has_tools else ""
    return Conversation(tuple(turns), text(rng) if rng.random() < 0.5 else "", listed)


def prompt_of(found, number):
    """The conversation up to the answer of a turn."""
    *earlier, last = found.turns[: number + 1]
    steps = tuple(s for s in last.steps if s.results)
    return replace(found, turns=(*earlier, replace(last, answer="", reasoning="", steps=steps)))


def messages_of(found, *, is_prompt=False):
    """As `apply_chat_template` takes them."""
    messages = [{"role": "system", "content": found.system}] if found.system else []
    for turn in found.turns:
        messages.append({"role": "user", "content": turn.question})
        for entry in turn.steps:
            calls = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in entry.calls
            ]
            said = {"role": "assistant", "content": entry.text, "tool_calls": calls}
            messages.append(said | _thought(entry))
            for call, result in zip(entry.calls, entry.results, strict=False):
                messages.append({"role": "tool", "content": result, "tool_call_id": call.id})
        if turn.answer:
            messages.append({"role": "assistant", "content": turn.answer} | _thought(turn))
    return messages


def _thought(said):
    return {"reasoning_content": said.reasoning} if said.reasoning else {}


def many(seed, count, **options):
    rng = random.Random(seed)
    return [conversation(rng, **options) for _ in range(count)]
