"""transformers and this project, both ways, at every layout: logits, loss, gradient, greedy text.

Weights trained here at a layout leave through an export; random ones of transformers come in
through an import, sharded. What is compared is the model at that layout, opened from disk.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import GenerationConfig, LlamaForCausalLM

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.engine import ParallelConfig, relay_forward
from megatron_chimed.generation import SamplingConfig, generate, open_session
from megatron_chimed.model import gather_vocabulary
from tests.distributed import jobs
from tests.integration.commands import call
from tests.integration.hf_folders import SIZES, assert_same_bits, file_tensors, index_of, make_hf
from tests.tiers import full_but

TP2_PP2 = {**jobs.TP2, **jobs.PP2}
# name -> (parallel section, data-parallel size)
LAYOUTS = {
    "1 rank": (jobs.ONE, 1),
    "TP2+SP": (jobs.TP2_SP, 1),
    "PP2xVPP2": (jobs.PP2_VPP2, 1),
    "DP2 distributed optimizer": (jobs.DP2_DISTRIBUTED, 2),
    "TP2xPP2": (TP2_PP2, 1),
}
# What only training knows.
TRAINING_ONLY = ("sequence_parallel", "distributed_optimizer")
TOLERANCE = 1e-4
NUM_NEW_TOKENS = 64
BOS = 1
# A begin of sequence is a token like any other, here as there: nobody adds one to these.
PROMPTS = [[BOS], [BOS, 5, 299, 12], [77, 3, 180, 9, 41, 256, 8]]
TOKENS = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
# Large weights: a wrong RoPE shows in the logits, and the best token is clear.
TRAINED = {"init_std": 0.15, "max_position_embeddings": 128}
IMPORTED = {
    "vocab_size": SIZES["vocab_size"],
    "hidden_size": SIZES["hidden_size"],
    "num_layers": SIZES["num_hidden_layers"],
    "num_attention_heads": SIZES["num_attention_heads"],
    "num_key_value_heads": SIZES["num_key_value_heads"],
    "ffn_hidden_size": SIZES["intermediate_size"],
    "max_position_embeddings": SIZES["max_position_embeddings"],
}


def open_and_run(rank, world_size, store_path, checkpoint, parallel):
    """Logits of `TOKENS`, [b, s, v], from the last stage (None elsewhere), and completions."""
    config = ParallelConfig(timeout_seconds=60, **parallel)
    store = dist.FileStore(store_path, world_size)
    world = (rank, world_size, rank)
    with open_session(checkpoint, config, world=world, store=store) as session:
        sampling = SamplingConfig(max_new_tokens=NUM_NEW_TOKENS)
        completions = generate(session, PROMPTS, sampling, max_batch=len(PROMPTS))
        return all_logits(session), [list(c.token_ids) for c in completions]


def all_logits(session):
    batch_size, length = TOKENS.shape
    positions = torch.arange(length).expand_as(TOKENS)
    logits = relay_forward(
        session.chunks,
        lambda chunk: chunk(TOKENS, positions),
        shape=(length, batch_size, session.config.hidden_size),
        dtype=session.settings.params_dtype,
        ranks=session.ranks,
    )  # [s, b, padded v/t]
    if logits is None:
        return None
    whole = gather_vocabulary(logits, session.ranks.tensor_group)
    return whole[..., : session.vocab_size].transpose(0, 1).numpy()


def run_at_layout(pool, checkpoint, parallel, data_parallel_size=1):
    kept = {name: value for name, value in parallel.items() if name not in TRAINING_ONLY}
    size = jobs.world_size(parallel, data_parallel_size)
    results = pool.run(open_and_run, size, str(checkpoint), kept, init=False)
    assert any(logits is not None for logits, _ in results)
    return results


def train(pool, parallel, data_parallel_size=1, **options):
    size = jobs.world_size(parallel, data_parallel_size)
    return pool.run(jobs.run, size, init=False, parallel=parallel, **options)[0]


def transformers_model(folder):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # No end of sequence: what would follow one is compared too.
    model.generation_config = GenerationConfig(
        max_new_tokens=NUM_NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return model


@torch.no_grad()
def assert_agrees(results, model):
    """Every rank's completions, and the logits where they are, are those of transformers."""
    theirs = model(TOKENS).logits.numpy()
    for logits, completions in results:
        if logits is not None:
            assert logits.shape == theirs.shape
            assert np.abs(logits - theirs).max() <= TOLERANCE
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            ids = torch.tensor([prompt])
            whole = model.generate(ids, attention_mask=torch.ones_like(ids))
            assert completion == whole[0, len(prompt) :].tolist()
            assert len(completion) == NUM_NEW_TOKENS


