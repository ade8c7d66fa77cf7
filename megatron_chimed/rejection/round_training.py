"""The training step of a round: SFT data of the selected answers, and the fine-tuning on them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_chimed import engine, files
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.templates import ALL_TEMPLATES, Template
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.planning.out_of_memory import explaining_out_of_memory
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.candidate_scoring import conversation_with
from megatron_chimed.rejection.job import RejectionJob
from megatron_chimed.rejection.job_folder import DATA_NAME, SELECTED_NAME, TRAINING_NAME
from megatron_chimed.rejection.round_config import round_run_config, training_setting, with_steps
from megatron_chimed.rejection.selection_rules import SELECTED
from megatron_chimed.run import train_stage
from megatron_chimed.training.loop import Outcome
from megatron_chimed.training.preemption import stopped_on_request
from megatron_chimed.training.start_agreement import open_together

TEMPLATE_NAME = "template.yaml"


def train_policy(job: RejectionJob, number: int) -> None:
    """Fine-tunes on the selected answers, resuming from the newest checkpoint; all ranks call it.

    It is finished once the new policy's fresh answers are there.
    """
    if job.has_fresh_answers(number):
        return
    config, inputs, folder = job.config, job.inputs, job.folder.of_round(number)
    start = inputs.policy if config.start_from == "first" else job.policy(number - 1)
    run = round_run_config(
        config,
        inputs,
        load=str(start),
        train=str(folder / DATA_NAME),
        output=str(folder / TRAINING_NAME),
    )
    job.workers.on_rank_0(lambda: _write_data(job, number, run.data.seq_length))
    with settings_called(training_setting):
        opened = open_together(run, job.workers.agreement)
        run = with_steps(opened.config, opened.datasets, config.training)
        job.workers.print(f"round {number}: {run.training.train_steps} steps of fine-tuning")
        engine.release_memory()
        layout = opened.layout
        with explaining_out_of_memory(run, layout), job.workers.join(layout) as ranks:
            _raise_if_stopped(train_stage(run, opened, ranks))


def _raise_if_stopped(outcome: Outcome) -> None:
    """Ends the job if training was asked to stop, even in its last step.

    Raises:
        InterruptError: By Ctrl-C.
        ParallelError: By SIGTERM.
    """
    if outcome.stop_signal is not None:
        raise stopped_on_request(outcome.stop_signal, outcome.steps, outcome.checkpoint)


def _write_data(job: RejectionJob, number: int, seq_length: int) -> None:
    """Writes this round's selected answers, and SFT data of all that the round trains on."""
    first = 1 if job.config.train_on == "all" else number
    folders = [job.folder.of_round(n) for n in range(first, number + 1)]
    selected = [folder / SELECTED_NAME for folder in folders]
    write_selected(selected[-1], job.inputs.prompts.prompts, job.read_candidates(number))
    _preprocess_selected(
        selected,
        folders[-1] / DATA_NAME,
        tokenizer=job.inputs.policy / "tokenizer",
        template=job.inputs.template,
        seq_length=seq_length,
    )


def write_selected(path: Path, prompts: Sequence[Prompt], candidates: Iterable[Candidate]) -> None:
    """Writes the selected answers as conversations (format `sharegpt`), all or nothing."""
    with files.atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for candidate in candidates:
            if candidate.decision == SELECTED:
                row = _row(prompts[candidate.prompt], candidate)
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _preprocess_selected(
    paths: Sequence[Path], prefix: Path, *, tokenizer: Path, template: Template, seq_length: int
) -> None:
    """Makes SFT data of selected answers; only the last answer of a conversation is trained on.

    Raises:
        ChimedError: As of `preprocess`.
    """
    config = PreprocessConfig(
        inputs=tuple(map(str, paths)),
        tokenizer=str(tokenizer),
        output_prefix=str(prefix),
        format="sharegpt",
        stage="sft",
        template=_template_name(template, prefix.parent),
        targets="last",
        seq_length=seq_length,
        overwrite=True,
    )
    preprocess(config, say=print)


def _template_name(template: Template, folder: Path) -> str:
    """A name for `load_template`: a built-in template, or a file that is written to `folder`."""
    named = ALL_TEMPLATES.get(template.name)
    if named is not None and named.identity == template.identity:
        return template.name
    path = folder / TEMPLATE_NAME
    files.write_text(path, yaml.safe_dump(template.fields(), allow_unicode=True, sort_keys=False))
    return str(path)


def _row(prompt: Prompt, candidate: Candidate) -> dict[str, Any]:
    conversation = conversation_with(prompt, candidate.text)
    messages = [
        {"from": speaker, "value": text}
        for turn in conversation.turns
        for speaker, text in (("human", turn.question), ("gpt", turn.answer))
    ]
    row: dict[str, Any] = {"id": prompt.id, "source": candidate.source, "reward": candidate.score}
    if conversation.system:
        row["system"] = conversation.system
    return row | {"conversations": messages}
