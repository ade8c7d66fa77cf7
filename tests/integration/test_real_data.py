"""Real texts and published tokenizers, through the commands: from corpus to transformers."""

import itertools
import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_chimed.tokenizer import load_tokenizer
from tests.integration import commands
from tests.integration.commands import call, finish, spawn, torchrun

PROMPT = "发热是指"
NUM_NEW_TOKENS = 8
STEPS, MORE_STEPS = 6, 2


def succeed(done):
    assert done.code == 0, done.err
    return done.out


@pytest.fixture(params=["llama2_tokenizer.model", "chinese_sp.model"])
def project(request, real_data, tmp_path):
    """fever.txt preprocessed by two workers and found sound; gives the run's config."""
    tokenizer = real_data / request.param
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    words = commands.preprocess_words(tmp_path, real_data / "fever.txt", "data")
    documents = sum(bool(line.strip()) for line in lines_of(real_data))
    out = succeed(call("preprocess_data", *words, "--workers", 2))
    assert out.startswith(f"{documents:,} documents, ")
    words = ["check", tmp_path / "data", "--tokenizer", tokenizer]
    assert "WRONG" not in succeed(call("inspect_dataset", *words))
    size = load_tokenizer(tokenizer).vocab_size
    return commands.write_config(tmp_path, vocab_size=size, seq_length=48)


def lines_of(real_data):
    return (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")


def in_this_process(words, pool):
    succeed(call("train", *words))


def in_two_processes(words, pool):
    words = [*words, "--parallel.tensor_parallel_size", 2, "--parallel.sequence_parallel", "true"]
    succeed(finish(spawn("train", *words, launcher=torchrun(2))))


def in_two_stages(words, pool):
    words = [*map(str, words), "--parallel.pipeline_parallel_size", "2"]
    pool.run(commands.train_in_pool, 2, words, init=False)


def test_a_real_text_is_learnt_continued_elsewhere_and_exported(
    project, real_data, gloo_pool, tmp_path
):
    is_llama = load_tokenizer(tmp_path / "tokenizer.model").vocab_size == 32000
    first, second = (
        (in_two_processes, in_this_process) if is_llama else (in_this_process, in_two_stages)
    )
    words = ["--config", project, "--optim.lr", "1e-2", "--optim.lr_schedule", "constant"]
    first([*words, "--training.train_steps", STEPS], gloo_pool)
    second([*words, "--training.train_steps", STEPS + MORE_STEPS], gloo_pool)
    assert commands.train_steps(tmp_path / "run") == list(range(1, STEPS + MORE_STEPS + 1))
    losses = commands.train_losses(tmp_path / "run")
    assert losses[-1] < losses[0] - 0.1
    generated = generate(tmp_path)
    words = ["--checkpoint", tmp_path / "run", "--output", tmp_path / "hf", "--verify-logits"]
    if not is_llama:  # a unigram model with ties, which transformers breaks otherwise
        refused = call("convert_checkpoint", "export-hf", *words)
        assert refused.code == 65 and "Export with --weights-only" in refused.err
        words.append("--weights-only")
    assert "logits agree" in succeed(call("convert_checkpoint", "export-hf", *words))
    assert_transformers_agrees(tmp_path, lines_of(real_data) if is_llama else [], generated)


def generate(folder):
    """What the newest checkpoint puts behind `PROMPT`, greedily."""
    prompts, output = folder / "prompts.jsonl", folder / "completions.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    words = ["--prompts", prompts, "--output", output, "--max-new-tokens", NUM_NEW_TOKENS]
    succeed(call("generate", "--checkpoint", folder / "run", *words, "--no-add-bos"))
    (line,) = output.read_text(encoding="utf-8").splitlines()
    return json.loads(line)["completion"]


def assert_transformers_agrees(folder, lines, generated):
    """On the ids of the corpus, and on the completion of `PROMPT`."""
    ours = load_tokenizer(folder / "tokenizer.model")
    theirs = AutoTokenizer.from_pretrained(folder / "hf") if lines else None
    for line in itertools.islice(lines, 0, None, 4):
        assert theirs(line, add_special_tokens=False)["input_ids"] == ours.encode(line)
    model, problems = LlamaForCausalLM.from_pretrained(folder / "hf", output_loading_info=True)
    assert not any(problems.values()), problems
    assert model.config.vocab_size == ours.vocab_size
    assert model.config.eos_token_id == ours.eos_id
    prompt = torch.tensor([ours.encode(PROMPT)])
    # As the documents that it was trained on: no begin of sequence.
    whole = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )[0].tolist()
    if ours.eos_id in whole:
        whole = whole[: whole.index(ours.eos_id)]
    assert ours.decode(whole) == PROMPT + generated
