"""The chat format of Mistral 7B v0.3: `[INST]` question `[/INST]` answer, end of sequence.

Where the published text has a space after a token, sentencepiece's dummy prefix makes it, so none
is written here. The system text stands in the last question, as in Mistral's own library. The
published chat template does so in prompts only, and leaves it out once an answer follows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_chimed.data.formats.example import Conversation, ToolStep, has_reasoning
from megatron_chimed.data.templates.family_template import (
    FamilyTemplate,
    json_text,
    parse_tools,
    tools_misfit,
)
from megatron_chimed.data.templates.template import Segment
from megatron_chimed.tokenizer import Tokenizer

ID_LENGTH = 9


@dataclass(frozen=True, kw_only=True)
class MistralTemplate(FamilyTemplate):
    """Mistral 7B v0.3."""

    FORMAT: ClassVar = "mistral"
    REQUIRED: ClassVar = ("[INST]", "[/INST]")
    OPTIONAL: ClassVar = (
        *("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    )
    STOPS: ClassVar = ()

    @property
    def needs_last_turn(self) -> bool:
        """The system text and the tools stand in the last question."""
        return True

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The end of sequence."""
        return (tokenizer.eos_id,)

    def misfit(self, conversation: Conversation) -> str | None:
        """It has no part for reasoning, nor for text beside calls, and needs their ids."""
        if has_reasoning(conversation):
            return (
                f"there is reasoning before an answer, for which template {self.name!r} has no "
                "part: leave it out with --drop-reasoning"
            )
        for step in (step for turn in conversation.turns for step in turn.steps):
            if step.text.strip():
                return f"template {self.name!r} writes no text beside calls of tools"
            if any(len(call.id) != ID_LENGTH or not call.id.isalnum() for call in step.calls):
                return (
                    f"template {self.name!r} needs an id of {ID_LENGTH} letters or digits for each "
                    "call of a tool"
                )
            if step.results and len(step.results) != len(step.calls):
                return f"{len(step.calls)} calls of tools have {len(step.results)} results"
        return tools_misfit(conversation) or _tool_form_misfit(conversation)

    def _turns(self, conversation: Conversation, *, is_prompt: bool) -> Iterator[list[Segment]]:
        last = len(conversation.turns) - 1
        tools = parse_tools(conversation.tools)
        segments = [Segment(control="bos")]
        for number, turn in enumerate(conversation.turns):
            is_last = number == last
            question = turn.question
            if is_last and conversation.system:
                question = f"{conversation.system}\n\n{question}"
            if is_last and tools:
                listed = ", ".join(map(_tool_text, tools))
                segments += self._around("[AVAILABLE_TOOLS]", f"[{listed}]")
            segments += self._around("[INST]", question)
            is_open = is_prompt and is_last
            for place, step in enumerate(turn.steps, start=1):
                is_answer = place == len(turn.steps) and not turn.answer and not is_open
                segments += self._calls(step, is_answer=is_answer)
            if not is_open and (turn.answer or not turn.steps):
                segments += [
                    Segment(turn.answer.strip(), "", turn.is_learned, "answer"),
                    Segment("", "eos", turn.is_learned, "end"),
                ]
            yield segments
            segments = []

    def _around(self, token: str, text: str) -> list[Segment]:
        return [*self._marked(token), Segment(text), *self._marked(f"[/{token[1:]}")]

    def _calls(self, step: ToolStep, *, is_answer: bool) -> list[Segment]:
        part, end = ("answer", "end") if is_answer else ("prompt", "prompt")
        calls = ", ".join(
            f'{{"name": {json_text(call.name)}, "arguments": {call.arguments}, "id": "{call.id}"}}'
            for call in step.calls
        )
        segments = [
            *self._marked("[TOOL_CALLS]", step.is_learned, part),
            Segment(f"[{calls}]", "", step.is_learned, part),
            Segment("", "eos", step.is_learned, end),
        ]
        for call, result in zip(step.calls, step.results, strict=False):
            text = f'{{"content": {result}, "call_id": "{call.id}"}}'
            segments += self._around("[TOOL_RESULTS]", text)
        return segments


def _tool_text(tool: Any) -> str:
    """A tool as the published template writes it: texts between quotes as they are."""
    fields = (
        f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {json_text(value)}'
        for key, value in tool["function"].items()
        if key != "return"
    )
    return f'{{"type": "function", "function": {{{", ".join(fields)}}}}}'


def _tool_form_misfit(conversation: Conversation) -> str | None:
    tools = parse_tools(conversation.tools)
    if all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools):
        return None
    return 'its tools are not of the form {"type": "function", "function": {...}}'
