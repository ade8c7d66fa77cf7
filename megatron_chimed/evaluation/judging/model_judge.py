"""Asks a model for verdicts; every call is kept, and a killed job resumes."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.evaluation.config import EvaluationConfig, JudgeEntry
from megatron_chimed.evaluation.figures import MeasuredItem
from megatron_chimed.evaluation.item_store import ItemStore, block_line
from megatron_chimed.evaluation.judging.calls import (
    NO_VERDICT,
    JudgeCall,
    Judged,
    identity_of_calls,
    read_verdict,
)
from megatron_chimed.evaluation.requests import AnswerRequest, EvaluatedModel, Refused, TaskPrompt
from megatron_chimed.generation.workers import Workers

JUDGEMENTS = "judgements"
BLOCK = 64
"""Calls that are asked together."""
SYSTEM = "You are a helpful assistant."
AGAIN = "上面没有符合要求的 JSON 对象。请只输出一个 JSON 对象，字段和取值按要求填写。"


def call_store(
    config: EvaluationConfig, judge: str, measure: str, identity: dict[str, Any]
) -> ItemStore:
    """Where the calls of a judge on a measure are kept."""
    return ItemStore(Path(config.output_dir), judge, measure, identity, room=JUDGEMENTS)


def calls_identity(
    judge: JudgeEntry, source: dict[str, Any], calls: Sequence[JudgeCall]
) -> dict[str, Any]:
    """All that verdicts depend on."""
    settings = {"attempts": judge.attempts, "max_new_tokens": judge.max_new_tokens}
    return {**source, **settings, "calls": identity_of_calls(calls)}


def ask_judge(
    model: EvaluatedModel,
    judge: JudgeEntry,
    calls: Sequence[JudgeCall],
    store: ItemStore,
    workers: Workers,
) -> None:
    """Asks all calls, from the first block that is not finished; every rank calls it."""
    kept = store.finished_blocks() if workers.rank == 0 else []
    skipped: int = workers.on_rank_0(lambda: len(kept))
    blocks = [calls[start : start + BLOCK] for start in range(0, len(calls), BLOCK)][skipped:]
    if workers.rank:
        for block in blocks:
            ask_calls(model, judge, block)
        return
    items = [item for block in kept for item in block]
    with store.writing() as journal:
        for block in blocks:
            asked = ask_calls(model, judge, block)
            journal.write(block_line(asked))
            items += asked
            print(f"  {len(items):,} of {len(calls):,}", flush=True)
    store.finish(items)


def ask_calls(
    model: EvaluatedModel, judge: JudgeEntry, calls: Sequence[JudgeCall]
) -> list[MeasuredItem]:
    """What becomes of calls; one whose answer has no verdict is asked again, some times."""
    raw: list[list[str]] = [[] for _ in calls]
    refused: dict[int, str] = {}
    verdicts: dict[int, dict[str, str]] = {}
    for _ in range(judge.attempts):
        todo = [i for i in range(len(calls)) if i not in verdicts and i not in refused]
        if not todo:
            break
        requests = [_request(calls[i], raw[i], judge.max_new_tokens) for i in todo]
        for i, answer in zip(todo, model.answers(requests), strict=True):
            if isinstance(answer, Refused):
                refused[i] = answer.reason
                continue
            raw[i].append(answer.text)
            verdict = read_verdict(calls[i], answer.text)
            if verdict is not None:
                verdicts[i] = verdict
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return [
        MeasuredItem(
            id=call.id,
            group=call.group,
            prompt=call.prompt,
            response={"texts": raw[i]},
            scores={},
            details={"verdict": verdicts.get(i), "blind_id": call.blind_id, "date": today},
            dropped=None if i in verdicts else refused.get(i, NO_VERDICT),
        )
        for i, call in enumerate(calls)
    ]


def read_judged(
    calls: Sequence[JudgeCall], items: Sequence[MeasuredItem]
) -> tuple[list[Judged], tuple[str, ...]]:
    """The verdicts of a finished store, and the first and the last day of its calls."""
    judged = [
        Judged(call=call, verdict=item.details["verdict"], problem=item.dropped)
        for call, item in zip(calls, items, strict=True)
    ]
    days = sorted({item.details["date"] for item in items})
    return judged, tuple(dict.fromkeys((days[0], days[-1]))) if days else ()


def _request(call: JudgeCall, earlier: Sequence[str], max_new_tokens: int) -> AnswerRequest:
    """The call, or after an answer without verdict that answer and a reminder of the form."""
    history, question = (), call.prompt
    if earlier:  # greedy judges say the same to the same
        history, question = ((call.prompt, earlier[-1]),), AGAIN
    prompt = TaskPrompt(question=question, history=history, is_chat=True, system=SYSTEM)
    return AnswerRequest(prompt=prompt, max_new_tokens=max_new_tokens)
