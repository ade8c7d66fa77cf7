"""Tables keep every number and every letter: redirected, on a wide and on a narrow terminal."""

import io
import re

import pytest
from rich.console import Console

from megatron_chimed import engine
from megatron_chimed.config.presets import PRESETS
from megatron_chimed.observe import console as console_module
from megatron_chimed.observe.console import make_console, print_table
from megatron_chimed.planning.memory import RankMemory
from megatron_chimed.planning.report import print_memory
from tools import doctor

MODEL = PRESETS["ziya_13b"]()
LAYOUT = engine.plan_layout(
    engine.ParallelConfig(
        tensor_parallel_size=2, pipeline_parallel_size=4, virtual_pipeline_parallel_size=5
    ),
    world_size=64,
    sizes=MODEL.sizes(4096),
)
PLANS = [
    RankMemory(
        stage=stage,
        parameters=1_234_567_890,
        weights=3 << 30,
        gradients=111 << 30,
        optimizer=222 << 30,
        activations=333 << 30,
        micro_batches_in_flight=12.5,
    )
    for stage in range(4)
]


def printed(show, *, width):
    stream = io.StringIO()
    show(Console(file=stream, width=width, force_terminal=False, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [200, 120, 80, 60, 30])
def test_a_memory_plan_is_whole_at_any_width(width):
    out = printed(lambda console: print_memory(PLANS, LAYOUT, console), width=width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    for value in ("1,234.6M", "3.00G", "111.00G", "222.00G", "333.00G", "12.5", "669.00G"):
        assert len(re.findall(rf"(?<![\d,.]){re.escape(value)}", out)) == 4, value
    joined = "".join(out.split())
    for stage in range(4):
        first = [stage * 2 + 8 * chunk for chunk in range(5)]
        if width >= 200:
            assert ", ".join(f"{layer}-{layer + 1}" for layer in first) in out
        for layer in first:
            assert f"{layer}-{layer + 1}" in joined


def test_a_redirected_table_is_as_wide_as_it_has_to_be(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_memory(PLANS, LAYOUT, make_console())
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if "in flight" in line)
    assert header.split()[:3] == ["stage", "layers", "params"]
    assert max(map(len, out.splitlines())) <= console_module.PLAIN_WIDTH


def test_texts_are_folded_and_brackets_are_no_markup():
    found = "/a/very/long/path/" + "x" * 90
    findings = [doctor.Finding(name="[torch]", found="2.13.0", note=f"[bold] {found}")]
    out = printed(lambda console: print_table(doctor.as_table(findings), console), width=60)
    assert "[torch]" in out and "[bold]" in out
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    assert found in "".join(row[4] for row in rows if len(row) == 6)


def test_rows_stand_alone_where_the_numbers_do_not_fit():
    out = printed(lambda console: print_memory(PLANS[:1], LAYOUT, console), width=40)
    assert "stage: 0\nlayers: 0-1, 8-9, 16-17, 24-25, 32-33\nparams: 1,234.6M\n" in out
