"""Every family at every layout: in and out bit for bit, transformers' tokens, one rank's gradients.

That logits, losses and gradients on one rank are those of transformers is tested in
`tests/unit/model/test_transformer.py`, packing in `test_packing.py`.
"""

import dataclasses
import functools

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import hf
from megatron_chimed.engine import ParallelConfig
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import SamplingConfig, generate, open_session
from megatron_chimed.training import state
from tests.distributed import families, jobs
from tests.distributed.test_layouts import assert_gradients_agree, assert_traces_agree
from tests.integration.hf_folders import assert_same_bits, file_tensors
from tests.tiers import full_but

TP4 = {"tensor_parallel_size": 4}
LAYOUTS = {
    "1 rank": (jobs.ONE, 1),
    "TP2": (jobs.TP2, 1),
    "TP2+SP": (jobs.TP2_SP, 1),
    "TP4+SP": ({**TP4, "sequence_parallel": True}, 1),
    "PP2": (jobs.PP2, 1),
    "PP2xVPP2": (jobs.PP2_VPP2, 1),
    "PP4": ({"pipeline_parallel_size": 4}, 1),
    "DP2": (jobs.DP2_DISTRIBUTED, 2),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1),
    "PP2xDP2": ({**jobs.PP2, **jobs.DP2_DISTRIBUTED}, 2),
    "TP2+SPxDP2": ({**jobs.TP2_SP, **jobs.DP2_DISTRIBUTED}, 2),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LOOK_AT = (1, 4)
PROMPTS = [[5, 290, 12, 9, 77], [3 + 5 * i for i in range(33)]]
NUM_TOKENS = 64


def pass_through(rank, world_size, store_path, folder, out, parallel, precision):
    """Generates from a checkpoint in fp32, then loads it into a job and saves that."""
    found = None
    reader = open_checkpoint(folder)
    model = reader.config["model"]
    if precision == "fp32":
        config = ParallelConfig(timeout_seconds=60, **{**parallel, "sequence_parallel": False})
        store = dist.FileStore(store_path + ".generate", world_size)
        world = (rank, world_size, rank)
        with open_session(folder, config, world=world, store=store) as session:
            sampling = SamplingConfig(max_new_tokens=NUM_TOKENS)
            found = generate(session, PROMPTS, sampling, with_log_probs=True)
    job = jobs.make_job(
        rank,
        world_size,
        store_path,
        parallel=parallel,
        output_dir=out,
        model=model,
        training={"precision": precision},
    )
    try:
        state.load_weights(job, open_checkpoint(folder, agreement=job.agreement))
        job.config.resolved["hugging_face"] = reader.config["hugging_face"]
        state.save(job, "again")
    finally:
        jobs.engine.leave()
    return found


PASSED = [(n, where, dtype) for n in families.FAMILIES for where in LAYOUTS for dtype in DTYPES]
KEPT = [
    ("llama3 tied", "PP2", "fp32"),
    ("mistral", "TP2+SP", "bf16"),
    ("qwen2 tied", "TP4+SP", "fp32"),
    ("qwen3", "TP2xPP2", "fp32"),
    ("qwen3 tied", "PP2xDP2", "fp16"),
]


@pytest.mark.parametrize(("name", "layout", "precision"), full_but(KEPT, PASSED))
def test_a_folder_comes_out_as_it_went_in(gloo_pool, tmp_path, name, layout, precision):
    parallel, data_parallel_size = LAYOUTS[layout]
    model = families.make(name, dtype=DTYPES[precision])
    model.save_pretrained(tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    results = gloo_pool.run(
        pass_through,
        jobs.world_size(parallel, data_parallel_size),
        str(tmp_path / "ckpt"),
        str(tmp_path / "run"),
        parallel,
        precision,
        init=False,
    )
    hf.export_hf(tmp_path / "run/checkpoints", tmp_path / "out")
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    loaded, problems = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values()), problems
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    if precision == "fp32":
        expected = completions_of(name)
        for completions in results:
            for found, (tokens, log_probs) in zip(completions, expected, strict=True):
                assert found.token_ids == tokens
                log_probs_found = torch.tensor(found.log_probs)
                torch.testing.assert_close(log_probs_found, log_probs, rtol=1e-4, atol=1e-4)


@functools.cache
def completions_of(name):
    """What transformers makes of each prompt, greedily, and the logarithm of its probabilities."""
    model, found = families.make(name), []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        tokens = out[0, len(prompt) :]
        with torch.no_grad():
            logits = model(out).logits[0, len(prompt) - 1 : -1]  # [new tokens, v]
        log_probs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        found.append((tuple(tokens.tolist()), log_probs))
    return found


@pytest.fixture(scope="module")
def alone(gloo_pool):
    """Traces of one rank, made once for each model."""
    traces = {}

    def trace(name):
        if name not in traces:
            (traces[name],) = gloo_pool.run(
                jobs.trace, 1, init=False, parallel=jobs.ONE, model=families.OPTIONS[name], **STEPS
            )
        return traces[name]

    return trace


