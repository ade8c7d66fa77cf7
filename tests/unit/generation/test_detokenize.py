"""Streaming text: nothing half, nothing twice, nothing beyond a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.generation import TextStream
from tests.unit.generation.toy import byte_tokenizer, toy_tokenizer

BYTES = byte_tokenizer()
NOT_REPLACED = st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])


def stream(prompt, ids, stops=()):
    text_stream = TextStream(toy_tokenizer(), prompt, stops)
    pieces = []
    for token in ids:
        pieces.append(text_stream.push(token))
        if text_stream.is_stopped:
            break
    pieces.append(text_stream.finish())
    assert "".join(pieces) == text_stream.text
    return pieces, text_stream


def test_characters_come_whole():
    ids = toy_tokenizer().encode("热😀龘b")
    assert len(ids) > 8, "the smiley and the rare character must be bytes"
    pieces, _ = stream([1], ids)
    shown = [piece for piece in pieces if piece]
    assert "".join(shown) == "热😀龘b"
    assert "😀" in shown
    assert not any("\ufffd" in piece for piece in shown)


def test_unfinished_bytes_are_told_at_the_end():
    ids = toy_tokenizer().encode("热😀")[:-1]
    pieces, _ = stream([1], ids)
    assert pieces[-1].startswith("\ufffd") and set("".join(pieces)) == {"热", "\ufffd"}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.text(max_size=30), st.data())
def test_pieces_add_up_to_the_decoded_rest(before, text, data):
    """Whatever the cut between prompt and completion, also inside of words."""
    tokenizer = toy_tokenizer()
    ids = [1, *tokenizer.encode(before.replace("\x00", "")), *tokenizer.encode(text)]
    cut = data.draw(st.integers(1, len(ids)))
    prompt_text = tokenizer.decode(ids[:cut])
    if prompt_text.endswith("\ufffd"):
        return  # a prompt that is no text
    _, text_stream = stream(ids[:cut], ids[cut:])
    assert prompt_text + text_stream.text == tokenizer.decode(ids)


def test_space_before_the_completion_is_kept():
    tokenizer = toy_tokenizer()
    prompt, whole = tokenizer.encode("the patient has"), tokenizer.encode("the patient has a cough")
    assert whole[: len(prompt)] == prompt
    assert stream(prompt, whole[len(prompt) :])[1].text == " a cough"


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("cough",), "a fever and a "),
        (("zzz",), "a fever and a cough since"),
        (("cough", "fever"), "a "),
        (("and a c", "since"), "a fever "),
        (("ce",), "a fever and a cough sin"),
    ],
)
def test_text_ends_before_the_first_stop_string(stops, expected):
    ids = toy_tokenizer().encode("a fever and a cough since")
    pieces, text_stream = stream([1], ids, stops)
    assert text_stream.text == expected
    assert text_stream.is_stopped == (expected != "a fever and a cough since")


def test_beginnings_of_stop_strings_are_held_back():
    tokenizer = toy_tokenizer()
    text_stream = TextStream(tokenizer, [1], ["fever!"])
    shown = "".join(text_stream.push(token) for token in tokenizer.encode("a fever"))
    assert shown == "a "
    assert text_stream.finish() == "fever"


@settings(max_examples=50, deadline=None)
@given(st.text(NOT_REPLACED, max_size=12), st.text(NOT_REPLACED, max_size=30))
def test_a_byte_level_stream_never_splits_a_character(prompt, text):
    """The vocabulary has bytes only, so a character is as many tokens as bytes."""
    before, ids = BYTES.encode(prompt), BYTES.encode(text)
    assert len(ids) == len(BYTES.decode(ids).encode())
    text_stream = TextStream(BYTES, before)
    pieces = [text_stream.push(index) for index in [*ids, BYTES.eos_id]]
    assert "".join([*pieces, text_stream.finish()]) == BYTES.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
