"""Questions and answers as a judge reads them."""

from typing import Any

from megatron_chimed.evaluation.measures import Measure, prompt_text
from megatron_chimed.evaluation.requests import AnswerRequest, DialogueRequest
from megatron_chimed.evaluation.scores.answer_text import without_reasoning

NOTHING = "（没有回答）"


def has_answers(measure: Measure) -> bool:
    """Whether models answer a measure in their own words."""
    kinds = {type(entry.request) for entry in measure.entries if entry.request is not None}
    return bool(kinds) and kinds <= {AnswerRequest, DialogueRequest}


def question_text(request: AnswerRequest | DialogueRequest) -> str:
    """What was asked, without shots; a dialogue's questions are among its answers."""
    if isinstance(request, DialogueRequest):
        return "\n".join(f"user: {each.prompt.question}" for each in request.questions)
    prompt = request.prompt
    if prompt.is_chat and not prompt.history and not prompt.system and not prompt.head:
        return prompt.question
    return prompt_text(prompt, 0)


def answer_text(request: AnswerRequest | DialogueRequest, response: Any) -> str:
    """What a model answered, from a stored response, without its reasoning."""
    if isinstance(request, DialogueRequest):
        lines = []
        for asked, answer in zip(request.questions, response["answers"], strict=True):
            lines += [f"user: {asked.prompt.question}", f"assistant: {_spoken(answer)}"]
        return "\n".join(lines)
    return _spoken(response)


def _spoken(answer: Any) -> str:
    return without_reasoning(answer["text"]).strip() or NOTHING
