"""Examples as docs/formats.md shows them."""

from megatron_chimed.data.formats.example import Conversation, Example, Ranking, Text


def rendered(examples: list[Example]) -> str:
    """One line per text; later lines of a text are indented, examples divided by ---."""
    return "\n---\n".join("\n".join(_lines(example)) for example in examples)


def _lines(example: Example) -> list[str]:
    if isinstance(example, Text):
        return [_line("text", example.text)]
    if isinstance(example, Ranking):
        ranked = zip(example.ranks, example.candidates, strict=True)
        answers = [_line(f"rank {rank}", answer) for rank, answer in ranked]
        return [*_lines(example.prompt)[:-1], *answers]
    assert isinstance(example, Conversation)
    lines = [_line("system", example.system)] if example.system else []
    for turn in example.turns:
        lines.append(_line("user", turn.question))
        lines += [_line("reasoning", turn.reasoning)] if turn.reasoning else []
        lines.append(_line("assistant", turn.answer))
    return lines


def _line(name: str, text: str) -> str:
    return f"{name}: " + text.replace("\n", "\n  ")
