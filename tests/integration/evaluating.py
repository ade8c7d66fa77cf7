"""A random model as a Hugging Face folder and as our checkpoint, with questions to ask it."""

import csv
from pathlib import Path

from megatron_chimed.tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.integration.commands import call
from tests.integration.hf_folders import make_hf

QUESTIONS = (
    ("维生素C缺乏引起", "夜盲症", "坏血病", "脚气病", "佝偻病", "B"),
    ("成人正常体温约为", "35.0℃", "36.5℃", "38.0℃", "39.0℃", "B"),
    ("胰岛素由何处分泌", "胰岛B细胞", "肝", "脾", "肾", "A"),
    ("最大的消化腺是", "胃", "胰", "肝", "脾", "C"),
    ("CT检查的射线是", "γ射线", "β射线", "α射线", "X射线", "D"),
)


def make_models(folder: Path, tokenizer: SentencePieceTokenizer) -> tuple[Path, Path]:
    """The Hugging Face folder, and the checkpoint imported from it."""
    hf = folder / "hf"
    hf.mkdir(parents=True)
    make_hf(
        hf,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    save_tokenizer(tokenizer, hf)
    done = call("convert_checkpoint", "import-hf", "--input", hf, "--output", folder / "ours")
    assert done.code == 0, done.err
    return hf, folder / "ours"


def write_questions(path: Path, rows) -> Path:
    """Rows of (question, A, B, C, D, answer) in CMMLU's shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("", "Question", "A", "B", "C", "D", "Answer"))
        writer.writerows((number, *row) for number, row in enumerate(rows))
    return path
