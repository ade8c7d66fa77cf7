"""The pass of all judges over the stored answers, and how far judges agree."""

import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_chimed.errors import ConfigError, closest
from megatron_chimed.evaluation.aggregates import BOOTSTRAP
from megatron_chimed.evaluation.config import EvaluationConfig, JudgeEntry
from megatron_chimed.evaluation.figures import Figure, Interval
from megatron_chimed.evaluation.item_store import ItemStore
from megatron_chimed.evaluation.judging import comparing, grading
from megatron_chimed.evaluation.judging.calls import JudgeCall, Judged
from megatron_chimed.evaluation.judging.model_judge import (
    ask_judge,
    call_store,
    calls_identity,
    read_judged,
)
from megatron_chimed.evaluation.judging.results import JudgementResult
from megatron_chimed.evaluation.judging.rubric_task import RubricMeasure
from megatron_chimed.evaluation.judging.sheets import read_sheet, write_sheet
from megatron_chimed.evaluation.judging.texts import has_answers
from megatron_chimed.evaluation.measures import Measure
from megatron_chimed.evaluation.models.opening import open_model, source_identity
from megatron_chimed.evaluation.results import Items
from megatron_chimed.evaluation.scores.statistics import bootstrap_statistic, cohen_kappa
from megatron_chimed.evaluation.tasks.open_qa import OpenQAMeasure
from megatron_chimed.evaluation.tasks.safety import SafetyMeasure
from megatron_chimed.generation.workers import Workers

_OPEN = (OpenQAMeasure, SafetyMeasure, RubricMeasure)
Labels = Mapping[tuple[str, str], str]
"""By what was judged and the aspect, for agreement."""


@dataclass(frozen=True, kw_only=True)
class JudgingJob:
    """One judge on one measure."""

    judge: JudgeEntry
    measure: Measure
    pairs: tuple[comparing.Pair, ...]
    calls: tuple[JudgeCall, ...]


def check_judges(config: EvaluationConfig, measures: Sequence[Measure]) -> None:
    """Checks which measures are judged, before any model answers.

    Raises:
        ConfigError: A judge names a measure that is not there or has no answers, has nothing to
            judge, or its source cannot be used.
    """
    for judge in config.judges:
        _judged_measures(judge, measures, len(config.models))
        if not judge.people:
            source_identity(judge, config)


def run_judges(
    config: EvaluationConfig, measures: Sequence[Measure], items: Items, workers: Workers
) -> list[JudgementResult]:
    """Asks every judge; every rank calls it.

    Args:
        config: With judges.
        measures: All.
        items: From `run_measures`.
        workers: Of the evaluation.

    Returns:
        The results on rank 0; empty on other ranks.

    Raises:
        ConfigError: The output folder holds verdicts on other answers or of other judges.
        DataError: A sheet of people cannot be read.
        ChimedError: A judge cannot be opened, or fails.
    """
    if workers.rank:  # rank 0 has them in memory
        items = {
            model.name: {
                measure.name: ItemStore(
                    Path(config.output_dir), model.name, measure.name, {}
                ).read()
                for measure in measures
            }
            for model in config.models
        }
    results, labels = [], []
    for judge in config.judges:
        jobs = [
            _job(judge, measure, items, config.seed)
            for measure in _judged_measures(judge, measures, len(config.models))
        ]
        given = _people(jobs, workers) if judge.people else _model(jobs, config, workers)
        for job, (judged, dates) in zip(jobs, given, strict=True):
            if workers.rank:
                continue
            results.append(_result(job, judged, dates, items, config.seed))
            labels.append(_labels(job, judged))
    return _with_agreement(results, labels, config.seed)


def _judged_measures(
    judge: JudgeEntry, measures: Sequence[Measure], num_models: int
) -> list[Measure]:
    usable = {
        measure.name: measure
        for measure in measures
        if has_answers(measure) and (num_models > 1 or isinstance(measure, RubricMeasure))
    }
    for name in judge.measures:
        if name not in usable:
            raise ConfigError(
                f"{judge.named}: {name!r} is no measure to judge{closest(name, usable)}. "
                "Name measures whose answers are texts (comparing needs two models or more): "
                f"{', '.join(usable) or 'here are none'}."
            )
    opened = [name for name, measure in usable.items() if isinstance(measure, _OPEN)]
    if not judge.measures and not opened:
        raise ConfigError(
            f"{judge.named} has nothing to judge: no task is open_qa, safety or rubric, or "
            "there is one model and no rubric. Name `measures`, or add a model or task."
        )
    return [usable[name] for name in (judge.measures or opened)]


def _job(judge: JudgeEntry, measure: Measure, items: Items, seed: int) -> JudgingJob:
    if isinstance(measure, RubricMeasure):
        calls = grading.grading_calls(measure, items)
        return JudgingJob(judge=judge, measure=measure, pairs=(), calls=tuple(calls))
    pairs = comparing.pairs_of(measure, items, most=judge.max_pairs, order_seed=seed)
    calls = comparing.pair_calls(pairs, judge, seed)
    return JudgingJob(judge=judge, measure=measure, pairs=tuple(pairs), calls=tuple(calls))


