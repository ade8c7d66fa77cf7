"""ChatML as Qwen2.5 and Qwen3 write it: `<|im_start|>role`, a line break, the text, `<|im_end|>`.

The line break after `<|im_end|>` is never learned with answers: a server stops at the token before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from megatron_chimed.data.formats.example import (
    Conversation,
    ToolCall,
    ToolStep,
    Turn,
    has_reasoning,
)
from megatron_chimed.data.templates.family_template import (
    FamilyTemplate,
    json_text,
    parse_tools,
    tools_misfit,
)
from megatron_chimed.data.templates.template import Part, Segment
from megatron_chimed.tokenizer import Tokenizer

THINK_END = "</think>"
BEFORE_THOUGHT, AFTER_THOUGHT = "<think>\n", "\n</think>\n\n"
TOOLS_START = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True, kw_only=True)
class ChatmlTemplate(FamilyTemplate):
    """ChatML."""

    FORMAT: ClassVar = "chatml"
    REQUIRED: ClassVar = ("<|im_start|>", "<|im_end|>")
    OPTIONAL: ClassVar = (
        *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        *("<think>", THINK_END),
    )
    STOPS: ClassVar = ("<|im_end|>", "<|endoftext|>")

    default_system: str = ""
    """The system text of conversations without one."""

    thinking: Literal["none", "on", "off"] = "none"
    """`none`: reasoning has no part; `on`: it stands before the last answer, and a prompt leaves it
    to the model; `off`: a prompt ends with an empty one."""

    @property
    def needs_last_turn(self) -> bool:
        """Reasoning is written in the last turn only."""
        return self.thinking != "none"

    def unfit_reason(self, tokenizer: Tokenizer) -> str | None:
        """As of `FamilyTemplate`; a template with reasoning needs the tokens around it."""
        reason = super().unfit_reason(tokenizer)
        if reason is None and self.thinking != "none" and tokenizer.find(THINK_END) is None:
            return "it marks reasoning with <think>, which this tokenizer does not have"
        return reason

    def misfit(self, conversation: Conversation) -> str | None:
        """Reasoning fits only where thinking is on."""
        if self.thinking != "on" and has_reasoning(conversation):
            return (
                f"there is reasoning before an answer, for which template {self.name!r} has no "
                "part: use a template that thinks (qwen3), or leave it out with --drop-reasoning"
            )
        return tools_misfit(conversation)

    def _turns(self, conversation: Conversation, *, is_prompt: bool) -> Iterator[list[Segment]]:
        last = len(conversation.turns) - 1
        segments = self._system(conversation)
        for number, turn in enumerate(conversation.turns):
            is_last = number == last
            segments += self._message("user", [Segment(turn.question)])
            segments += self._steps(turn, is_last=is_last, is_prompt=is_prompt and is_last)
            if is_prompt and is_last:
                thought = BEFORE_THOUGHT + AFTER_THOUGHT if self.thinking == "off" else ""
                segments += self._marked(f"<|im_start|>assistant\n{thought}")
            elif turn.answer or not turn.steps:
                segments += self._assistant(turn, is_last=is_last, is_end=is_last, is_answer=True)
            yield segments
            segments = []

    def _system(self, conversation: Conversation) -> list[Segment]:
        text, tools = conversation.system or self.default_system, parse_tools(conversation.tools)
        if not text and not tools:
            return []
        content = [Segment(text)]
        if tools:
            content += self._marked(("\n\n" if text else "") + TOOLS_START)
            content += [Segment("".join(f"\n{json_text(tool)}" for tool in tools))]
            content += self._marked(TOOLS_END)
        return self._message("system", content)

    def _message(self, role: str, content: list[Segment]) -> list[Segment]:
        return [
            *self._marked(f"<|im_start|>{role}\n"),
            *content,
            *self._marked("<|im_end|>\n"),
        ]

    def _steps(self, turn: Turn, *, is_last: bool, is_prompt: bool) -> list[Segment]:
        """The calls of a turn and their results; the last calls are its answer if it has none."""
        segments = []
        for number, step in enumerate(turn.steps, start=1):
            is_answer = number == len(turn.steps) and not turn.answer and not is_prompt
            is_end = is_last and is_answer and not step.results
            segments += self._assistant(step, is_last=is_last, is_end=is_end, is_answer=is_answer)
            if step.results:
                segments += self._marked("<|im_start|>user")
                for result in step.results:
                    segments += self._marked("\n<tool_response>\n")
                    segments.append(Segment(result))
                    segments += self._marked("\n</tool_response>")
                segments += self._marked("<|im_end|>\n")
        return segments

    def _assistant(
        self, said: Turn | ToolStep, *, is_last: bool, is_end: bool, is_answer: bool
    ) -> list[Segment]:
        """A message of the assistant.

        Args:
            said: An answer, or calls of tools.
            is_last: Whether it stands after the last question, where reasoning is kept.
            is_end: Whether the conversation ends with it: then even no reasoning is written.
            is_answer: Whether it is the answer of its turn.
        """
        calls = said.calls if isinstance(said, ToolStep) else ()
        text = said.text if isinstance(said, ToolStep) else said.answer
        reasoning, text = self._split(said.reasoning, text)
        has_thought = self.thinking != "none" and is_last and (is_end or bool(reasoning))
        is_target = said.is_learned and (has_thought or not reasoning)
        part: Part = "answer" if is_answer else "prompt"
        segments = self._marked("<|im_start|>assistant\n")
        if has_thought:
            # A prompt that forbids reasoning ends with an empty one.
            is_given = self.thinking == "off" and not reasoning
            options = (False, "prompt") if is_given else (is_target, part)
            segments += self._marked(BEFORE_THOUGHT, *options)
            segments.append(Segment(reasoning.strip("\n"), "", *options))
            segments += self._marked(AFTER_THOUGHT, *options)
        shown = text.lstrip("\n") if has_thought else text
        segments.append(Segment(shown, "", is_target, part))
        for number, call in enumerate(calls):
            start = "\n" if number or text else ""
            segments += self._call(call, start, is_target, part)
        segments += self._marked("<|im_end|>", is_target, "end" if is_answer else "prompt")
        return segments + self._marked("\n", False, "closing" if is_answer else "prompt")

    def _call(self, call: ToolCall, start: str, is_target: bool, part: Part) -> list[Segment]:
        return [
            *self._marked(f'{start}<tool_call>\n{{"name": "', is_target, part),
            Segment(f'{call.name}", "arguments": {call.arguments}', "", is_target, part),
            *self._marked("}\n</tool_call>", is_target, part),
        ]

    def _split(self, reasoning: str, text: str) -> tuple[str, str]:
        """Reasoning and answer; Qwen3 also finds reasoning that is written within an answer."""
        if self.thinking == "none" or reasoning or THINK_END not in text:
            return reasoning, text
        before, after = text.split(THINK_END, maxsplit=1)[0], text.rsplit(THINK_END, maxsplit=1)[-1]
        return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), after.lstrip("\n")
