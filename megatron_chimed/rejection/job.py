"""A running job of rejection sampling: what it was given, what is finished, where its files are.

Nothing here is state that a restart would lose: all results are files in the job's folder.
"""

import contextlib
from pathlib import Path

from megatron_chimed.checkpoint.reader import newest_checkpoint
from megatron_chimed.engine import use_device
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import SamplingConfig, prompt_seed
from megatron_chimed.generation.workers import Workers
from megatron_chimed.rejection.candidate import Candidate, read_candidates, read_metadata
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.inputs import RejectionInputs, weights_identity
from megatron_chimed.rejection.job_folder import (
    CANDIDATES_NAME,
    POLICY_KEY,
    SAMPLES_NAME,
    TRAINING_NAME,
    JobFolder,
    identities_of,
    start_facts,
)
from megatron_chimed.rejection.report.report_files import REPORT_JSON, REPORT_TEXT
from megatron_chimed.rejection.round_config import check_layouts


class RejectionJob:
    """Everything that the steps of a round share, on this rank; a context manager.

    Entering it locks the output folder and verifies that the folder belongs to this job.

    Args:
        config: The job's settings.
        inputs: From `open_rejection_inputs`.
        workers: The ranks.
    """

    def __init__(self, config: RejectionConfig, inputs: RejectionInputs, workers: Workers) -> None:
        self.config, self.inputs, self.workers = config, inputs, workers
        self.folder = JobFolder(Path(config.output_dir))
        training = check_layouts(config, inputs, workers.size)
        use_device(
            config.device,
            local_rank=workers.local_rank,
            num_parameters=inputs.model.num_parameters,
            deterministic=training.training.deterministic,
        )
        self.training_seq_length: int = training.data.seq_length
        self._locks = contextlib.ExitStack()
        self._finished: frozenset[str] = frozenset()

    def __enter__(self) -> "RejectionJob":
        identities = identities_of(self.config, self.inputs)
        self.workers.agreement.require_same(start_facts(self.config) | identities)
        try:
            self._finished = frozenset(
                self.workers.on_rank_0(
                    lambda: self.folder.claim(self.config, identities, self._locks)
                )
            )
        except BaseException:
            self._locks.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    # Which steps are finished.

    def has_report(self, number: int) -> bool:
        """Whether a round is finished."""
        return self._is_finished(number, REPORT_JSON)

    def has_candidates(self, number: int) -> bool:
        """Whether a round's candidates were drawn, scored and selected by an earlier start."""
        return self._is_finished(number, CANDIDATES_NAME)

    def has_fresh_answers(self, number: int) -> bool:
        """Whether the policy after a round was evaluated, and so also trained."""
        return self._is_finished(number, SAMPLES_NAME)

    def has_checkpoint(self, number: int) -> bool:
        """Whether the training of a round has committed a checkpoint."""
        return self._is_finished(number, TRAINING_NAME)

    def _is_finished(self, number: int, name: str) -> bool:
        return str(self.folder.of_round(number) / name) in self._finished

    # Files and what is in them.

    def policy(self, number: int) -> Path:
        """The checkpoint of the policy after a round; 0 is the one that the job started from."""
        if number == 0:
            return self.inputs.policy
        return newest_checkpoint(self.folder.of_round(number) / TRAINING_NAME)

    def candidates_path(self, number: int) -> Path:
        """The candidates of a round, scored and selected."""
        return self.folder.of_round(number) / CANDIDATES_NAME

    def fresh_answers_path(self, number: int) -> Path:
        """The evaluation answers of the policy after a round."""
        return self.folder.of_round(number) / SAMPLES_NAME

    def report_path(self, number: int | None = None) -> Path:
        """The report of a round, or of all rounds."""
        folder = self.folder.path if number is None else self.folder.of_round(number)
        return folder / REPORT_TEXT

    def read_candidates(self, number: int) -> list[Candidate]:
        """The candidates of a round, scored and selected."""
        return read_candidates(self.candidates_path(number))

    def read_fresh_answers(self, number: int) -> list[Candidate]:
        """The evaluation answers of the policy after a round."""
        return read_candidates(self.fresh_answers_path(number))

    def require_fresh_answers_of_policy(self, number: int) -> None:
        """Raises unless the stored evaluation of round `number` is of the policy that is there."""
        require_answers_of(self.fresh_answers_path(number), self.policy(number))

    def sampling(self, number: int) -> SamplingConfig:
        """How the candidates of a round are drawn; 0 is for fresh answers, after every round."""
        seed = prompt_seed(self.config.seed, number)
        return self.config.candidates.sampling(seed=seed, stop_ids=self.inputs.stop_ids)


def require_answers_of(path: Path, policy: Path) -> None:
    """Refuses stored answers that another policy drew.

    Raises:
        ConfigError: The checkpoint was replaced after the answers were drawn.
    """
    if read_metadata(path).get(POLICY_KEY) != weights_identity(policy):
        raise ConfigError(
            f"{path} holds answers of another policy than {policy}: the checkpoint was retrained "
            f"or replaced. Restore it, or remove {path.parent} and all later rounds."
        )
