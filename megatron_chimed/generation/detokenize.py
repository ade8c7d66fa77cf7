"""Incremental detokenization: the text of a completion while its tokens are drawn."""

from collections.abc import Sequence

from megatron_chimed.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoding returns for bytes that are not, or not yet, valid UTF-8


class TextStream:
    """Decodes tokens, holding back text that the next token may still change.

    Held back are incomplete UTF-8 characters and text that may be the start of a stop string.
    Invariant: prompt text + completion text == `decode(prompt + completion)`, up to a stop string;
    so the space that sentencepiece drops at the start of a text is kept here.

    Args:
        tokenizer: Decodes.
        prompt: Token ids before the completion; empty if the completion is a text of its own, so
            that sentencepiece drops its leading space.
        stop_strings: The text ends before the first of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        # The tokens decoded last, as context, followed by those not decoded yet.
        self._window = list(prompt)
        self._num_known = len(self._window)
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, *tokens: int) -> str:
        """Adds one or more tokens; returns the text that is now final."""
        self._window.extend(tokens)
        fresh = self._fresh_text()
        if fresh.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._num_known :]
        self._num_known = len(self._window)
        return self._release(fresh, is_last=False)

    def finish(self) -> str:
        """Returns the text that was held back; incomplete characters become U+FFFD."""
        if self.is_stopped:
            return ""
        return self._release(self._fresh_text(), is_last=True)

    def _fresh_text(self) -> str:
        # Decoding with the preceding tokens and removing their text keeps the spaces between.
        known = self._tokenizer.decode(self._window[: self._num_known])
        return self._tokenizer.decode(self._window)[len(known) :]

    def _release(self, fresh: str, *, is_last: bool) -> str:
        text = self._held + fresh
        ends = [end for stop in self._stop_strings if (end := text.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            text, self._held = text[: min(ends)], ""
        elif not is_last:
            length = len(text) - self._possible_stop(text)
            text, self._held = text[:length], text[length:]
        self.text += text
        return text

    def _possible_stop(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        return max(
            (
                length
                for stop in self._stop_strings
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
