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
from megatron_chimed.checkpoint.commit import committed
from megatron_chimed.errors import ConfigError, OutputError
from megatron_chimed.generation import remove_partial
from megatron_chimed.rejection.candidate import Candidate, write_candidates
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.judging import remove_kept_scores
from megatron_chimed.rejection.materials import Materials
from megatron_chimed.rejection.report.report import NUMBERS
from megatron_chimed.rejection.selection import SelectionConfig
from megatron_chimed.yaml_files import flatten, plain

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
)
POLICY_KEY = "policy"
"""In the metadata of answers: the identity of the policy that drew them."""
SELECTION_KEY = "selection"
"""In the metadata of candidates: the settings that decided on them."""
SHOWN_CHARACTERS = 60


@dataclasses.dataclass(frozen=True)
class RoundsFolder:
    """Paths and their safe keeping."""

    path: Path

    def of_round(self, number: int) -> Path:
        """Where a round keeps its files."""
        return self.path / f"round_{number:02d}"

    def find_done(self) -> list[str]:
        """The finished files of all rounds, and the runs that have a checkpoint."""
        names = (CANDIDATES_NAME, SAMPLES_NAME, NUMBERS)
        found = [str(path) for name in names for path in self.path.glob(f"round_*/{name}")]
        trained = self.path.glob(f"round_*/{TRAINING_NAME}/{CHECKPOINTS_NAME}")
        return found + [str(path.parent) for path in trained if committed(path)]

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
                "it, stop it, or give another --output-dir."
            ) from error
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error}. Set --output-dir to a folder that can."
            ) from error
        inputs = self.path / INPUTS_NAME
        if inputs.exists():
            _check_same(inputs, json.loads(inputs.read_text(encoding="utf-8")), identities)
        self._check_order(config.rounds)
        files.write_json(inputs, identities)
        text = yaml.safe_dump(
            plain(dataclasses.asdict(config)), allow_unicode=True, sort_keys=False
        )
        files.write_text(self.path / CONFIG_NAME, text)
        for name in (CANDIDATES_NAME, SAMPLES_NAME):
            for path in self.path.glob(f"round_*/{name}"):
                _remove_kept(path)  # of a job that was killed before it could

    def _check_order(self, rounds: int) -> None:
        """Refuses a folder in which a round is missing, or more are done than are asked for.

        Raises:
            ConfigError: It is such a folder.
        """
        begun = max((_number(Path(path).parent) for path in self.find_done()), default=0)
        reported = [(self.of_round(number) / NUMBERS).exists() for number in range(1, begun + 1)]
        if not all(reported[:-1]):
            missing = reported.index(False) + 1
            raise ConfigError(
                f"{self.of_round(begun)} was made from {self.of_round(missing)}, which is not "
                f"complete. Put that back, or remove all rounds from {missing} on: they are then "
                "made again."
            )
        if sum(reported) > rounds:
            raise ConfigError(
                f"rounds is {rounds}, but {self.path} holds {sum(reported)} finished rounds, each "
                "made from the one before. Set it to that or more, or take the policy of an "
                f"earlier round from {self.of_round(rounds) / TRAINING_NAME}."
            )

    def show_policy(self, number: int) -> None:
        """Makes this a run's folder: that of the policy after a round."""
        link = self.path / CHECKPOINTS_NAME
        temporary = files.temporary_path(link)
        files.remove(temporary)
        target = self.of_round(number) / TRAINING_NAME / CHECKPOINTS_NAME
        temporary.symlink_to(target.relative_to(self.path), target_is_directory=True)
        os.replace(temporary, link)
        files.fsync_directory(self.path)


def keep_candidates(
    path: Path, candidates: Sequence[Candidate], metadata: Mapping[str, str]
) -> None:
    """Writes candidates, and removes what was kept of them on the way."""
    write_candidates(path, candidates, metadata)
    _remove_kept(path)


def _remove_kept(path: Path) -> None:
    remove_partial(path)
    remove_kept_scores(path)


def selection_text(selection: SelectionConfig) -> str:
    """The settings of a selection, equal where these are."""
    return json.dumps(dataclasses.asdict(selection), ensure_ascii=False, sort_keys=True)


def identities_of(config: RejectionConfig, materials: Materials) -> dict[str, Any]:
    """All that answers and their scores depend on, by name: paths count by what they hold.

    `selection` and `training` are not among it: what they decide is told beside each round.
    """
    told = plain(dataclasses.asdict(config))
    told = {
        name: told[name] for name in ("rounds", "seed", "candidates", "evaluation", "inference")
    }
    del told["candidates"]["external"]
    kept = {name: value for name, value in flatten(told).items() if name not in NEUTRAL}
    rounds = {"start_from": config.start_from, "train_on": config.train_on}
    return materials.identities() | kept | rounds


def require_same(identities: Sequence[Mapping[str, Any]]) -> None:
    """Refuses ranks that have read different things.

    Raises:
        ConfigError: They have.
    """
    for rank, other in enumerate(identities):
        names = [name for name, value in identities[0].items() if other.get(name) != value]
        if names:
            raise ConfigError(
                f"rank {rank} has read another {', '.join(names)} than rank 0. All ranks need the "
                "same files: put them on a file system that the hosts share, and change nothing "
                "there while a job starts."
            )


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("round_"))


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
            "policies would be mixed with others. Set them back, or give another --output-dir."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
