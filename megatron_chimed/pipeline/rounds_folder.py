"""The folder of a job of rejection sampling: what lies where, and whose it is.

OUTPUT_DIR/
  config.yaml, inputs.json       what was asked for, and hashes of what it was asked of
  round_00/samples.parquet       fresh answers of the policy before the first round
  round_01/candidates.parquet    all answers of the round, with scores, seeds and decisions
           selected.jsonl, data.*, train/      the selected ones, as SFT data, and the run
           samples.parquet, report.*           fresh answers of the new policy, and the report
  report.md                      all rounds
  checkpoints -> round_NN/train/checkpoints    so that OUTPUT_DIR is a run's folder
"""

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_chimed import files
from megatron_chimed.config import RunConfig, plain
from megatron_chimed.errors import ConfigError, OutputError
from megatron_chimed.generation import remove_partial
from megatron_chimed.training.rejection.candidate import Candidate, write_candidates
from megatron_chimed.training.rejection.config import RejectionConfig
from megatron_chimed.training.rejection.judging import remove_kept_scores
from megatron_chimed.training.rejection.materials import Materials
from megatron_chimed.training.rejection.report import NUMBERS

CONFIG_NAME, INPUTS_NAME, LOCK_NAME = "config.yaml", "inputs.json", ".lock"
CANDIDATES_NAME, SAMPLES_NAME = "candidates.parquet", "samples.parquet"
DATA_NAME, TRAINING_NAME, CHECKPOINTS_NAME = "data", "train", "checkpoints"
# What may differ when a job goes on: it changes no result beyond rounding, or only adds rounds.
NEUTRAL = (
    "rounds",
    "inference.tensor_parallel_size",
    "inference.pipeline_parallel_size",
    "inference.max_batch",
    "inference.batch_tokens",
    "inference.timeout_seconds",
    "training.parallel",
    "training.kernels",
    "training.logging",
)
SHOWN_CHARACTERS = 60


@dataclasses.dataclass(frozen=True)
class RoundsFolder:
    """Paths and their safe keeping."""

    path: Path

    def of_round(self, number: int) -> Path:
        """Where a round keeps its files."""
        return self.path / f"round_{number:02d}"

    def find_done(self) -> list[str]:
        """The finished files of all rounds."""
        names = (CANDIDATES_NAME, SAMPLES_NAME, NUMBERS)
        return [str(path) for name in names for path in self.path.glob(f"round_*/{name}")]

    def claim(
        self, config: RejectionConfig, identities: Mapping[str, Any], held: contextlib.ExitStack
    ) -> None:
        """Locks the folder, and proves that what lies there is of this job.

        Args:
            config: Written there.
            identities: From `identities_of`.
            held: Keeps the lock.

        Raises:
            ConfigError: It is of another job.
            OutputError: Another job is at work in it, or it cannot be written.
        """
        owner = f"rejection sampling on {socket.gethostname()}, process {os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.locked(self.path / LOCK_NAME, owner))
        except BlockingIOError as error:
            raise OutputError(
                f"{self.path} is {error.strerror}: two jobs would overwrite each other. Wait for "
                "it, stop it, or give another --output_dir."
            ) from error
        inputs = self.path / INPUTS_NAME
        if inputs.exists():
            _check_same(inputs, json.loads(inputs.read_text(encoding="utf-8")), identities)
        files.write_json(inputs, identities)
        text = yaml.safe_dump(
            plain(dataclasses.asdict(config)), allow_unicode=True, sort_keys=False
        )
        files.write_text(self.path / CONFIG_NAME, text)
        for name in (CANDIDATES_NAME, SAMPLES_NAME):
            for path in self.path.glob(f"round_*/{name}"):
                _remove_kept(path)  # of a job that was killed before it could

    def show_policy(self, number: int) -> None:
        """Makes this a run's folder: that of the policy after a round."""
        link = self.path / CHECKPOINTS_NAME
        temporary = files.temporary_path(link)
        files.remove(temporary)
        target = self.of_round(number) / TRAINING_NAME / CHECKPOINTS_NAME
        temporary.symlink_to(target.relative_to(self.path), target_is_directory=True)
        os.replace(temporary, link)
        files.fsync_directory(self.path)


def keep_candidates(path: Path, candidates: Sequence[Candidate], number: int) -> None:
    """Writes the candidates of a round, and removes what was kept of them on the way."""
    write_candidates(path, candidates, {"round": str(number)})
    _remove_kept(path)


def _remove_kept(path: Path) -> None:
    remove_partial(path)
    remove_kept_scores(path)


def identities_of(
    config: RejectionConfig, materials: Materials, training: RunConfig
) -> dict[str, Any]:
    """All that results depend on, by name: paths count by what they hold."""
    told = plain(dataclasses.asdict(config))
    for name in ("output_dir", "policy", "reward_model", "prompts", "template"):
        del told[name]
    del told["candidates"]["external"]
    resolved = training.plain()
    for name in ("output_dir", "tokenizer", "checkpoint"):
        del resolved[name]
    told["training"] = resolved | {"epochs": config.training.epochs}
    flat = {
        f"{section}.{key}" if key else section: value
        for section, values in told.items()
        for key, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    }
    return materials.identities() | {k: v for k, v in flat.items() if k not in NEUTRAL}


def _check_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    differences = [
        f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}"
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{path.parent} holds rounds of another job: {'; '.join(differences)}. Its answers and "
            "policies would be mixed with others. Set them back, or give another --output_dir."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
