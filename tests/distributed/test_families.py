"""Every family at every layout: in and out bit for bit, transformers' tokens, one rank's gradients.

That logits, losses and gradients on one rank are those of transformers is tested in
`tests/unit/model/test_transformer.py`, packing in `test_packing.py`.
"""

import dataclasses

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
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Of our own options, so that each is trained at each layout; all at once last.
MODELS = {
    "QKV bias": {"qkv_bias": True},
    "QK norm": {"qk_norm": True, "kv_channels": 16},
    "tied": {"tie_word_embeddings": True},
    "two key heads": {"num_attention_heads": 16, "num_key_value_heads": 2, "kv_channels": 8},
    "all": {
        "qkv_bias": True,
        "qk_norm": True,
        "kv_channels": 16,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_scaling": "llama3",
        "rope_scaling_factor": 8.0,
        "rope_original_max_positions": 16,
    },
}
LOOK_AT = (1, 4)
PROMPTS = [[5, 290, 12, 9, 77], [3 + 5 * i for i in range(33)]]


def pass_through(rank, world_size, store_path, folder, out, parallel, precision, wants_tokens):
    """Generates from a checkpoint, then loads it into a job and saves that."""
    tokens = None
    reader = open_checkpoint(folder)
    model = reader.config["model"]
    if wants_tokens:
        config = ParallelConfig(timeout_seconds=60, **parallel)
        store = dist.FileStore(store_path + ".generate", world_size)
        world = (rank, world_size, rank)
        with open_session(folder, config, world=world, store=store) as session:
            found = generate(session, PROMPTS, SamplingConfig(max_new_tokens=64))
            tokens = [completion.token_ids for completion in found]
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
    return tokens


KEPT = [
    ("llama3 tied", "PP2", "fp32"),
    ("mistral", "TP2+SP", "bf16"),
    ("qwen2 tied", "TP4+SP", "fp32"),
    ("qwen3", "TP2xPP2", "fp32"),
]


@pytest.mark.parametrize(
    ("name", "layout", "precision"),
    full_but(KEPT, [(n, where, p) for n in families.FAMILIES for where in LAYOUTS for p in DTYPES]),
)
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
        precision == "fp32" and not parallel.get("sequence_parallel"),
        init=False,
    )
    hf.export_hf(tmp_path / "run/checkpoints", tmp_path / "out")
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    loaded, problems = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values()), problems
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    for tokens in results:
        if tokens is not None:
            assert tokens == [completion_of(model, prompt) for prompt in PROMPTS]


def completion_of(model, prompt):
    """What transformers makes of one prompt, greedily."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def alone(gloo_pool):
    """Traces of one rank, made once for each model."""
    traces = {}

    def trace(name):
        if name not in traces:
            (traces[name],) = gloo_pool.run(
                jobs.trace, 1, init=False, parallel=jobs.ONE, model=MODELS[name], **STEPS
            )
        return traces[name]

    return trace


STEPS = {"steps": 4, "look_at": LOOK_AT}
TRAINED = [
    ("all", "TP4+SP"),
    ("all", "PP2xDP2"),
    ("two key heads", "TP4+SP"),
    ("QK norm", "TP2"),
    ("QKV bias", "TP2xPP2"),
    ("tied", "PP2xVPP2"),
]


@pytest.mark.parametrize(
    ("name", "layout"),
    full_but(TRAINED, [(n, where) for n in MODELS for where in LAYOUTS if where != "1 rank"]),
)
def test_a_layout_trains_like_one_rank(gloo_pool, alone, name, layout):
    """Losses, gradient norms, and every gradient, also those that ranks have a part of each."""
    parallel, data_parallel_size = LAYOUTS[layout]
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        model=MODELS[name],
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
            model={**MODELS["all"], **changes},
            **STEPS,
        )
        for result in results:
            assert_traces_agree(result, alone("all"))


@pytest.mark.parametrize("layout", full_but(["PP2xDP2"], ["1 rank", "TP4+SP", "PP2xDP2"]))
def test_a_run_resumes_bit_for_bit(gloo_pool, tmp_path, layout):
    parallel, data_parallel_size = LAYOUTS[layout]
    size = jobs.world_size(parallel, data_parallel_size)

    def run(folder, steps):
        return gloo_pool.run(
            jobs.run,
            size,
            init=False,
            parallel=parallel,
            model=MODELS["all"],
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
    assert "lm_head.weight" not in first


def test_adapters_on_shared_key_heads_train_alike(gloo_pool):
    """LoRA's B of keys and values is held by several ranks, as its matrices are."""
    model = {**MODELS["all"], "tie_word_embeddings": False}
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


@pytest.mark.parametrize("size", [4, 8])
def test_sixteen_heads_on_two_key_heads_split_over_more_ranks(size):
    """Shards of all ranks tile the matrices; those of neighbours are the same."""
    from megatron_chimed.checkpoint.index import check_tiling
    from megatron_chimed.engine import engine_settings
    from megatron_chimed.model import ModelConfig, build_chunks, shard_specs
    from megatron_chimed.planning.fake_world import fake_rank

    model = ModelConfig(
        vocab_size=300,
        hidden_size=64,
        num_layers=1,
        num_attention_heads=16,
        num_key_value_heads=2,
        qkv_bias=True,
        ffn_hidden_size=96,
        max_position_embeddings=64,
    )
    layout = jobs.make_layout(model, {"tensor_parallel_size": size}, size)
    found = {}
    for rank in range(size):
        with fake_rank(layout, rank) as ranks:
            settings = engine_settings(layout, hidden_size=64, precision="fp32")
            chunks = build_chunks(model, settings=settings, ranks=ranks)
            for parameter, specs in shard_specs(chunks).items():
                for spec in specs:
                    region = (spec.offset, (spec.rows, *parameter.shape[1:]))
                    found.setdefault((spec.key, spec.global_shape, spec.copies), []).append(region)
    for (key, shape, copies), regions in found.items():
        is_shared = ".k_proj." in key or ".v_proj." in key
        assert copies == (size // 2 if is_shared else 1), key
        if copies > 1:
            assert all(regions.count(region) == copies for region in set(regions))
            check_tiling(key, shape, set(regions))
    assert found.keys() >= {("model.layers.0.self_attn.k_proj.bias", (8,), size // 2)}


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
