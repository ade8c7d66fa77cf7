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

from megatron_chimed import engine
from megatron_chimed.checkpoint.reader import newest_checkpoint
from megatron_chimed.config.run_config import RunConfig, settings_called
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation import Session, plan_session, prompt_seed
from megatron_chimed.observe.console import make_console, print_table
from megatron_chimed.rejection.candidate import (
    Candidate,
    read_candidates,
    read_metadata,
)
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.crew import Crew, inference_setting
from megatron_chimed.rejection.drawing import (
    Draw,
    draw_answers,
    given_answers,
    log_probs_of,
)
from megatron_chimed.rejection.folder import (
    CANDIDATES_NAME,
    DATA_NAME,
    POLICY_KEY,
    SAMPLES_NAME,
    SELECTION_KEY,
    TRAINING_NAME,
    RoundsFolder,
    identities_of,
    keep_candidates,
    require_same,
    selection_text,
)
from megatron_chimed.rejection.judging import score_candidates
from megatron_chimed.rejection.materials import (
    Materials,
    PromptSet,
    weights_identity,
)
from megatron_chimed.rejection.report.report import (
    NUMBERS,
    TEXT,
    read_round_report,
    write_overview,
    write_round_report,
)
from megatron_chimed.rejection.report.summary import report_round
from megatron_chimed.rejection.report.tables import terminal_table
from megatron_chimed.rejection.round_training import (
    SELECTED_NAME,
    check_data,
    end_if_asked,
    of_any_length,
    preprocess_selected,
    round_run_config,
    select_learnable,
    training_setting,
    with_steps,
    write_selected,
)
from megatron_chimed.rejection.selection import (
    SELECTED,
    count_decisions,
    describe_decisions,
)
from megatron_chimed.run import open_inputs, print_plan, train_stage


def run_rounds(config: RejectionConfig, materials: Materials, crew: Crew) -> int:
    """Runs what is not done of all rounds, as one rank of the job.

    Returns:
        Exit code 0; every failure raises.
    """
    with contextlib.ExitStack() as held:
        Rounds(config, materials, crew, held).work()
    return 0


def check_layouts(config: RejectionConfig, materials: Materials, world_size: int) -> RunConfig:
    """Finds out before anything is drawn whether the ranks can draw, score and train.

    Returns:
        The configuration of a round's training, without its data.

    Raises:
        ConfigError: They cannot, or data to train or validate on are missing or do not fit.
        DataError: They are damaged.
    """
    with settings_called(inference_setting):
        plan_session(config.inference.parallel(), materials.model, world_size)
    training = round_run_config(
        config, materials, load=str(materials.policy), train="selected", output="round"
    )
    with settings_called(training_setting):
        training.plan_layout(world_size)
        check_data(training, materials)
    return training


def plan_rounds(config: RejectionConfig, materials: Materials, world_size: int) -> int:
    """Checks all that a job checks before it starts, and prints what its training would take.

    Returns:
        Exit code 0; every fault raises.
    """
    training = check_layouts(config, materials, world_size)
    drawing = plan_session(config.inference.parallel(), materials.model, world_size)
    console = make_console()
    console.print(f"drawing and scoring on {drawing.describe()}; training of a round:")
    training = of_any_length(training, config.output_dir)
    print_plan(training, training.plan_layout(world_size), console)
    console.print("configuration, models, prompts and layouts are valid; nothing was drawn")
    return 0


