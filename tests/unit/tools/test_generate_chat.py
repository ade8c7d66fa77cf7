"""The generate command as a person meets it: templates, conversations, talks, bad prompts."""

import dataclasses
import functools
import io
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import (
    STORED_KEY,
    encode_prompts,
    load_template,
    store_template,
)
from megatron_chimed.generation import score_sequences, terminal
from megatron_chimed.generation.sampling import Sampler
from tests.integration.commands import kill_tree
from tests.unit.generation import test_scoring, toy
from tests.unit.tools.generating import BASE, complete, expected_answer, expected_text, run
from tools import score

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def chat_checkpoint(tmp_path_factory):
    """The same model, said to have learned `ziya`, and with room for a long answer."""
    model = dataclasses.asdict(toy.model_config()) | {"max_position_embeddings": 4096}
    config = {"model": model, STORED_KEY: store_template(load_template("ziya"))}
    return toy.save_reference(tmp_path_factory.mktemp("chat"), config=config)


@pytest.mark.parametrize(
    ("words", "expected", "why"),
    [
        ((), expected_answer, "template ziya, which the model was trained with"),
        (
            ("--template", "ziya"),
            expected_answer,
            "template ziya, as --template says; the model was trained with it",
        ),
        (
            ("--template", "chimed"),
            functools.partial(expected_answer, template="chimed"),
            "template chimed, as --template says; it differs from ziya, which the model was "
            "trained with (identity",
        ),
        (
            ("--raw", "--add-bos"),
            lambda turns, num_tokens: expected_text(turns[0][0], num_tokens),
            "--raw: text is completed, without template ziya, which the model was trained with",
        ),
    ],
)
def test_a_model_is_spoken_to_in_its_template(chat_checkpoint, capsys, words, expected, why):
    flags = ["--checkpoint", chat_checkpoint, "--prompt", "three", "--max-new-tokens", 8]
    assert run(*flags, *words) == 0
    told = capsys.readouterr()
    assert told.out == expected([("three", "")], 8) + "\n"
    assert told.err.startswith(why) and told.err.count("\n") == 1


def test_a_base_model_completes_and_says_so(checkpoint, capsys):
    flags = ["--checkpoint", checkpoint, "--prompt", "three", "--max-new-tokens", 20]
    assert run(*flags) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (expected_text("three", 20) + "\n", BASE + "\n")
    assert run(*flags, "--template", "ziya") == 0
    told = capsys.readouterr()
    assert told.out == expected_answer([("three", "")], 20) + "\n"
    assert told.err == "template ziya, as --template says; the checkpoint names none\n"


def test_rows_are_conversations(chat_checkpoint, tmp_path):
    before, last = ("发热", "cough"), {"from": "human", "value": "three"}
    messages = [{"from": "human", "value": before[0]}, {"from": "gpt", "value": before[1]}, last]
    rows = [
        {"prompt": "three"},
        {"prompt": "three", "history": [before], "system": "be short"},
        {"conversations": messages, "id": 5},
    ]
    found = complete(chat_checkpoint, tmp_path, rows, "--max-new-tokens", 20)
    whole = [before, ("three", "")]
    assert [row["completion"] for row in found] == [
        expected_answer([("three", "")], 20),
        expected_answer(whole, 20, system="be short"),
        expected_answer(whole, 20),
    ]
    assert [{k: row[k] for k in given} for row, given in zip(found, rows, strict=True)] == [
        row | ({"history": [list(before)]} if "history" in row else {}) for row in rows
    ]