STEPS = {"steps": 4, "look_at": LOOK_AT}
TRAINED = [
    ("all", "TP4+SP"),
    ("all", "PP2xDP2"),
    ("all", "TP2+SPxDP2"),
    ("two key heads", "TP4+SP"),
    ("QK norm", "TP2"),
    ("QKV bias", "TP2xPP2"),
    ("tied", "PP2xVPP2"),
]


@pytest.mark.parametrize(
    ("name", "layout"),
    full_but(
        TRAINED, [(n, where) for n in families.OPTIONS for where in LAYOUTS if where != "1 rank"]
    ),
)
def test_a_layout_trains_like_one_rank(gloo_pool, alone, name, layout):
    """Losses, gradient norms, and every gradient, also those that ranks have a part of each."""
    parallel, data_parallel_size = LAYOUTS[layout]
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        model=families.OPTIONS[name],
        **STEPS,
    )
    expected = alone(name)
    for result in results:
        assert_traces_agree(result, expected)
        assert result["padding_is_zero"]
    for step in LOOK_AT:
        assert_gradients_agree(
            jobs.assemble([result["gradients"][step] for result in results]),
            jobs.assemble([expected["gradients"][step]]),
        )


@pytest.mark.parametrize("layout", full_but(["TP4+SP"], ["TP4+SP", "PP2xDP2", "TP2xPP2"]))
def test_recomputation_and_chunked_losses_change_nothing(gloo_pool, alone, layout):
    parallel, data_parallel_size = LAYOUTS[layout]
    for changes in ({"recompute": "selective", "loss_chunk_tokens": 13}, {"recompute": "full"}):
        results = gloo_pool.run(
            jobs.trace,
            jobs.world_size(parallel, data_parallel_size),
            init=False,
            parallel=parallel,
            model={**families.OPTIONS["all"], **changes},
            **STEPS,
        )
        for result in results:
            assert_traces_agree(result, alone("all"))


RESUMED = [
    *(("all", layout) for layout in ("1 rank", "TP4+SP", "PP2xDP2")),
    *((name, "TP2xPP2") for name in families.OPTIONS),
]


@pytest.mark.parametrize(("name", "layout"), full_but([("all", "PP2xDP2")], RESUMED))
def test_a_run_resumes_bit_for_bit(gloo_pool, tmp_path, name, layout):
    parallel, data_parallel_size = LAYOUTS[layout]
    size = jobs.world_size(parallel, data_parallel_size)

    def run(folder, steps):
        return gloo_pool.run(
            jobs.run,
            size,
            init=False,
            parallel=parallel,
            model=families.OPTIONS[name],
            output_dir=str(tmp_path / folder),
            training={"train_steps": steps},
            checkpoint={"save_interval": 2},
        )[-1]

    whole = run("whole", 4)
    run("cut", 2)
    resumed = run("cut", 4)
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in resumed] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in whole[2:]
    ]
    first, second = (
        jobs.torch_tensors(str(tmp_path / folder / "checkpoints/iter_0000004"))
        for folder in ("whole", "cut")
    )
    assert_same_bits(first, second)
    is_tied = families.OPTIONS[name].get("tie_word_embeddings", False)
    assert ("lm_head.weight" in first) is not is_tied


@pytest.mark.parametrize(
    ("precision", "layout"),
    full_but([("bf16", "TP4+SP")], [(p, at) for p in ("bf16", "fp16") for at in LAYOUTS]),
)
def test_half_precision_follows_fp32_with_every_option(gloo_pool, alone, precision, layout):
    """Master weights and norms of rows that ranks share; 1 % of the loss, 5 % of the norm."""
    parallel, data_parallel_size = LAYOUTS[layout]
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        model=families.OPTIONS["all"],
        training={"precision": precision},
        optim={"initial_loss_scale": 256.0},
        steps=STEPS["steps"],
    )
    for result in results:
        assert result["losses"] == pytest.approx(alone("all")["losses"], rel=0.01)
        assert result["norms"] == pytest.approx(alone("all")["norms"], rel=0.05)


def test_adapters_on_shared_key_heads_train_alike(gloo_pool):
    """LoRA's B of keys and values is held by several ranks, as its matrices are."""
    model = {**families.OPTIONS["all"], "tie_word_embeddings": False}
    options = {"init": False, "model": model, "lora": {"rank": 4}, **STEPS}
    (expected,) = gloo_pool.run(jobs.trace, 1, parallel=jobs.ONE, **options)
    results = gloo_pool.run(jobs.trace, 4, parallel=LAYOUTS["TP4+SP"][0], **options)
    for result in results:
        assert_traces_agree(result, expected)
    for step in LOOK_AT:
        assert_gradients_agree(
            jobs.assemble([result["gradients"][step] for result in results]),
            jobs.assemble([expected["gradients"][step]]),
        )


def test_options_are_checked_before_weights_are_loaded(tmp_path):
    families.make("qwen3").save_pretrained(tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    reader = open_checkpoint(tmp_path / "ckpt")
    model = jobs.ModelConfig(**reader.config["model"])
    state.check_fit(reader, model, "none", None)
    for change in ({"qk_norm": False}, {"qkv_bias": True}, {"tie_word_embeddings": True}):
        (name,) = change
        with pytest.raises(ConfigError, match=f"{name} is (True|False) there and"):
            state.check_fit(reader, dataclasses.replace(model, **change), "none", None)
