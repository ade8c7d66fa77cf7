"""The selection step of a round: which candidates are trained on; `selection` holds the rule."""

from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.data.templates import Dropped, Template, encode_conversations
from megatron_chimed.data.templates.encoding import EMPTY_ANSWER
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import Candidate, read_metadata
from megatron_chimed.rejection.candidate_scoring import conversation_with
from megatron_chimed.rejection.inputs import weights_identity
from megatron_chimed.rejection.job import RejectionJob, require_answers_of
from megatron_chimed.rejection.job_folder import (
    POLICY_KEY,
    SELECTION_KEY,
    TRAINING_NAME,
    finish_candidates,
    selection_text,
)
from megatron_chimed.rejection.selection_rules import (
    SELECTED,
    SelectionConfig,
    count_decisions,
    describe_decisions,
    select,
)
from megatron_chimed.tokenizer import Tokenizer


def select_candidates(job: RejectionJob, number: int, scored: Sequence[Candidate]) -> None:
    """Selects among the scored candidates of a round and writes all of them; all ranks call it.

    Raises:
        DataError: None is selected.
    """
    counts = job.workers.on_rank_0(lambda: _select_and_write(job, number, scored))
    _require_selected(counts, number, job.candidates_path(number))


def reselect_candidates(job: RejectionJob, number: int) -> None:
    """Applies the selection as it is configured now to the stored candidates of a round.

    Raises:
        ConfigError: The selection has changed, and the round was already trained on the earlier
            one; or the stored candidates are of another policy.
        DataError: None is selected.
    """
    counts = job.workers.on_rank_0(lambda: _reselect(job, number))
    _require_selected(counts, number, job.candidates_path(number))


def select_trainable(
    candidates: Sequence[Candidate],
    config: SelectionConfig,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Tokenizer,
    template: Template,
    seq_length: int,
) -> list[Candidate]:
    """Selects among the answers that, with their prompts, fit a training sample whole.

    A conversation that does not fit would train an earlier answer, or nothing.

    Returns:
        The candidates in their order with their decisions.
    """
    conversations = [conversation_with(prompts[item.prompt], item.text) for item in candidates]
    encoded = encode_conversations(tokenizer, template, conversations, seq_length=seq_length)
    untrainable = {
        index
        for index, item in enumerate(encoded)
        if (item.reason != EMPTY_ANSWER if isinstance(item, Dropped) else item.dropped_turns > 0)
    }
    return select(candidates, config, untrainable=untrainable)


def _select_and_write(
    job: RejectionJob, number: int, scored: Sequence[Candidate]
) -> dict[str, int]:
    """Returns how many candidates have each decision."""
    inputs, config = job.inputs, job.config.selection
    decided = select_trainable(
        scored,
        config,
        inputs.prompts.prompts,
        tokenizer=inputs.tokenizer,
        template=inputs.template,
        seq_length=job.training_seq_length,
    )
    policy = weights_identity(job.policy(number - 1))
    metadata = {POLICY_KEY: policy, SELECTION_KEY: selection_text(config)}
    finish_candidates(job.candidates_path(number), decided, metadata)
    counts = count_decisions(decided)
    job.workers.print(f"round {number}: {len(decided):,} candidates: {describe_decisions(counts)}")
    return counts


def _reselect(job: RejectionJob, number: int) -> dict[str, int]:
    path = job.candidates_path(number)
    require_answers_of(path, job.policy(number - 1))
    candidates = job.read_candidates(number)
    if read_metadata(path).get(SELECTION_KEY) == selection_text(job.config.selection):
        return count_decisions(candidates)
    if job.has_checkpoint(number):
        training = job.folder.of_round(number) / TRAINING_NAME
        raise ConfigError(
            f"{path} was selected with another `selection`, and {training} was trained on the "
            "answers selected then. Restore the setting until the round is done, or remove "
            f"{training} to train this round again."
        )
    job.workers.print(f"round {number}: `selection` has changed, selecting again")
    return _select_and_write(job, number, candidates)


def _require_selected(counts: dict[str, int], number: int, path: Path) -> None:
    if not counts.get(SELECTED):
        raise DataError(
            f"round {number} selected none of {sum(counts.values())} candidates, so there is "
            f"nothing to train on: {describe_decisions(counts)}. Look at {path}, loosen "
            "`selection`, and start the same command again: the candidates are kept."
        )
