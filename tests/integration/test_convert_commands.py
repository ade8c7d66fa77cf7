"""tools/convert_checkpoint.py and tools/inspect_checkpoint.py: what they print and how they end."""

import subprocess
import sys
from pathlib import Path

from megatron_chimed.conversion import hf
from tests.integration.hf_folders import make_hf
from tools import convert_checkpoint, inspect_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def run_tool(tool, *arguments, capsys):
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_hf(tmp_path / "hf")
    code, out, _ = run_tool(
        convert_checkpoint, "import-hf", "--input", tmp_path / "hf", "--output", tmp_path / "ckpt",
        "--verify-logits", capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert "logits agree with transformers" in out
    assert "every tensor bit-equal to its source" in out
    assert "note: the folder has no tokenizer.model" in out
    export = ["export-hf", "--checkpoint", tmp_path / "ckpt", "--verify-logits", "--output"]
    for name, options in (
        ("out", []),
        ("bf16", ["--dtype", "bfloat16", "--max-shard-gb", "0.00005"]),
    ):
        code, out, err = run_tool(
            convert_checkpoint, *export, tmp_path / name, *options, capsys=capsys
        )
        assert (code, "logits agree" in out) == (0, True), err
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) == 2
    code, out, err = run_tool(
        convert_checkpoint, *export, tmp_path / "no", "--tolerance", "0", capsys=capsys
    )
    assert code == 74 and "differ from ours" in err
    assert not (tmp_path / "no").exists()
    for arguments, message, expected in (
        ("import-hf --input hf --output ckpt", "never overwritten", 73),
        ("import-hf --input x --output y", "x is not a folder", 65),
        ("export-hf --checkpoint x --output y", "x is not a folder", 74),
        ("export-hf --checkpoint hf --output y", "import-hf --input hf --output hf_imported", 74),
        ("export-hf --checkpoint ckpt", "required: --output", 78),
        ("export-hf --checkpoint ckpt --output y --max-shard-gb 0", "set it above 0", 78),
        ("", "required: command", 78),
    ):
        arguments = arguments.split()
        code, _, err = run_tool(convert_checkpoint, *arguments, capsys=capsys)
        assert code == expected, err
        assert message in err and len(err.splitlines()) == 1, err


def test_inspect_shows_and_proves(tmp_path, capsys):
    make_hf(tmp_path / "hf")
    final = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt").output
    code, out, _ = run_tool(
        inspect_checkpoint, tmp_path / "ckpt", "--verify", "--tensors", capsys=capsys
    )
    assert code == 0
    for text in ("iteration", "hidden_size=32", "rank_00000.safetensors", "4 files verified"):
        assert text in out
    assert "lm_head.weight" in out
    damaged = final / "rank_00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert run_tool(inspect_checkpoint, final, capsys=capsys)[0] == 0
    code, _, err = run_tool(inspect_checkpoint, final, "--verify", capsys=capsys)
    assert code == 74 and "rank_00000.safetensors: sha256 mismatch" in err
    script = "import sys, tools.inspect_checkpoint as t; t.main(sys.argv[1:])"
    script += "; assert 'megatron.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, final], cwd=ROOT, timeout=60, check=True)
