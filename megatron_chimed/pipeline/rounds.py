"""Rejection sampling from its configuration, on this rank: draw, score, select, fine-tune, look.

Read `Rounds.work` for the order of things. Each part is a job of its own that all ranks join and
leave: the policy, the reward model and the training have their own layouts, and of each only the
weights that it needs are in memory. A part is done when its file has its name; one that was killed
goes on from what it kept beside it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from megatron_chimed import engine
from megatron_chimed.checkpoint.control import Control
from megatron_chimed.checkpoint.reader import newest_checkpoint
from megatron_chimed.config import RunConfig
from megatron_chimed.errors import DataError
from megatron_chimed.generation import Session, open_session, plan_session, prompt_seed
from megatron_chimed.pipeline.round_training import (
    SELECTED_NAME,
    preprocess_selected,
    round_run_config,
    select_learnable,
    with_steps,
    write_selected,
)
from megatron_chimed.pipeline.rounds_folder import (
    CANDIDATES_NAME,
    DATA_NAME,
    SAMPLES_NAME,
    TRAINING_NAME,
    RoundsFolder,
    identities_of,
    keep_candidates,
)
from megatron_chimed.pipeline.stage import open_inputs, print_memory_plan, train_stage
from megatron_chimed.training.rejection.candidate import Candidate, read_candidates
from megatron_chimed.training.rejection.config import RejectionConfig
from megatron_chimed.training.rejection.drawing import (
    Draw,
    draw_answers,
    given_answers,
    log_probs_of,
)
from megatron_chimed.training.rejection.judging import score_candidates
from megatron_chimed.training.rejection.materials import Materials, PromptSet
from megatron_chimed.training.rejection.report import (
    NUMBERS,
    TEXT,
    read_round_report,
    write_overview,
    write_round_report,
)
from megatron_chimed.training.rejection.selection import SELECTED, count_decisions
from megatron_chimed.training.rejection.summary import RoundReport, report_round
from megatron_chimed.training.rejection.tables import terminal_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int


def run_rounds(config: RejectionConfig, materials: Materials, world: World) -> int:
    """Runs what is not done of all rounds, as one rank of the job.

    Returns:
        Exit code 0; every failure raises.
    """
    with contextlib.ExitStack() as held:
        Rounds(config, materials, world, held).work()
    return 0


def check_layouts(config: RejectionConfig, materials: Materials, world_size: int) -> RunConfig:
    """Finds out before anything is drawn whether the ranks can draw, score and train.

    Returns:
        The configuration of a round's training, without its data.

    Raises:
        ConfigError: They cannot.
    """
    plan_session(config.inference.parallel(), materials.model, world_size)
    training = round_run_config(
        config, materials, load=str(materials.policy), train=["selected"], output="round"
    )
    training.plan_layout(world_size)
    return training


def plan_rounds(config: RejectionConfig, materials: Materials, world_size: int) -> int:
    """Checks all that a job checks before it starts, and prints what its training would take.

    Returns:
        Exit code 0; every fault raises.
    """
    training = check_layouts(config, materials, world_size)
    drawing = plan_session(config.inference.parallel(), materials.model, world_size)
    console = Console()
    console.print(f"drawing and scoring on {drawing.describe()}; training of a round:")
    print_memory_plan(training, training.plan_layout(world_size), console)
    console.print("configuration, models, prompts and layouts are valid; nothing was drawn")
    return 0


class Rounds:
    """A job of rejection sampling on this rank.

    Args:
        config: What to do.
        materials: From `open_materials`.
        world: This process among all.
        held: Keeps the lock of the job's folder.
    """

    def __init__(
        self,
        config: RejectionConfig,
        materials: Materials,
        world: World,
        held: contextlib.ExitStack,
    ) -> None:
        self._config, self._materials, self._world = config, materials, world
        self._training = check_layouts(config, materials, world.size)
        self._folder = RoundsFolder(Path(config.output_dir))
        self._stores = engine.meeting_places(rank=world.rank, world_size=world.size)
        with self._meeting() as control:
            control.on_first(lambda: self._claim(held))
            self._done = frozenset(control.on_first(self._folder.find_done))
        self._fresh: dict[int, list[Candidate]] = {}

    def work(self) -> None:
        """All rounds; those with a report are done."""
        reports: list[RoundReport] = []
        for number in range(1, self._config.rounds + 1):
            folder = self._folder.of_round(number)
            if str(folder / NUMBERS) in self._done:
                reports.append(read_round_report(folder))
                self._say(f"round {number} is done: {folder / TEXT}")
            else:
                self._work_round(number, reports)
        with self._meeting() as control:
            control.on_first(lambda: self._show(reports))
        self._say(f"done: {self._folder.path / TEXT} says what the rounds did")

    def _work_round(self, number: int, reports: list[RoundReport]) -> None:
        """One round; its report is added to `reports`, on the first rank."""
        policy = self._policy(number - 1)
        before = self._samples(number - 1)
        candidates = self._candidates(number, policy)
        self._train(number, policy, candidates)
        after = self._samples(number)
        with self._meeting() as control:
            control.on_first(
                lambda: reports.append(self._report(number, candidates, before, after))
            )
            control.on_first(lambda: self._show(reports))

    def _candidates(self, number: int, policy: Path) -> list[Candidate]:
        """All candidates of a round with their scores and what became of them."""
        path = self._folder.of_round(number) / CANDIDATES_NAME
        if str(path) in self._done:
            return read_candidates(path)
        config, prompts = self._config, self._materials.prompts
        given = given_answers(
            self._materials.tokenizer,
            prompts.prompts,
            self._materials.external,
            references=config.candidates.references,
        )
        self._say(
            f"round {number}: {config.candidates.per_prompt} answers to each of "
            f"{len(prompts.prompts)} prompts by {policy}"
            + (f", {len(given)} answers by others" if given else "")
        )
        drawn: list[Candidate] = []
        if config.candidates.per_prompt:
            with self._open(policy) as session:
                drawn = draw_answers(
                    session, self._draw(policy, prompts, config.candidates.per_prompt, number, path)
                )
        candidates = sorted([*drawn, *given], key=lambda c: (c.prompt, c.source, c.number))
        with self._judge(prompts, candidates, path) as (control, scored):
            decided = select_learnable(
                scored,
                config.selection,
                prompts.prompts,
                tokenizer=self._materials.tokenizer,
                template=self._materials.template,
                seq_length=self._training.data.seq_length,
            )
            told = ", ".join(f"{n:,} {name}" for name, n in count_decisions(decided).items())
            self._say(f"round {number}: {len(decided):,} candidates: {told}")
            control.on_first(lambda: keep_candidates(path, decided, number))
        return decided

    def _train(self, number: int, policy: Path, candidates: Sequence[Candidate]) -> None:
        """Fine-tunes on what was selected; done when the samples of the new policy are there."""
        folder = self._folder.of_round(number)
        if str(folder / SAMPLES_NAME) in self._done:
            return
        if not any(candidate.decision == SELECTED for candidate in candidates):
            raise DataError(
                f"round {number} selected none of {len(candidates)} candidates, so there is "
                f"nothing to learn: {count_decisions(candidates)}. Loosen `selection`, or look at "
                f"{folder / CANDIDATES_NAME}."
            )
        config, materials = self._config, self._materials
        prefixes = [folder / DATA_NAME]
        if config.train_on == "all":
            prefixes = [self._folder.of_round(n) / DATA_NAME for n in range(1, number + 1)]
        run = round_run_config(
            config,
            materials,
            load=str(materials.policy if config.start_from == "first" else policy),
            train=[str(prefix) for prefix in prefixes],
            output=str(folder / TRAINING_NAME),
        )
        with self._meeting() as control:
            control.on_first(lambda: self._preprocess(folder, candidates, run.data.seq_length))
        inputs = open_inputs(run, self._world.size)
        run = with_steps(run, inputs.datasets, config.training, len(prefixes))
        self._say(f"round {number}: {run.training.train_steps} steps of fine-tuning")
        world = self._world
        engine.release_memory()
        ranks = engine.join(
            inputs.layout, rank=world.rank, local_rank=world.local_rank, store=next(self._stores)
        )
        try:
            train_stage(run, inputs, ranks)
        finally:
            engine.leave()

    def _samples(self, number: int) -> list[Candidate]:
        """Fresh answers of the policy after a round; 0: before the first."""
        if number not in self._fresh:
            self._fresh[number] = self._draw_samples(number, self._policy(number))
        return self._fresh[number]

    def _draw_samples(self, number: int, policy: Path) -> list[Candidate]:
        """They, with scores and log-probabilities."""
        path = self._folder.of_round(number) / SAMPLES_NAME
        if str(path) in self._done:
            return read_candidates(path)
        config, prompts = self._config, self._materials.held_out
        held_out = "held-out prompts" if self._materials.is_held_out else "prompts of training"
        self._say(f"round {number}: fresh answers to {len(prompts.prompts)} {held_out} by {policy}")
        with self._open(policy) as session:
            draw = self._draw(policy, prompts, config.evaluation.per_prompt, 0, path)
            samples = draw_answers(session, draw)
            own = self._log_probs(session, prompts, samples)
        before = own
        if number:
            with self._open(self._materials.policy) as session:
                before = self._log_probs(session, prompts, samples)
        samples = [
            dataclasses.replace(sample, log_prob=log_prob, first_log_prob=first_log_prob)
            for sample, log_prob, first_log_prob in zip(samples, own, before, strict=True)
        ]
        with self._judge(prompts, samples, path) as (control, scored):
            control.on_first(lambda: keep_candidates(path, scored, number))
        return scored

    # What several parts need.

    def _policy(self, number: int) -> Path:
        """The checkpoint after a round."""
        if number == 0:
            return self._materials.policy
        return newest_checkpoint(self._folder.of_round(number) / TRAINING_NAME)

    def _draw(
        self, policy: Path, prompts: PromptSet, per_prompt: int, number: int, output: Path
    ) -> Draw:
        config = self._config
        return Draw(
            policy=policy,
            prompts=prompts,
            per_prompt=per_prompt,
            # Number 0 is for fresh answers: their seeds are the same after each round, and those of
            # no candidates.
            sampling=config.candidates.sampling(
                seed=prompt_seed(config.seed, number), eos_id=self._materials.tokenizer.eos_id
            ),
            max_batch=config.inference.max_batch,
            output=output,
        )

    def _log_probs(
        self, session: Session, prompts: PromptSet, samples: Sequence[Candidate]
    ) -> list[float]:
        tokens = self._config.inference.batch_tokens
        return log_probs_of(session, prompts, samples, batch_tokens=tokens)

    @contextlib.contextmanager
    def _judge(
        self, prompts: PromptSet, candidates: Sequence[Candidate], output: Path
    ) -> Iterator[tuple[Control, list[Candidate]]]:
        """Yields the candidates with scores, and the ranks that decide together."""
        self._say(f"scoring {len(candidates):,} answers with {self._materials.reward_model}")
        with self._open(self._materials.reward_model, head="score") as session:
            scored = score_candidates(
                session,
                prompts.prompts,
                candidates,
                output=output,
                template=self._materials.template,
                batch_tokens=self._config.inference.batch_tokens,
            )
            yield Control(session.ranks.control_group), scored

    def _open(self, checkpoint: Path, head: str = "lm"):
        inference, world = self._config.inference, self._world
        engine.release_memory()  # of the model before
        return open_session(
            checkpoint,
            inference.parallel(),
            head=head,
            precision=inference.precision,
            world=(world.rank, world.size, world.local_rank),
            store=next(self._stores),
        )

    @contextlib.contextmanager
    def _meeting(self) -> Iterator[Control]:
        """All ranks, without a model: for what the first does while the others wait."""
        layout = engine.plan_layout(
            engine.ParallelConfig(timeout_seconds=self._config.inference.timeout_seconds),
            world_size=self._world.size,
            sizes=engine.ModelSizes(
                num_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                ffn_hidden_size=1,
                seq_length=1,
            ),
        )
        world = self._world
        try:
            ranks = engine.join(
                layout, rank=world.rank, local_rank=world.local_rank, store=next(self._stores)
            )
            yield Control(ranks.control_group)
        finally:
            engine.leave()

    def _say(self, text: str) -> None:
        if self._world.rank == 0:
            print(text, flush=True)

    # What the first rank does alone.

    def _claim(self, held: contextlib.ExitStack) -> None:
        identities = identities_of(self._config, self._materials, self._training)
        self._folder.claim(self._config, identities, held)

    def _show(self, reports: Sequence[RoundReport]) -> None:
        self._folder.show_policy(len(reports))
        write_overview(self._folder.path, reports)

    def _preprocess(self, folder: Path, candidates: Sequence[Candidate], seq_length: int) -> None:
        selected = folder / SELECTED_NAME
        write_selected(selected, self._materials.prompts.prompts, candidates)
        preprocess_selected(
            selected,
            folder / DATA_NAME,
            tokenizer=self._materials.policy / "tokenizer",
            template=self._materials.template,
            seq_length=seq_length,
        )

    def _report(
        self,
        number: int,
        candidates: Sequence[Candidate],
        before: Sequence[Candidate],
        after: Sequence[Candidate],
    ) -> RoundReport:
        report = report_round(
            number,
            candidates=candidates,
            before=before,
            after=after,
            skipped=self._materials.skipped(),
            held_out=self._materials.is_held_out,
        )
        folder = self._folder.of_round(number)
        write_round_report(folder, report, candidates=candidates, before=before, after=after)
        Console().print(terminal_table(report))
        return report
