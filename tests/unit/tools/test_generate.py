"""The generate command: files in and out, streaming, and what it refuses."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.generation import prompt_rows, resumable
from tests.unit.generation import toy
from tests.unit.tools.generating import BASE, expected_text, run
from tools import generate

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["the patient has", "发热", "fever and cough since three days", "a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": i, "prompt": prompt}) + "\n" for i, prompt in enumerate(PROMPTS)]
    path.write_text("".join(lines))
    return path


def test_file_is_completed_in_order(checkpoint, prompts, tmp_path, capsys):
    output = tmp_path / "new" / "out.jsonl"
    arguments = ["--checkpoint", checkpoint.parent, "--prompts", prompts, "--output", output]
    assert run(*arguments, "--max-new-tokens", 20, "--max-batch", 3) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in found] == PROMPTS
    assert [row["id"] for row in found] == [0, 1, 2, 3]
    assert [row["completion"] for row in found] == [expected_text(text, 20) for text in PROMPTS]
    assert {row["finish_reason"] for row in found} <= {"length", "stop"}
    told = capsys.readouterr().err
    lengths = [len(toy.toy_tokenizer().encode(text)) + 1 + 20 for text in PROMPTS]
    longest = max(lengths)
    # 2 x 4 layers x 4 heads x 8 x fp32 for each token of three rows, in pages of 16 if that saves
    # a fifth.
    in_pages = 16 * sum(sorted(-(-length // 16) for length in lengths)[-3:])
    held = in_pages if in_pages < 0.8 * 3 * longest else 3 * longest
    size = 2 * 4 * 4 * 8 * 4 * held / 2**20
    assert "4 completions on TP1 x PP1 x DP1, 3 at a time" in told
    assert f"at most {longest} tokens with the prompt, KV cache {size:.1f} MiB a rank" in told
    assert "4 completions (" in told
    assert list(output.parent.iterdir()) == [output]


def test_candidates_are_rows_of_their_own(checkpoint, prompts, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--prompts", prompts, "--temperature", 1]
    outputs = [tmp_path / f"{max_batch}.jsonl" for max_batch in (1, 5)]
    for output, max_batch in zip(outputs, (1, 5), strict=True):
        flags = ["--num-candidates", 3, "--max-batch", max_batch, "--max-new-tokens", 9]
        assert run(*arguments, *flags, "--output", output) == 0
    first, second = (output.read_text() for output in outputs)
    assert first == second
    found = [json.loads(line) for line in first.splitlines()]
    assert [(row["id"], row["candidate"]) for row in found] == [
        (i, j) for i in range(4) for j in range(3)
    ]
    assert len({row["completion"] for row in found[:3]}) == 3


def test_a_killed_job_goes_on(checkpoint, prompts, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.jsonl"
    arguments = ["--checkpoint", checkpoint, "--prompts", prompts, "--output", output]
    arguments += ["--temperature", 1, "--num-candidates", 2, "--max-new-tokens", 9]
    assert run(*arguments) == 0
    whole = output.read_bytes()
    output.unlink()
    plain, started = resumable.stream_completions, []

    def killed(session, requests, *rest, **named):
        started.append(len(requests))
        for number, completion in enumerate(plain(session, requests, *rest, **named)):
            if number == 3:
                raise KeyboardInterrupt
            yield completion

    monkeypatch.setattr(resumable, "stream_completions", killed)
    with pytest.raises(KeyboardInterrupt):
        generate.main([str(argument) for argument in arguments])
    (kept,) = tmp_path.glob(".out.jsonl.partial-*")
    assert not output.exists()
    with kept.open("ab") as stream:
        stream.write(b'{"prompt_id": 1, "tok')  # half a line, as a kill leaves it
    monkeypatch.setattr(resumable, "stream_completions", plain)
    capsys.readouterr()

    for words, what in ((("--top-k", 5), "sampling"), (("--too-long", "cut"), "--too-long")):
        assert run(*arguments, *words) == 73
        told = capsys.readouterr().err
        assert f"{kept} holds completions of an unfinished job with another {what}. " in told
    assert run(*arguments, "--template", "ziya") == 73
    assert "with another prompts and template" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert output.read_bytes() == whole
    assert started == [8] and list(tmp_path.glob(".out*")) == []


def test_nothing_that_was_kept_is_done_again(checkpoint, prompts, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    arguments = ["--checkpoint", checkpoint, "--prompts", prompts, "--output", output]
    arguments += ["--max-new-tokens", 20]
    plain, started = resumable.stream_completions, []

    def counted(session, requests, *rest, **named):
        started.append(len(requests))
        return plain(session, requests, *rest, **named)

    monkeypatch.setattr(resumable, "stream_completions", counted)
    with monkeypatch.context() as patch:
        patch.setattr(prompt_rows, "atomic_file", lambda path: pytest.fail("full disk"))
        with pytest.raises(pytest.fail.Exception):
            generate.main([str(argument) for argument in arguments])
    assert run(*arguments) == 0
    assert started == [4, 0]


def test_prompt_is_streamed(checkpoint, capsys):
    arguments = ["--checkpoint", checkpoint, "--prompt", PROMPTS[0], "--max-new-tokens", 20]
    assert run(*arguments) == 0
    assert capsys.readouterr().out == expected_text(PROMPTS[0], 20) + "\n"


def test_talk_remembers_until_clear(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nfever\nclear\nfever\nexit\nnever\n"))
    assert run("--checkpoint", checkpoint, "--interactive", "--max-new-tokens", 12) == 0
    first = expected_text("a", 12)
    answers = [first, expected_text(f"a{first}\nfever", 12), expected_text("fever", 12)]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_talk_goes_on_after_too_long_a_line(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'z' * 200}\na\n"))
    assert run("--checkpoint", checkpoint, "--interactive", "--max-new-tokens", 12) == 0
    told = capsys.readouterr()
    assert "more than the model's 128 positions" in told.err and "/reset clears" in told.err
    assert told.out == expected_text("a", 12) + "\n"


def test_stop_and_no_bos(checkpoint, capsys):
    arguments = ["--checkpoint", checkpoint, "--prompt", "a", "--max-new-tokens", 30]
    assert run(*arguments, "--no-add-bos") == 0
    whole = capsys.readouterr().out[:-1]
    assert whole != expected_text("a", 30)
    stop = whole[10:12]
    assert run(*arguments, "--no-add-bos", "--stop", stop, "zzzzz") == 0
    assert capsys.readouterr().out[:-1] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompts", "{prompts}"], 78, "--prompts and --output belong together"),
        (["--prompt", "a", "--output", "o.jsonl"], 78, "--prompts and --output belong together"),
        (["--prompts", "{prompts}", "--output", "{prompts}"], 78, "Name another file"),
        (["--prompt", "a", "--raw", "--template", "ziya"], 78, "Remove one of them"),
        (["--prompt", "a", "--template", "zyia"], 78, "template 'zyia' is none of ziya"),
        (["--prompt", "a", "--template", "ziya", "--add-bos"], 78, "--add-bos is for text that"),
        (["--prompt", "a", "--template", "ziya", "--no-add-bos"], 78, "--no-add-bos is for text"),
        (["--prompt", " ", "--template", "ziya"], 65, "no question"),
        (["--prompts", "{prompts}", "--output", "{bad}"], 73, "bad.jsonl exists already"),
        (
            [*"--prompts {prompts} --output {folder}/o.jsonl --max-new-tokens 128".split()],
            78,
            "--max-new-tokens leaves 0 of the model's positions",
        ),
        (["--prompts", "{prompts}", "--output", "{folder}"], 73, "is a folder"),
        (["--prompts", "{bad}", "--output", "{folder}/o.jsonl"], 65, "bad.jsonl:2: malformed"),
        (["--prompts", "{prompts}.gone", "--output", "{folder}/o.jsonl"], 78, "does not exist"),
        (["--prompt", "a", "--temperature", "-1"], 78, "temperature is -1.0"),
        (["--prompt", "a", "--parallel.tensor_parallel_size", "2"], 78, "1 ranks cannot be split"),
        (
            ["--prompt", "a", "--max-new-tokens", "127"],
            65,
            "prompt 0 (the first is 0) has 2 tokens",
        ),
        (["--prompt", "", "--no-add-bos"], 65, "prompt 0 (the first is 0) has no tokens"),
        (["--prompt", "a", "--wrong"], 78, "--wrong"),
        (["--prompt", "a", "--checkpoint", "{folder}/none"], 74, "is not a folder"),
        ([], 78, "--prompts"),
    ],
)
def test_mistakes_get_one_message(checkpoint, prompts, tmp_path, capsys, arguments, code, message):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"prompt": \n')
    names = {"prompts": prompts, "bad": bad, "folder": tmp_path}
    given = [argument.format(**names) for argument in arguments]
    before = sorted(tmp_path.iterdir())
    assert run("--checkpoint", checkpoint, *given) == code
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
    assert [line for line in told[:-1] if "as --template says" not in line] in ([], [BASE])
    assert sorted(tmp_path.iterdir()) == before


def test_help_needs_no_torch():
    code = (
        "import sys; from tools import generate\n"
        "try: generate.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--repetition-penalty" in done.stdout