def test_a_prompt_that_does_not_fit_stops_no_batch(checkpoint, tmp_path, capsys):
    """In 128 positions, 20 of them for the answer."""
    earlier = [["z" * 80, "b"], ["a", "b"]]
    rows = [
        {"prompt": "a"},
        {"prompt": "z" * 200 + "three"},
        {"prompt": " "},
        {"prompt": "three", "history": earlier},
        {"prompt": "three", "system": "z" * 200},
    ]
    words = ["--template", "ziya", "--max-new-tokens", 20, "--num-candidates", 2]
    found = complete(checkpoint, tmp_path, rows, *words)
    told = capsys.readouterr().err
    reasons = ["prompt_too_long", "prompt_empty", "prompt_too_long", "prompt_too_long"]
    assert [row["finish_reason"] for row in found[2::2]] == reasons
    assert [row["candidate"] for row in found] == [0, 1] * 5
    assert all(row["completion"] is None for row in found[2:])
    assert found[0]["completion"] == expected_answer([("a", "")], 20)
    for line, what in ((2, "too long"), (3, "empty"), (4, "too long"), (5, "too long")):
        assert f"{tmp_path}/in.jsonl:{line}: skipped, the prompt is {what}\n" in told
    assert "; 6 skipped: the prompt is too long; 2 skipped: the prompt is empty; written" in told

    found = complete(checkpoint, tmp_path, rows, *words[:4], "--too-long", "cut")
    told = capsys.readouterr().err
    assert [row.get("prompt_cut", False) for row in found] == [False, True, False, True, False]
    assert [row["finish_reason"] for row in found[2::2]] == ["prompt_empty", "prompt_too_long"]
    assert found[3]["completion"] == expected_answer([("a", "b"), ("three", "")], 20)
    tokenizer = toy.toy_tokenizer()
    frame = len(
        encode_prompts(tokenizer, load_template("ziya"), [Conversation((Turn("", ""),))])[0]
    )
    kept = 108 - frame - len(tokenizer.encode("three")) + 1
    answers = [expected_answer([("z" * n + "three", "")], 20) for n in (kept - 1, kept, kept + 1)]
    assert found[1]["completion"] in answers
    assert f"{tmp_path}/in.jsonl:2: the prompt was cut\n" in told and "2 prompts were cut" in told

    flags = ["--checkpoint", checkpoint, "--prompts", tmp_path / "in.jsonl", *words[:4]]
    flags += ["--output", tmp_path / "no.jsonl"]
    assert run(*flags, "--too-long", "error") == 65
    told = capsys.readouterr().err
    assert (
        "4 of 5 prompts cannot be completed: " in told and "in.jsonl:3: the prompt is empty" in told
    )
    (tmp_path / "in.jsonl").write_text('{"prompt": ""}\n')
    assert run(*flags) == 65
    assert "1 of 1 prompts cannot be completed" in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()


def test_text_that_is_cut_keeps_its_end_and_its_beginning_of_sequence(checkpoint, tmp_path):
    tokenizer = toy.toy_tokenizer()
    ids = tokenizer.encode("z" * 200 + " the fever")
    words = ["--max-new-tokens", 20, "--too-long", "cut"]
    rows = [{"prompt": "z" * 200 + " the fever"}, {"prompt": ""}]
    found = complete(checkpoint, tmp_path, rows, *words, "--add-bos")
    for row, kept in zip(found, ([tokenizer.bos_id, *ids[-107:]], [tokenizer.bos_id]), strict=True):
        drawn = [*toy.reference_completion(kept, 20), tokenizer.eos_id]
        drawn = drawn[: drawn.index(tokenizer.eos_id)]
        assert row["completion"] == tokenizer.decode([*kept, *drawn])[len(tokenizer.decode(kept)) :]
    assert found[0]["prompt_cut"] and "prompt_cut" not in found[1]


def test_scores_are_those_of_the_tokens_that_were_drawn(
    chat_checkpoint, tmp_path, capsys, monkeypatch
):
    """An answer is written without the space that its first token brings, and read with it."""
    tokenizer = toy.toy_tokenizer()
    answers = ["a fever and a cough", "发热三天", "since"]
    scripts = [[*tokenizer.encode(answer), tokenizer.eos_id] for answer in answers]
    monkeypatch.setattr(
        Sampler,
        "pick",
        lambda self, logits, slots, steps: torch.tensor(
            [scripts[slot][step] for slot, step in zip(slots, steps, strict=True)]
        ),
    )
    rows = [{"prompt": "three"}, {"prompt": "咳嗽"}, {"prompt": "days"}, {"prompt": "a" * 5000}]
    found = complete(chat_checkpoint, tmp_path, rows)
    assert [row["completion"] for row in found] == [*answers, None]
    judge = test_scoring.save_scorer(tmp_path / "judge")
    words = ["--input", tmp_path / "out.jsonl", "--output", tmp_path / "scored.jsonl"]
    assert score.main(["--checkpoint", str(judge), *map(str, words)]) == 0
    assert "3 of 4 rows scored" in capsys.readouterr().err
    scored = [json.loads(line)["score"] for line in (tmp_path / "scored.jsonl").open()]
    template = dataclasses.replace(load_template("ziya"), add_bos=False)
    asked = [Conversation((Turn(row["prompt"], ""),)) for row in rows[:3]]
    prompts = encode_prompts(tokenizer, template, asked)
    whole = [np.array(p + script) for p, script in zip(prompts, scripts, strict=True)]
    with test_scoring.opened(judge) as session:
        assert scored == [*score_sequences(session, whole), None]