def _model(
    jobs: Sequence[JudgingJob], config: EvaluationConfig, workers: Workers
) -> list[tuple[list[Judged], tuple[str, ...]]]:
    """Verdicts of a model, which is opened only if some are missing."""
    judge = jobs[0].judge
    source = source_identity(judge, config)
    stores = [
        call_store(config, judge.name, job.measure.name, calls_identity(judge, source, job.calls))
        for job in jobs
    ]
    finished = workers.on_rank_0(lambda: [store.is_finished() for store in stores])
    with contextlib.ExitStack() as stack:
        model = None
        for job, store, is_finished in zip(jobs, stores, finished, strict=True):
            if not is_finished:
                model = model or stack.enter_context(open_model(judge, config, workers))
                workers.print(f"{judge.name}: {job.measure.title}: {len(job.calls):,} calls")
                ask_judge(model, judge, job.calls, store, workers)
    if workers.rank:
        return [([], ()) for _ in jobs]
    return [read_judged(job.calls, store.read()) for job, store in zip(jobs, stores, strict=True)]


def _people(
    jobs: Sequence[JudgingJob], workers: Workers
) -> list[tuple[list[Judged], tuple[str, ...]]]:
    """Verdicts of sheets; a sheet that is not there is written, empty."""
    if workers.rank:
        workers.on_rank_0(list)
        return [([], ()) for _ in jobs]

    def read() -> list[list[Judged]]:
        found = []
        for job in jobs:
            path = Path(str(job.judge.people)) / f"{job.measure.name}.tsv"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_sheet(path, job.calls)
                print(f"{path}: fill in the verdicts, then run this again", flush=True)
            found.append(read_sheet(path, job.calls))
        return found

    sheets: list[list[Judged]] = []
    workers.on_rank_0(lambda: sheets.extend(read()))
    return [(judged, ()) for judged in sheets]


def _result(
    job: JudgingJob, judged: Sequence[Judged], dates: tuple[str, ...], items: Items, seed: int
) -> JudgementResult:
    judge, measure = job.judge, job.measure
    if isinstance(measure, RubricMeasure):
        kind, prompt = "rubric", grading.PROMPT
        subjects = grading.grade_subjects(measure, items, judged, seed)
    else:
        kind, prompt = "pairwise", comparing.prompt_for(judge.aspects)
        groups = (*judge.aspects, comparing.PRIORITY)
        subjects = comparing.compare_subjects(job.pairs, judged, groups, seed)
    return JudgementResult(
        judge=judge.name,
        measure=measure.name,
        title=measure.title,
        kind=kind,
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
        dates=dates,
        num_calls=len(job.calls),
        subjects=tuple(subjects),
    )


def _labels(job: JudgingJob, judged: Sequence[Judged]) -> dict[tuple[str, str], str]:
    """What the judge decided: on pairs after both orders, or on criteria."""
    if isinstance(job.measure, RubricMeasure):
        return {
            (one.call.id, name): value
            for one in judged
            if one.verdict is not None
            for name, value in one.verdict.items()
        }
    found = comparing.combined(job.pairs, judged)
    return {
        ("|".join((pair.item, *pair.models)), name): value
        for pair, verdict in zip(job.pairs, found, strict=True)
        if isinstance(verdict, dict)
        for name, value in verdict.items()
    }


def _with_agreement(
    results: Sequence[JudgementResult], labels: Sequence[Labels], seed: int
) -> list[JudgementResult]:
    """The results, each with the kappa of its judge and each later one on the same measure."""
    agreement: dict[int, list[Figure]] = {place: [] for place in range(len(results))}
    for first, second in itertools.combinations(range(len(results)), 2):
        if results[first].measure != results[second].measure:
            continue
        both = [key for key in labels[first] if key in labels[second]]
        for name in dict.fromkeys(key[1] for key in both):
            keys = [key for key in both if key[1] == name]
            agreement[first].append(
                _kappa(
                    name,
                    results[second].judge,
                    [labels[first][key] for key in keys],
                    [labels[second][key] for key in keys],
                    seed,
                )
            )
    return [replace(one, agreement=tuple(agreement[i])) for i, one in enumerate(results)]


def _kappa(name: str, other: str, first: list[str], second: list[str], seed: int) -> Figure:
    limits = bootstrap_statistic(cohen_kappa, first, second, seed=seed)
    return Figure(
        metric=f"kappa, {name}",
        value=cohen_kappa(first, second),
        num_used=len(first),
        group=other,
        interval=limits and Interval(low=limits[0], high=limits[1], method=BOOTSTRAP),
        higher_is_better=True,
    )
