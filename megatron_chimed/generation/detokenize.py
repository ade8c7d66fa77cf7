"""The text of a completion while its tokens arrive."""

from collections.abc import Sequence

from megatron_chimed.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no UTF-8, or not yet


class TextStream:
    """Turns tokens into text, holding back what the next token may still change.

    Held back are characters whose bytes have not all come, and text that may be the start of a stop
    string. Invariant: prompt text + completion text == `decode(prompt + completion)`, up to a stop
    string; so the space that a sentencepiece model drops at the start of a text stays here.

    Args:
        tokenizer: Decodes.
        prompt: Token ids before the completion; none where the completion is a text of its own, of
            which sentencepiece drops the space at the start.
        stop_strings: The text ends before the first of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        # Tokens that became text last, for context, then those that have not yet.
        self._window = list(prompt)
        self._num_known = len(self._window)
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, *tokens: int) -> str:
        """Takes the next token, or several; returns the text that is now certain."""
        self._window.extend(tokens)
        fresh = self._fresh_text()
        if fresh.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._num_known :]
        self._num_known = len(self._window)
        return self._release(fresh, is_last=False)

    def finish(self) -> str:
        """The text that was held back; bytes that never became a character are U+FFFD."""
        if self.is_stopped:
            return ""
        return self._release(self._fresh_text(), is_last=True)

    def _fresh_text(self) -> str:
        # Decoding with the tokens before and cutting off their text gives the spaces between.
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
        """Length of the longest end of `text` with which a stop string begins."""
        return max(
            (
                length
                for stop in self._stop_strings
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
