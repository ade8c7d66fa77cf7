"""Prints token views to a terminal, in colour if it has any, otherwise as plain tables."""

import os
from collections.abc import Iterator
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_chimed.data.datasets.sidecar import Sidecar
from megatron_chimed.data.inspection.token_views import NO_TARGET, Section, View, runs
from megatron_chimed.errors import ConfigError
from megatron_chimed.observe.console import print_table
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

Layout = Literal["tokens", "text"]
LAYOUTS: tuple[Layout, ...] = ("tokens", "text")
LEARNED, SPECIAL, FAINT = "green", "bold red", "dim"
OUTSIDE = "(not in the vocabulary)"


def make_table(console: Console, *, title: str | None = None) -> Table:
    """A table with lines in a terminal, with spaces elsewhere."""
    box = SIMPLE_HEAD if console.is_terminal else None
    return Table(
        title=title and Text(title),
        title_justify="left",
        box=box,
        header_style="bold",
        pad_edge=False,
    )


def print_view(view: View, tokenizer: Tokenizer, console: Console, *, layout: Layout) -> None:
    """Prints a view.

    Args:
        view: What to print.
        tokenizer: Spells the ids.
        console: Where to.
        layout: `tokens`: one line per token; `text`: decoded, split into learned and given text.
    """
    console.print(Text(visible(view.title), style="bold"))
    for section in view.sections:
        console.print(Text(f"-- {section.caption}", style="bold cyan"))
        if layout == "text":
            for line in _text_lines(section, tokenizer):
                console.print(line, soft_wrap=True)
        elif not section.padding:
            print_table(_token_table(section, tokenizer, console), console)


def _token_table(section: Section, tokenizer: Tokenizer, console: Console) -> Table:
    table = make_table(console)
    for header in ("position", "id", "token", "mask", "target id", "target"):
        is_text = header in ("token", "target")
        table.add_column(header, justify="left" if is_text else "right")
    columns = (section.positions, section.tokens, section.learned, section.targets)
    for position, index, weight, target in zip(*(c.tolist() for c in columns), strict=True):
        is_learned, has_target = weight > 0, target != NO_TARGET
        style = LEARNED if is_learned else FAINT
        table.add_row(
            str(position),
            str(index),
            _spelled(index, tokenizer, ""),
            f"{weight:g}",
            Text(str(target) if has_target else "", style),
            _spelled(target, tokenizer, style) if has_target else "",
        )
    return table


def _text_lines(section: Section, tokenizer: Tokenizer) -> Iterator[Text]:
    """Decoded runs, labelled in words as well as by colour."""
    for is_learned, places in runs(section) if len(section.tokens) else ():
        text = decode(section.tokens[places].tolist(), tokenizer)
        label, style = ("learned", LEARNED) if is_learned else ("given", FAINT)
        yield Text.assemble((f"{label:>7} | ", "bold"), (visible(text), style))


def _spelled(index: int, tokenizer: Tokenizer, style: str) -> Text:
    is_special = tokenizer.is_special(index) or index in tokenizer.added_tokens.values()
    return Text(spell(index, tokenizer), SPECIAL if is_special else style)


def spell(index: int, tokenizer: Tokenizer) -> str:
    """A token as the vocabulary spells it, on one line."""
    if not 0 <= index < tokenizer.vocab_size:
        return OUTSIDE
    return visible(tokenizer.token(index))


def decode(ids: list[int], tokenizer: Tokenizer) -> str:
    """Text of ids, with special ones spelled; numbers if an id is outside the vocabulary."""
    if all(0 <= index < tokenizer.vocab_size for index in ids):
        return tokenizer.decode(ids, keep_special=True)
    return " ".join(map(str, ids))


def visible(text: str) -> str:
    """Escapes line ends and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tokenizer_of(name: str, sidecar: Sidecar | None, path: str | None) -> Tokenizer:
    """The tokenizer of a prefix.

    Args:
        name: The prefix, for messages.
        sidecar: The sidecar of the prefix, or None.
        path: The tokenizer that the user gave; None: the one named in the sidecar.

    Raises:
        ConfigError: No tokenizer is known, or it is not the one that made the data.
    """
    if path is None:
        if sidecar is None or not os.path.exists(sidecar.tokenizer_name):
            known = "no tokenizer" if sidecar is None else f"{sidecar.tokenizer_name!r}, now gone"
            raise ConfigError(f"{name} names {known}. Give it with --tokenizer PATH.")
        path = sidecar.tokenizer_name
    tokenizer = load_tokenizer(path)
    if sidecar is not None and sidecar.tokenizer_sha256 != tokenizer.identity:
        raise ConfigError(
            f"{path} (sha256 {tokenizer.identity[:12]}) is not the "
            f"tokenizer of {name} (sha256 {sidecar.tokenizer_sha256[:12]}). Give that one with "
            "--tokenizer PATH."
        )
    return tokenizer
