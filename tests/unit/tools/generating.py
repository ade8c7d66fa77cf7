"""The generate command in this process, and what transformers makes of the same."""

import json

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import encode_prompts, load_template
from megatron_chimed.errors import run_command
from tests.unit.generation import toy
from tools import generate

BASE = "the checkpoint names no chat template, as base models do not: text is completed"


def run(*arguments):
    return run_command(lambda: generate.main([str(argument) for argument in arguments]))


def expected_text(prompt, num_tokens):
    """By transformers, begin of sequence included; cut at the end of sequence."""
    tokenizer = toy.toy_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    drawn = list(toy.reference_completion(ids, num_tokens))
    if tokenizer.eos_id in drawn:
        drawn = drawn[: drawn.index(tokenizer.eos_id)]
    assert max(drawn) < tokenizer.vocab_size
    return tokenizer.decode([*ids, *drawn])[len(tokenizer.decode(ids)) :]


def expected_answer(turns, num_tokens, *, template="ziya", system=""):
    """By transformers, in a template; the answer's tokens are a text of their own."""
    tokenizer = toy.toy_tokenizer()
    conversation = Conversation(tuple(Turn(*turn) for turn in turns), system)
    [ids] = encode_prompts(tokenizer, load_template(template), [conversation])
    drawn = list(toy.reference_completion(ids, num_tokens))
    if tokenizer.eos_id in drawn:
        drawn = drawn[: drawn.index(tokenizer.eos_id)]
    return tokenizer.decode(drawn)


def complete(checkpoint, folder, rows, *words):
    """What the command makes of rows."""
    prompts, output = folder / "in.jsonl", folder / "out.jsonl"
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ["--checkpoint", checkpoint, "--prompts", prompts, "--output", output, "--overwrite"]
    assert run(*flags, *words) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]