def test_a_talk_keeps_its_turns(chat_checkpoint, capsys, monkeypatch):
    lines = "three\n\ncough\n/reset\ncough\n/exit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert run("--checkpoint", chat_checkpoint, "--interactive", "--max-new-tokens", 9) == 0
    first = expected_answer([("three", "")], 9)
    second = expected_answer([("three", first), ("cough", "")], 9)
    told = capsys.readouterr()
    assert told.out == f"{first}\n{second}\n{expected_answer([('cough', '')], 9)}\n"
    hint = f"{chat_checkpoint}: template ziya, which the model was trained with. /reset starts over"
    assert told.err.startswith(hint)
    assert "/exit or Ctrl-D leaves, Ctrl-C stops an answer" in told.err


def press_interrupt(monkeypatch, at):
    """Sends this process a real SIGINT when the terminal is asked for the `at`th time."""
    plain, asked = terminal.Terminal.is_stopped, []

    def is_stopped(self):
        asked.append(self)
        if len(asked) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(terminal.Terminal, "is_stopped", is_stopped)


def test_an_interrupt_stops_the_answer_and_not_the_talk(chat_checkpoint, capsys, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    press_interrupt(monkeypatch, at=6)
    monkeypatch.setattr("sys.stdin", io.StringIO("three\ncough\n"))
    assert run("--checkpoint", chat_checkpoint, "--interactive", "--max-new-tokens", 9) == 0
    first = expected_answer([("three", "")], 5)
    second = expected_answer([("three", first), ("cough", "")], 9)
    told = capsys.readouterr()
    assert told.out == f"{first}\n{second}\n"
    assert told.err.endswith("(stopped)\n")
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_while_nothing_is_asked_is_no_traceback(chat_checkpoint, capsys, monkeypatch):
    def interrupted(prompt):
        os.kill(os.getpid(), signal.SIGINT)
        return "never"

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("builtins.input", interrupted)
    assert run("--checkpoint", chat_checkpoint, "--interactive") == 0
    assert capsys.readouterr().out == ""


def read_terminal(descriptor, process, is_enough):
    """What comes on a terminal until it is enough, or the process ends."""
    found, end = b"", time.monotonic() + 120
    while not is_enough(found) and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            found += os.read(descriptor, 4096)
        elif process.poll() is not None:
            break
    return found


@pytest.mark.timing
def test_ranks_talk_on_a_terminal(chat_checkpoint):
    """Two ranks under torchrun: there ^C is a key, and every rank stops at the same token."""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*torchrun, "--nproc-per-node", "2", "tools/generate.py", "--interactive"]
        + ["--checkpoint", str(chat_checkpoint), "--parallel.tensor_parallel_size", "2"]
        + ["--max-new-tokens", "4000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TERM": "dumb"},
    )
    try:
        said = read_terminal(ours, process, lambda found: b"> " in found)
        assert b"Ctrl-C stops an answer" in said
        os.write(ours, b"never\x03three\n")  # a line that is taken back, and another
        said = read_terminal(ours, process, lambda found: b"\n" in found[:-8])
        assert b"never" in said and b"three\r\n" in said, said
        os.write(ours, b"\x03")
        # ^D means the end only once the prompt is back: before, the terminal takes keys, not lines.
        after = b"(stopped)\r\n"
        said = read_terminal(ours, process, lambda found: b"> " in found.partition(after)[2])
        assert after in said, said
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        kill_tree(process.pid)
        process.wait()
        settings = termios.tcgetattr(theirs)
        os.close(ours)
        os.close(theirs)
    assert settings == before
