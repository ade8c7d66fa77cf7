r"""Evaluates models on tasks: figures with intervals, all prompts and answers, a report.

    python tools/evaluate.py --config eval.yaml
    python tools/launch.py --nproc-per-node 2 tools/evaluate.py --config eval.yaml \
        --inference.tensor_parallel_size 2
    python tools/evaluate.py --config eval.yaml --dry-run

A configuration lists models and tasks:

    output_dir: runs/evaluation
    models:
      - {name: base, checkpoint: runs/pretrain}
      - {name: sft, checkpoint: runs/sft}
    tasks:
      - {task: cmmlu, data: [cmmlu/test/*.csv], shots: [cmmlu/dev/*.csv]}
      - {task: my_task.yaml}

Data are your own files; nothing is downloaded. OUTPUT_DIR/report.html is the report, report.md has
its figures, evaluation.json the same for programs, and items/MODEL/MEASURE.jsonl each item with its
prompt, the model's response and its scores. Items that could not be evaluated are counted by
reason. Under `judges`, models or people compare and grade the answers once all models have given
theirs. The same command resumes after a kill. docs/evaluation.md explains tasks and figures.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.errors import run_command
from megatron_chimed.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from megatron_chimed.evaluation.measures import Measure


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, reads tasks and data, and measures."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = ConfigParser(EvaluationConfig, "tools/evaluate.py", __doc__)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read tasks and data, print what would be measured, do nothing",
    )
    flags = parser.parse_args(argv)
    config = parser.config(flags)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.engine import use_device, world_from_environment
    from megatron_chimed.evaluation.judging.results import judgements_markdown
    from megatron_chimed.evaluation.judging.running import check_judges, run_judges
    from megatron_chimed.evaluation.models.opening import check_models, source_identity
    from megatron_chimed.evaluation.report.writing import write_report
    from megatron_chimed.evaluation.results import markdown, summarize
    from megatron_chimed.evaluation.running import run_measures
    from megatron_chimed.evaluation.tasks.task_files import load_measures
    from megatron_chimed.generation.workers import Workers

    rank, world_size, local_rank = world_from_environment()
    measures = load_measures(config.tasks)
    for entry in config.models:
        source_identity(entry, config)
    check_judges(config, measures)
    if flags.dry_run:
        print(_describe(measures))
        return 0
    check_models(config, world_size)
    use_device(config.device, local_rank=local_rank)
    workers = Workers(rank=rank, size=world_size, local_rank=local_rank, inference=config.inference)
    items = run_measures(config, measures, workers)
    judgements = run_judges(config, measures, items, workers)
    if rank == 0:
        results = summarize(measures, items, config.seed)
        write_report(config, results, items, judgements)
        print(markdown(results) + judgements_markdown(judgements), flush=True)
    return 0


def _describe(measures: "Sequence[Measure]") -> str:
    lines = []
    for measure in measures:
        unusable = sum(entry.request is None for entry in measure.entries)
        bad = f", {unusable:,} of them unusable" if unusable else ""
        lines.append(f"{measure.title}: {len(measure.entries):,} items{bad}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