@pytest.mark.parametrize("name", full_but(["DP2 distributed optimizer", "TP2xPP2"], LAYOUTS))
def test_what_a_layout_trained_is_the_same_in_transformers(gloo_pool, tmp_path, name):
    parallel, data_parallel_size = LAYOUTS[name]
    options = {"model": TRAINED, "training": {"train_steps": 3}, "output_dir": str(tmp_path)}
    train(gloo_pool, parallel, data_parallel_size, **options)
    words = ["--checkpoint", tmp_path, "--output", tmp_path / "hf"]
    done = call("convert_checkpoint", "export-hf", *words)
    assert done.code == 0, done.err
    results = run_at_layout(gloo_pool, tmp_path, parallel, data_parallel_size)
    assert_agrees(results, transformers_model(tmp_path / "hf"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random transformers model with grouped-query attention, in several files."""
    folder = tmp_path_factory.mktemp("source") / "hf"
    make_hf(folder)
    assert len(set(index_of(folder)["weight_map"].values())) > 2
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    done = call("convert_checkpoint", "import-hf", "--input", source, "--output", folder)
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    "parallel", full_but([TP2_PP2], [jobs.ONE, TP2_PP2]), ids=["1 rank", "TP2xPP2"]
)
def test_what_is_imported_is_the_same_here(gloo_pool, source, imported, parallel):
    assert_agrees(run_at_layout(gloo_pool, imported, parallel), transformers_model(source))


def transformers_steps(folder, num_steps, learning_rate):
    """(loss, gradient norm) of steps by transformers, torch's AdamW and clipping."""
    model = transformers_model(folder).train()
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=learning_rate, betas=(0.9, 0.95), eps=jobs.OPTIM["adam_eps"]
    )
    records = []
    for step in range(num_steps):
        first = step * jobs.GLOBAL_BATCH_SIZE
        loss = transformers_loss(model, range(first, first + jobs.GLOBAL_BATCH_SIZE))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        records.append((loss.item(), norm.item()))
    return records


def transformers_loss(model, numbers):
    """Mean over all tokens of the samples whose mask is 1."""
    samples = [jobs.RandomSamples()[number] for number in numbers]
    tokens, labels, mask = (
        torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in ("tokens", "labels", "loss_mask")
    )
    losses = torch.nn.functional.cross_entropy(
        model(tokens).logits.flatten(0, 1), labels.flatten(), reduction="none"
    )
    return (losses * mask.flatten()).sum() / mask.sum()


def train_imported(pool, imported, output_dir, *, steps, learning_rate):
    return train(
        pool,
        TP2_PP2,
        model=IMPORTED,
        training={"train_steps": steps},
        optim={"lr": learning_rate, "min_lr": learning_rate},
        checkpoint={"load": str(imported)},
        output_dir=str(output_dir),
    )


def test_training_from_an_import_takes_the_steps_of_torch(gloo_pool, tmp_path, source, imported):
    ours = train_imported(gloo_pool, imported, tmp_path, steps=3, learning_rate=1e-2)
    theirs = transformers_steps(source, 3, 1e-2)
    assert theirs[0][1] > 1.0  # so that clipping takes part
    for record, (loss, norm) in zip(ours, theirs, strict=True):
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_steps_that_change_nothing_keep_every_bit(gloo_pool, tmp_path, source, imported):
    """In, cut over 4 ranks, stepped at rate 0, saved with moments, and out again."""
    train_imported(gloo_pool, imported, tmp_path, steps=1, learning_rate=0.0)
    assert CheckpointReader(tmp_path / "checkpoints/iter_0000001").has_optimizer
    words = ["--checkpoint", tmp_path, "--output", tmp_path / "hf"]
    done = call("convert_checkpoint", "export-hf", *words)
    assert done.code == 0, done.err
    assert_same_bits(file_tensors(source), file_tensors(tmp_path / "hf"))
