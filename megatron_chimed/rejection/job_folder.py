"""The output folder of a job: its layout on disk, its lock, and the job that it belongs to.

OUTPUT_DIR/
  config.yaml, inputs.json       the configuration, and hashes of everything that was read
  round_00/samples.parquet       fresh answers of the policy before the first round
  round_01/candidates.parquet    all candidates of the round, with scores, seeds and decisions
           selected.jsonl, data.*, train/      the selected ones, as SFT data, and the training run
           samples.parquet, report.*           fresh answers of the new policy, and the report
  report.md                      report of all rounds
  checkpoints -> round_NN/train/checkpoints    makes OUTPUT_DIR a run folder
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
from megatron_chimed.rejection.inputs import RejectionInputs
from megatron_chimed.rejection.report.report_files import REPORT_JSON
from megatron_chimed.rejection.score_journal import remove_score_journal
from megatron_chimed.rejection.selection_rules import SelectionConfig
from megatron_chimed.yaml_files import flatten, plain

CONFIG_NAME, INPUTS_NAME, LOCK_NAME = "config.yaml", "inputs.json", ".lock"
CANDIDATES_NAME, SAMPLES_NAME = "candidates.parquet", "samples.parquet"
SELECTED_NAME, DATA_NAME = "selected.jsonl", "data"
TRAINING_NAME, CHECKPOINTS_NAME = "train", "checkpoints"
# May change when a job resumes: changes no result beyond rounding, or only adds rounds.
RESUMABLE = (
    "rounds",
    "inference.tensor_parallel_size",
    "inference.pipeline_parallel_size",
    "inference.max_batch",
    "inference.batch_tokens",
    "inference.timeout_seconds",
)
_PATHS = ("policy", "reward_model", "prompts.train", "prompts.held_out", "candidates.external")
POLICY_KEY = "policy"
"""In the metadata of answers: the identity of the policy that drew them."""
SELECTION_KEY = "selection"
"""In the metadata of candidates: the settings that selected among them."""
SHOWN_CHARACTERS = 60


@dataclasses.dataclass(frozen=True)
class JobFolder:
    """Paths, the lock, and the checks that keep two jobs apart."""

    path: Path

    def of_round(self, number: int) -> Path:
        """Folder of a round; 0 holds what precedes the first."""
        return self.path / f"round_{number:02d}"

    def find_finished(self) -> list[str]:
        """Finished files of all rounds, and the training runs that have a checkpoint."""
        names = (CANDIDATES_NAME, SAMPLES_NAME, REPORT_JSON)
        found = [str(path) for name in names for path in self.path.glob(f"round_*/{name}")]
        trained = self.path.glob(f"round_*/{TRAINING_NAME}/{CHECKPOINTS_NAME}")
        return found + [str(path.parent) for path in trained if committed(path)]

    def claim(
        self, config: RejectionConfig, identities: Mapping[str, Any], locks: contextlib.ExitStack
    ) -> list[str]:
        """Locks the folder and verifies that its contents belong to this job.

        Args:
            config: Written to the folder.
            identities: From `identities_of`.
            locks: Holds the lock until it is closed.

        Returns:
            The finished files, as of `find_finished`.

        Raises:
            ConfigError: The folder belongs to another job, or a round is missing.
            OutputError: Another process is using the folder, or it cannot be written.
        """
        owner = f"rejection sampling on {socket.gethostname()}, process {os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            locks.enter_context(files.locked(self.path / LOCK_NAME, owner))
        except BlockingIOError as error:
            raise OutputError(
                f"{self.path} is {error.strerror}: two jobs would overwrite each other. Wait for "
                "it, stop it, or set another --output-dir."
            ) from error
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error}. Set --output-dir to a writable folder."
            ) from error
        inputs = self.path / INPUTS_NAME
        if inputs.exists():
            _check_same(inputs, json.loads(inputs.read_text(encoding="utf-8")), identities)
        finished = self.find_finished()
        self._check_order(finished, config.rounds)
        files.write_json(inputs, identities)
        text = yaml.safe_dump(
            plain(dataclasses.asdict(config)), allow_unicode=True, sort_keys=False
        )
        files.write_text(self.path / CONFIG_NAME, text)
        for name in (CANDIDATES_NAME, SAMPLES_NAME):
            for path in self.path.glob(f"round_*/{name}"):
                _remove_unfinished(path)  # left by a job that was killed before it removed them
        return finished

    def _check_order(self, finished: Sequence[str], rounds: int) -> None:
        """Refuses a folder with a missing round, or with more rounds than configured.

        Raises:
            ConfigError: It is such a folder.
        """
        begun = max((_number(Path(path).parent) for path in finished), default=0)
        reported = [(self.of_round(n) / REPORT_JSON).exists() for n in range(1, begun + 1)]
        if not all(reported[:-1]):
            missing = reported.index(False) + 1
            raise ConfigError(
                f"{self.of_round(begun)} was made from {self.of_round(missing)}, which is not "
                f"complete. Restore that, or remove all rounds from {missing} on to run them again."
            )
        if sum(reported) > rounds:
            raise ConfigError(
                f"rounds is {rounds}, but {self.path} holds {sum(reported)} finished rounds, each "
                "made from the one before. Set it to that or more, or take the policy of an "
                f"earlier round from {self.of_round(rounds) / TRAINING_NAME}."
            )

    def link_checkpoints(self, number: int) -> None:
        """Makes this a run folder: that of the policy after a round."""
        link = self.path / CHECKPOINTS_NAME
        temporary = files.temporary_path(link)
        files.remove(temporary)
        target = self.of_round(number) / TRAINING_NAME / CHECKPOINTS_NAME
        temporary.symlink_to(target.relative_to(self.path), target_is_directory=True)
        os.replace(temporary, link)
        files.fsync_directory(self.path)


def finish_candidates(
    path: Path, candidates: Sequence[Candidate], metadata: Mapping[str, str]
) -> None:
    """Writes candidates to their final file, and removes the unfinished work beside it."""
    write_candidates(path, candidates, metadata)
    _remove_unfinished(path)


def _remove_unfinished(path: Path) -> None:
    remove_partial(path)
    remove_score_journal(path)


def selection_text(selection: SelectionConfig) -> str:
    """The settings of a selection as text: equal settings give equal texts."""
    return json.dumps(dataclasses.asdict(selection), ensure_ascii=False, sort_keys=True)


def identities_of(config: RejectionConfig, inputs: RejectionInputs) -> dict[str, Any]:
    """Everything that answers and their scores depend on, by name; files by their contents.

    `selection` and `training` are left out: each round stores its own.
    """
    settings = plain(dataclasses.asdict(config))
    sections = ("rounds", "seed", "candidates", "evaluation", "inference")
    settings = {name: settings[name] for name in sections}
    del settings["candidates"]["external"]
    fixed = {name: value for name, value in flatten(settings).items() if name not in RESUMABLE}
    rounds = {"start_from": config.start_from, "train_on": config.train_on}
    return inputs.identities() | fixed | rounds


def start_facts(config: RejectionConfig) -> dict[str, Any]:
    """The settings that all ranks must have alike.

    Paths of inputs may differ between hosts: `identities_of` has their content.
    """
    settings = flatten(plain(dataclasses.asdict(config)))
    return {name: value for name, value in settings.items() if name not in _PATHS}


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
            f"{path.parent} holds rounds of another job: {'; '.join(differences)}. Their answers "
            "and policies must not be mixed. Restore the settings, or set another --output-dir."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
