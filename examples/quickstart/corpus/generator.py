"""Writes the demo's corpus: train.jsonl, valid.jsonl and test.jsonl of Chinese medical text.

    python -m examples.quickstart.corpus.generator --output demo_out/corpus --seed 1234

Each line is {"text": ..., "source": the genre, "topic": the disease}. Held-out files are about
diseases that training never names, written with templates that training never uses. The text is
synthetic and for software demonstration only; it is not medical advice.
"""

import dataclasses
import json
import os
import random
import sys
from pathlib import Path

import yaml

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import run_command
from megatron_chimed.files import atomic_file

from .facts import HERE, SPLITS, Disease, load_diseases, split_diseases
from .grammar import expand
from .slots import Slots

# Documents per disease, each of another template.
DOCUMENTS_PER_DISEASE = {"train": 18, "valid": 3, "test": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Size of one split."""

    path: Path
    """The jsonl file."""
    diseases: int
    """Number of diseases."""
    documents: int
    """Number of lines."""
    characters: int
    """Characters of all texts, without JSON syntax."""
    text_bytes: int
    """Bytes of all texts in UTF-8."""


def generate(output_folder: str | os.PathLike, seed: int = 1234) -> dict[str, SplitSummary]:
    """Writes the three files; the same seed gives the same bytes on every machine.

    Args:
        output_folder: Created if missing; files of the same names are replaced.
        seed: Determines genres, templates, phrasings, order and numbers, but not the held-out
            diseases and templates.

    Returns:
        A summary for each of train, valid and test.
    """
    parts = split_diseases(load_diseases())
    templates = load_templates()
    summaries = {}
    for split in SPLITS:
        documents = make_documents(split, parts[split], templates, seed)
        path = Path(output_folder, f"{split}.jsonl")
        with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(d, ensure_ascii=False) + "\n" for d in documents)
        summaries[split] = SplitSummary(
            path=path,
            diseases=len(parts[split]),
            documents=len(documents),
            characters=sum(len(document["text"]) for document in documents),
            text_bytes=sum(len(document["text"].encode()) for document in documents),
        )
    return summaries


def load_templates() -> dict[str, dict[str, list[str]]]:
    """Templates by genre and split; no template is in two splits."""
    files = sorted((HERE / "templates").glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}


def make_documents(
    split: str, diseases: list[Disease], templates: dict[str, dict[str, list[str]]], seed: int
) -> list[dict[str, str]]:
    """All documents of a split in random order."""
    documents = []
    choices = [(genre, text) for genre in sorted(templates) for text in templates[genre][split]]
    for disease in diseases:
        rng = random.Random(f"{seed}/{split}/{disease.name}")
        peers = [peer for peer in diseases if peer is not disease]
        for genre, template in rng.sample(choices, DOCUMENTS_PER_DISEASE[split]):
            text = expand(template, Slots(disease, peers, rng), rng)
            documents.append({"text": text, "source": genre, "topic": disease.name})
    random.Random(f"{seed}/{split}").shuffle(documents)
    return documents


def main(argv: list[str] | None = None) -> int:
    """Writes the corpus and prints its sizes."""
    parser = CommandParser(description="Write the demo's synthetic corpus.")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder for the three jsonl files"
    )
    parser.add_argument("--seed", type=int, default=1234, help="any integer (default: 1234)")
    options = parser.parse_args(argv)
    for split, made in generate(options.output, options.seed).items():
        print(
            f"{split}: {made.diseases} diseases, {made.documents} documents, "
            f"{made.text_bytes:,} bytes in {made.path}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
