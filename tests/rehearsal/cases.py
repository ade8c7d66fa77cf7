"""The runs that are rehearsed: a configuration, and which rank of its world this process is."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEQ_LENGTH = 80
FAULTS = ("a sum on the host", "a value is read", "a dense mask")
STAGES = ("pretrain", "sft", "reward", "dpo")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One rank of one run."""

    name: str
    flags: tuple[str, ...]
    """What tools/train.py would be given."""
    world_size: int = 1
    rank: int = 0
    generates: bool = False
    """Whether the trained weights also answer prompts."""
    packed: bool = False
    """Whether pre-training documents are isolated, as in the other stages."""
    fault: str = ""
    """A mistake made in the loss (one of `FAULTS`), to see that it is found."""


SMALL = MappingProxyType(
    {
        "output_dir": "unused",
        "tokenizer": "unused",
        "data.train": "unused",
        "data.seq_length": SEQ_LENGTH,
        "model.vocab_size": 300,
        "model.hidden_size": 64,
        "model.num_layers": 2,
        "model.num_attention_heads": 8,
        "model.num_key_value_heads": 8,
        "model.ffn_hidden_size": 96,
        "model.max_position_embeddings": 128,
        "training.train_steps": 2,
        "training.micro_batch_size": 2,
        "training.global_batch_size": 8,
        "checkpoint.load": "unused",
    }
)
LAYOUTS = MappingProxyType(
    {
        "one": (1, {}),
        "tp8 sp": (8, {"tensor_parallel_size": 8, "sequence_parallel": True}),
        "dp8 distributed": (8, {"distributed_optimizer": True}),
        "dp8 overlapped": (
            8,
            {
                "distributed_optimizer": True,
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
            },
        ),
        "tp2 pp2 dp2": (8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        "pp2 vpp2": (2, {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}),
    }
)
LORA = MappingProxyType({"lora.rank": 4, "lora.targets": "[q_proj, v_proj, o_proj, down_proj]"})


def small(
    name: str, layout: str = "one", *, rank: int = 0, changes: Any = None, **options: Any
) -> Case:
    """A case of a small model; `changes` are settings by dotted key."""
    world_size, parallel = LAYOUTS[layout]
    settings = {**SMALL, **{f"parallel.{k}": v for k, v in parallel.items()}, **(changes or {})}
    if "virtual_pipeline_parallel_size" in parallel:
        settings["model.num_layers"] = 4
    if world_size >= 8:
        settings["training.global_batch_size"] = 32
    flags = tuple(part for key, value in settings.items() for part in (_flag(key), _text(value)))
    return Case(name=name, flags=flags, world_size=world_size, rank=rank, **options)


def _flag(key: str) -> str:
    return f"--{key}" if "." in key else f"--{key.replace('_', '-')}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ranks(layout: str) -> tuple[int, ...]:
    """The first rank of each pipeline stage, and the last rank of all."""
    world_size, parallel = LAYOUTS[layout]
    stages = parallel.get("pipeline_parallel_size", 1)
    firsts = range(0, world_size, world_size // stages)
    return tuple(dict.fromkeys((*firsts, world_size - 1)))


def _small_cases() -> list[Case]:
    cases = [
        small(
            f"{precision}, recompute {recompute}",
            changes={"training.precision": precision, "model.recompute": recompute},
            generates=recompute == "none",
        )
        for precision in ("fp32", "bf16", "fp16")
        for recompute in ("none", "selective", "full")
    ]
    cases += [
        small(f"{layout}, rank {rank}", layout, rank=rank, generates=True)
        for layout in LAYOUTS
        if layout != "one"
        for rank in _ranks(layout)
    ]
    for stage in STAGES:
        cases.append(small(stage, changes={"stage": stage}, packed=True))
        cases.append(small(f"{stage}, adapters", changes={"stage": stage, **LORA}, packed=True))
        for layout in ("tp8 sp", "tp2 pp2 dp2", "pp2 vpp2"):
            last = LAYOUTS[layout][0] - 1
            name = f"{stage}, {layout}, rank {last}"
            cases.append(small(name, layout, rank=last, changes={"stage": stage}, packed=True))
    more = {
        "reference kernels": {"kernels.backend": "reference"},
        "reference attention": {"model.attention_backend": "reference"},
        "grouped queries": {"model.num_key_value_heads": 4},
        "hidden dropout": {"model.hidden_dropout": 0.1},
        "chunked loss": {"model.loss_chunk_tokens": 64},
        "deterministic": {"training.deterministic": True},
        "packed fp32": {"stage": "sft", "training.precision": "fp32"},
    }
    cases += [
        small(name, changes=changes, packed="packed" in name) for name, changes in more.items()
    ]
    cases.append(small("adapters, tp8 sp", "tp8 sp", changes=LORA))
    cases += [small(f"fault: {fault}", fault=fault) for fault in FAULTS]
    return cases


EXAMPLE_LAYOUTS = MappingProxyType(
    {
        "ziya2_13b": "ziya_13b/layouts",
        **{
            preset: f"qwen/layouts/{preset}"
            for preset in ("qwen2_5_7b", "qwen2_5_14b", "qwen2_5_32b", "qwen3_8b", "qwen3_14b")
        },
        "llama3_8b": "llama3/layouts",
        "llama3_1_8b": "llama3/layouts",
    }
)
"""The layouts of each preset, below `EXAMPLES`."""


def _further_flags(preset: str, world_size: int) -> tuple[str, ...]:
    """What a user adds to the files: the tokenizer's size, or what a layout's comment says."""
    if preset == "ziya2_13b":
        return ("--model.vocab_size", "39424")
    if preset in ("qwen3_8b", "llama3_8b", "llama3_1_8b"):
        return ("--data.seq_length", "4160")  # their width is 4096: [s, s] must be no [h, h]
    return ("--optim.offload", "true") if (preset, world_size) == ("qwen2_5_32b", 8) else ()


def _example_cases() -> list[Case]:
    """Every layout of the examples for clusters at its true size, in every stage."""
    cases = []
    for preset, layouts in EXAMPLE_LAYOUTS.items():
        folder = EXAMPLES / layouts.partition("/")[0]
        for path in sorted((EXAMPLES / layouts).glob("*.yaml")):
            world_size = int(path.stem)
            for stage in STAGES:
                files = (folder / "base.yaml", path, folder / f"{stage}.yaml")
                flags = ["--preset", preset]
                for file in files:
                    flags += ["--config", str(file)]
                flags += _further_flags(preset, world_size)
                for rank in (0, world_size - 1):
                    name = f"{preset}, {stage}, {world_size} GPUs, rank {rank}"
                    cases.append(
                        Case(name=name, flags=tuple(flags), world_size=world_size, rank=rank)
                    )
    return cases


def _quickstart_cases() -> list[Case]:
    """The files of examples/quickstart, which run on CPUs by default, on GPUs."""
    folder = EXAMPLES / "quickstart"
    files = {"tiny": ("tiny",), "sft": ("tiny", "sft"), "reward": ("tiny", "reward")}
    layouts = {1: (), 2: ("--parallel.tensor_parallel_size", "2")}
    cases = []
    for name, parts in files.items():
        configs = (flag for part in parts for flag in ("--config", str(folder / f"{part}.yaml")))
        flags = (*configs, "--device", "cuda")
        for world_size, layout in layouts.items():
            cases.append(
                Case(
                    name=f"quickstart, {name}, {world_size} GPUs",
                    flags=(*flags, *layout),
                    world_size=world_size,
                    rank=world_size - 1,
                    generates=name != "reward",
                )
            )
    return cases


CASES = MappingProxyType(
    {case.name: case for case in [*_small_cases(), *_example_cases(), *_quickstart_cases()]}
)


def parse(case: Case) -> Any:
    """The configuration, read as tools/train.py reads it."""
    from megatron_chimed.config.parsing import ConfigParser
    from megatron_chimed.config.presets import preset_defaults
    from megatron_chimed.config.run_config import RunConfig

    parser = ConfigParser(RunConfig, "train")
    parser.add_argument("--preset")
    flags: argparse.Namespace = parser.parse_args(list(case.flags))
    return parser.config(flags, preset_defaults(flags.preset) if flags.preset else {})