class Rounds:
    """A job of rejection sampling on this rank; what it makes is in its folder, not in here.

    Args:
        config: What to do.
        materials: From `open_materials`.
        crew: The processes.
        held: Keeps the lock of the job's folder.
    """

    def __init__(
        self,
        config: RejectionConfig,
        materials: Materials,
        crew: Crew,
        held: contextlib.ExitStack,
    ) -> None:
        self._config, self._materials, self._crew = config, materials, crew
        self._training = check_layouts(config, materials, crew.size)
        self._folder = RoundsFolder(Path(config.output_dir))
        identities = identities_of(config, materials)
        with crew.meeting() as agreement:
            require_same(agreement.on_all_ranks(lambda: identities))
            agreement.on_rank_0(lambda: self._folder.claim(config, identities, held))
            self._done = frozenset(agreement.on_rank_0(self._folder.find_done))

    def work(self) -> None:
        """All rounds; those with a report are done."""
        for number in range(1, self._config.rounds + 1):
            folder = self._folder.of_round(number)
            if str(folder / NUMBERS) not in self._done:
                self._work_round(number)
            self._crew.say(f"round {number} is done: {folder / TEXT}")
        with self._crew.meeting() as agreement:
            agreement.on_rank_0(lambda: self._show(self._config.rounds))
        self._crew.say(f"done: {self._folder.path / TEXT} says what the rounds did")

    def _work_round(self, number: int) -> None:
        policy = self._policy(number - 1)
        self._draw_samples(number - 1, policy)
        self._draw_candidates(number, policy)
        self._train(number, policy)
        self._draw_samples(number, self._policy(number))
        with self._crew.meeting() as agreement:
            agreement.on_rank_0(lambda: self._report(number))
            agreement.on_rank_0(lambda: self._show(number))

    def _draw_candidates(self, number: int, policy: Path) -> None:
        """Writes all candidates of a round with their scores and what became of them."""
        path = self._folder.of_round(number) / CANDIDATES_NAME
        if str(path) in self._done:
            with self._crew.meeting() as agreement:
                counts = agreement.on_rank_0(lambda: self._decide_again(number, policy))
        else:
            counts = self._draw_and_decide(number, policy, path)
        if not counts.get(SELECTED):
            raise DataError(
                f"round {number} selected none of {sum(counts.values())} candidates, so there is "
                f"nothing to learn: {describe_decisions(counts)}. Look at {path}, loosen "
                "`selection`, and start the same command again: nothing is drawn anew."
            )

    def _draw_and_decide(self, number: int, policy: Path, path: Path) -> dict[str, int]:
        """How many candidates have each decision."""
        per_prompt, prompts = self._config.candidates.per_prompt, self._materials.prompts
        given = given_answers(
            self._materials.tokenizer,
            prompts.prompts,
            self._materials.external,
            references=self._config.candidates.references,
        )
        self._crew.say(
            f"round {number}: {per_prompt} answers to each of {len(prompts.prompts)} prompts by "
            f"{policy}" + (f", {len(given)} answers by others" if given else "")
        )
        drawn: list[Candidate] = []
        if per_prompt:
            with self._crew.session(policy) as session:
                drawn = draw_answers(session, self._draw(policy, prompts, per_prompt, number, path))
        candidates = sorted([*drawn, *given], key=lambda c: (c.prompt, c.source, c.number))
        with self._judge(prompts, candidates, path) as (agreement, scored):
            return agreement.on_rank_0(lambda: self._decide(number, policy, scored))

    def _train(self, number: int, policy: Path) -> None:
        """Fine-tunes on what was selected; done when the samples of the new policy are there."""
        folder = self._folder.of_round(number)
        if str(folder / SAMPLES_NAME) in self._done:
            return
        config, materials = self._config, self._materials
        run = round_run_config(
            config,
            materials,
            load=str(materials.policy if config.start_from == "first" else policy),
            train=str(folder / DATA_NAME),
            output=str(folder / TRAINING_NAME),
        )
        with self._crew.meeting() as agreement:
            agreement.on_rank_0(lambda: self._preprocess(number, run.data.seq_length))
        with settings_called(training_setting):
            inputs = open_inputs(run, self._crew.size)
            run = with_steps(inputs.config, inputs.datasets, config.training)
            self._crew.say(f"round {number}: {run.training.train_steps} steps of fine-tuning")
            engine.release_memory()
            with self._crew.joined(inputs.layout) as ranks:
                end_if_asked(train_stage(run, inputs, ranks))

    def _draw_samples(self, number: int, policy: Path) -> None:
        """Writes fresh answers of the policy after a round, with scores and log-probabilities."""
        path = self._folder.of_round(number) / SAMPLES_NAME
        if str(path) in self._done:
            with self._crew.meeting() as agreement:
                agreement.on_rank_0(lambda: _require_policy(path, policy))
            return
        config, prompts = self._config, self._materials.held_out
        what = "held-out prompts" if self._materials.is_held_out else "prompts of training"
        self._crew.say(
            f"round {number}: fresh answers to {len(prompts.prompts)} {what} by {policy}"
        )
        with self._crew.session(policy) as session:
            draw = self._draw(policy, prompts, config.evaluation.per_prompt, 0, path)
            samples = draw_answers(session, draw)
            own = self._log_probs(session, prompts, samples)
        first = own
        if number:
            with self._crew.session(self._materials.policy) as session:
                first = self._log_probs(session, prompts, samples)
        samples = [
            dataclasses.replace(sample, log_prob=log_prob, first_log_prob=first_log_prob)
            for sample, log_prob, first_log_prob in zip(samples, own, first, strict=True)
        ]
        with self._judge(prompts, samples, path) as (agreement, scored):
            told = {POLICY_KEY: weights_identity(policy)}
            agreement.on_rank_0(lambda: keep_candidates(path, scored, told))

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
                seed=prompt_seed(config.seed, number), stop_ids=self._materials.stop_ids
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
    ) -> Iterator[tuple[Agreement, list[Candidate]]]:
        """Yields the ranks that decide together, and the candidates with scores."""
        judge = self._materials.reward_model
        self._crew.say(f"scoring {len(candidates):,} answers with {judge}")
        with self._crew.session(judge, "score") as session:
            scored = score_candidates(
                session,
                prompts.prompts,
                candidates,
                output=output,
                template=self._materials.template,
                batch_tokens=self._config.inference.batch_tokens,
            )
            yield session.ranks.agreement, scored

    # What the first rank does alone.

    def _decide(self, number: int, policy: Path, scored: Sequence[Candidate]) -> dict[str, int]:
        """Selects, writes the candidates, and tells how many have each decision."""
        selection = self._config.selection
        decided = select_learnable(
            scored,
            selection,
            self._materials.prompts.prompts,
            tokenizer=self._materials.tokenizer,
            template=self._materials.template,
            seq_length=self._training.data.seq_length,
        )
        told = {POLICY_KEY: weights_identity(policy), SELECTION_KEY: selection_text(selection)}
        keep_candidates(self._folder.of_round(number) / CANDIDATES_NAME, decided, told)
        counts = count_decisions(decided)
        self._crew.say(f"round {number}: {len(decided):,} candidates: {describe_decisions(counts)}")
        return counts

    def _decide_again(self, number: int, policy: Path) -> dict[str, int]:
        """The same of the candidates of an earlier start, as the configuration says now."""
        folder = self._folder.of_round(number)
        path = folder / CANDIDATES_NAME
        _require_policy(path, policy)
        candidates = read_candidates(path)
        if read_metadata(path).get(SELECTION_KEY) == selection_text(self._config.selection):
            return count_decisions(candidates)
        if str(folder / TRAINING_NAME) in self._done:
            raise ConfigError(
                f"{path} was decided on with another `selection`, and {folder / TRAINING_NAME} has "
                "been trained on what that selected. Set it back until the round is done, or "
                f"remove {folder / TRAINING_NAME} to train this round again."
            )
        self._crew.say(f"round {number}: `selection` has changed, so it decides anew")
        return self._decide(number, policy, candidates)

    def _preprocess(self, number: int, seq_length: int) -> None:
        first = 1 if self._config.train_on == "all" else number
        folders = [self._folder.of_round(n) for n in range(first, number + 1)]
        selected = [folder / SELECTED_NAME for folder in folders]
        candidates = read_candidates(folders[-1] / CANDIDATES_NAME)
        write_selected(selected[-1], self._materials.prompts.prompts, candidates)
        preprocess_selected(
            selected,
            folders[-1] / DATA_NAME,
            tokenizer=self._materials.policy / "tokenizer",
            template=self._materials.template,
            seq_length=seq_length,
        )

    def _report(self, number: int) -> None:
        folder = self._folder.of_round(number)
        answers = {
            "candidates": read_candidates(folder / CANDIDATES_NAME),
            "before": read_candidates(self._folder.of_round(number - 1) / SAMPLES_NAME),
            "after": read_candidates(folder / SAMPLES_NAME),
        }
        report = report_round(
            number,
            **answers,
            skipped=self._materials.skipped(),
            held_out=self._materials.is_held_out,
        )
        write_round_report(folder, report, **answers)
        print_table(terminal_table(report), make_console())

    def _show(self, number: int) -> None:
        """Makes the folder show the policy after a round, and all reports up to it."""
        _require_policy(self._folder.of_round(number) / SAMPLES_NAME, self._policy(number))
        self._folder.show_policy(number)
        rounds = range(1, number + 1)
        reports = [read_round_report(self._folder.of_round(n)) for n in rounds]
        write_overview(self._folder.path, reports)


def _require_policy(path: Path, policy: Path) -> None:
    """Refuses answers of another policy than the one that lies there now.

    Raises:
        ConfigError: They are.
    """
    if read_metadata(path).get(POLICY_KEY) != weights_identity(policy):
        raise ConfigError(
            f"{path} holds answers of another policy than {policy}: that was made again, or "
            f"replaced. Put it back, or remove {path.parent} and all later rounds."
        )
