r"""Rejection sampling: the policy answers, a reward model scores, training learns the best answers.

    python tools/rejection_sample.py --config rejection.yaml
    python tools/launch.py --nproc-per-node 8 --run-folder runs/rejection \
        tools/rejection_sample.py --config rejection.yaml --output-dir runs/rejection \
        --inference.tensor_parallel_size 8 --rounds 3
    python tools/rejection_sample.py --config rejection.yaml --dry-run

Each round samples answers to the prompts with the current policy, on its shards, scores them with
the reward model, selects some, fine-tunes on those, and compares fresh answers to held-out prompts
with those of the round before. OUTPUT_DIR/round_NN/candidates.parquet keeps every answer with its
score, its seed and whether it was selected; OUTPUT_DIR/report.md summarizes the rounds; OUTPUT_DIR
itself is the run folder of the last policy. The same command resumes after a kill; no finished
answer is lost, and Ctrl-C during training saves the current step. docs/rejection_sampling.md
explains the selection and the report.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_chimed.command_line import add_planning_flags, check_planning_flags
from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.errors import run_command
from megatron_chimed.rejection.config import RejectionConfig

if TYPE_CHECKING:
    from megatron_chimed.rejection.inputs import RejectionInputs


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, opens what is needed, and runs the rounds."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = ConfigParser(RejectionConfig, "tools/rejection_sample.py", __doc__)
    add_planning_flags(
        parser, "check configuration, models and prompts, print what would be sampled, do nothing"
    )
    flags = parser.parse_args(argv)
    check_planning_flags(flags)
    config = parser.config(flags)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.config.missing import refuse_missing
    from megatron_chimed.engine import world_from_environment
    from megatron_chimed.generation.workers import Workers
    from megatron_chimed.rejection.dry_run import missing_inputs, plan_rounds
    from megatron_chimed.rejection.inputs import open_rejection_inputs
    from megatron_chimed.rejection.rounds import run_rounds

    rank, world_size, local_rank = world_from_environment()
    if flags.dry_run:
        what = "the models' sizes decide what drawing and training take"
        refuse_missing(missing_inputs(config), what)
    workers = Workers(
        rank=rank,
        size=world_size,
        local_rank=local_rank,
        inference=config.inference,
        settings={"--max-new-tokens": "--candidates.max_new_tokens"},
    )
    if flags.dry_run:
        inputs = open_rejection_inputs(config)
    else:
        inputs = workers.agreement.together(lambda: open_rejection_inputs(config))
    if rank == 0:
        print(_describe(config, inputs), flush=True)
    if flags.dry_run:
        return plan_rounds(config, inputs, flags.world_size or world_size)
    return run_rounds(config, inputs, workers)


def _describe(config: RejectionConfig, inputs: "RejectionInputs") -> str:
    """What the job would do, in a few lines."""
    candidates, prompts = config.candidates, inputs.prompts.prompts
    held_out = "held-out prompt" if inputs.is_held_out else "prompt of training (none held out)"
    lines = [
        f"policy {inputs.policy}, reward model {inputs.reward_model}, template "
        f"{inputs.template.name}",
        f"rounds: {config.rounds}; answers a round: {candidates.per_prompt * len(prompts):,} "
        f"({candidates.per_prompt} x {len(prompts):,} prompts), of at most "
        f"{candidates.max_new_tokens} tokens; by others: {len(inputs.external):,}",
        f"reports: fresh answers to each {held_out}: {config.evaluation.per_prompt} x "
        f"{len(inputs.held_out.prompts):,}",
    ]
    for part, prompts in (("train", inputs.prompts), ("held_out", inputs.held_out)):
        if prompts.skipped:
            lines.append(
                f"skipped: {len(prompts.skipped)} of prompts.{part} leave no room for an answer of "
                f"{candidates.max_new_tokens} tokens, first {', '.join(prompts.skipped[:5])}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
