r"""Converts weights between Hugging Face folders and checkpoints, on CPU, a tensor at a time.

    python tools/convert_checkpoint.py import-hf --input Ziya-13B --output checkpoints/ziya
    python tools/convert_checkpoint.py export-hf --checkpoint runs/demo/checkpoints \
        --output demo-hf --verify-logits
    python tools/convert_checkpoint.py export-hf --checkpoint runs/demo/checkpoints/iter_0000100 \
        --output demo-hf-bf16 --dtype bfloat16 --max-shard-gb 2
    python tools/convert_checkpoint.py export-hf --checkpoint runs/reward --output reward-hf \
        --verify-logits
    python tools/convert_checkpoint.py export-hf --checkpoint runs/lora --output lora-adapters \
        --lora-format peft
    python tools/convert_checkpoint.py export-hf --checkpoint runs/demo/checkpoints \
        --output demo-weights --weights-only

Known are Llama (Ziya, too), Mistral, Qwen2 and Qwen3 (docs/models.md). A reward model is exported
as a ...ForSequenceClassification with one label, and imported from one. LoRA adapters are merged
into the weights, or with `--lora-format peft` exported as a folder that the PEFT library loads.

The exported tokenizer gives the ids of training for every text, or the export fails and says why;
`--weights-only` exports without one.

`--overwrite` replaces a folder that an export made; a checkpoint is never replaced.

Every run reads back what it wrote and fails unless each tensor is bit-equal to its source (after
`--dtype`, to the converted source). Memory: the largest tensor plus a constant; with
`--verify-logits`, the whole model in fp32 and one layer of it in float64.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_chimed.command_line import (
    CommandParser,
    add_overwrite_flag,
    check_checkpoint,
    check_output_folder,
)
from megatron_chimed.errors import ConfigError, run_command

if TYPE_CHECKING:
    import torch

    from megatron_chimed.checkpoint.reader import CheckpointReader
    from megatron_chimed.conversion.hf import Check, Conversion

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; exit code 0 only if every check passed."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "import-hf":
        _import(arguments)
    else:
        _export(arguments)
    return 0


def _import(arguments: argparse.Namespace) -> None:
    from megatron_chimed.conversion.hf import import_hf

    done = import_hf(arguments.input, arguments.output, check=_logit_check(arguments, None))
    _print_report(done, "checkpoint")


def _is_export(folder: Path) -> bool:
    from megatron_chimed.checkpoint.safetensors_io import are_exports

    return are_exports(folder)


def _export(arguments: argparse.Namespace) -> None:
    check_output_folder(
        "--output",
        arguments.output,
        overwrite=arguments.overwrite,
        is_ours=_is_export,
    )
    check_checkpoint(arguments.checkpoint)
    if arguments.max_shard_gb <= 0:
        raise ConfigError(f"--max-shard-gb is {arguments.max_shard_gb}: set it above 0.")
    import torch

    from megatron_chimed.conversion.hf import export_hf
    from megatron_chimed.conversion.hf_tokenizer import TokenizerExport
    from megatron_chimed.conversion.peft import export_peft

    if arguments.weights_only and arguments.check_texts:
        raise ConfigError("--check-texts needs the tokenizer that --weights-only omits: omit one.")
    tokenizer = TokenizerExport(
        with_files=not arguments.weights_only,
        with_chat_template=not arguments.without_chat_template,
        texts=arguments.check_texts,
    )
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    if arguments.lora_format == "peft":
        if arguments.verify_logits:
            raise ConfigError(
                "--verify-logits compares whole models, not adapters alone. Remove it, or export "
                "with --lora-format merged."
            )
        done = export_peft(
            arguments.checkpoint,
            arguments.output,
            dtype=dtype,
            tokenizer=tokenizer,
            overwrite=arguments.overwrite,
        )
        _print_report(done, "PEFT folder")
        return
    done = export_hf(
        arguments.checkpoint,
        arguments.output,
        dtype=dtype,
        max_shard_bytes=int(arguments.max_shard_gb * 1e9),
        tokenizer=tokenizer,
        check=_logit_check(arguments, dtype),
        overwrite=arguments.overwrite,
    )
    _print_report(done, "Hugging Face folder")


def _logit_check(arguments: argparse.Namespace, dtype: "torch.dtype | None") -> "Check | None":
    if not arguments.verify_logits:
        return None
    from megatron_chimed.conversion.hf_verify import checkpoint_logits, verify_logits

    def check(reader: "CheckpointReader", hf_dir: Path) -> None:
        found = verify_logits(
            lambda tokens: checkpoint_logits(reader, tokens, dtype=dtype),
            hf_dir,
            tolerance=arguments.tolerance,
        )
        print(
            f"{found.kind} agree with transformers: largest error against float64 "
            f"{found.our_error:.2e}, transformers' own {found.their_error:.2e}, over "
            f"{found.num_positions} positions (largest {found.max_logit:.3g})"
        )

    return check


def _print_report(done: "Conversion", kind: str) -> None:
    print(
        f"{kind} {done.output}: {done.num_tensors} tensors, {done.num_parameters:,} parameters, "
        f"{done.size / 1e9:.3f} GB; read back, every tensor bit-equal to its source"
    )
    for note in done.notes:
        print(f"note: {note}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="tools/convert_checkpoint.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import-hf", help="Hugging Face folder -> checkpoint")
    importing.add_argument(
        "--input", type=Path, required=True, help="folder with config.json and safetensors"
    )
    importing.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of checkpoints, gets iter_0000000",
    )
    exporting = commands.add_parser("export-hf", help="checkpoint -> Hugging Face folder")
    _add_export_flags(exporting)
    for command in (importing, exporting):
        command.add_argument(
            "--verify-logits",
            action="store_true",
            help="compare logits (of a reward model, scores) with those of transformers; fail if "
            "they differ by more than rounding",
        )
        command.add_argument(
            "--tolerance",
            type=float,
            default=5.0,
            metavar="TIMES",
            help="largest error against float64 that passes, as a multiple of the one that "
            "transformers makes in fp32 (default: %(default)s)",
        )
    return parser


def _add_export_flags(exporting: argparse.ArgumentParser) -> None:
    exporting.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a checkpoint, or a run's folder, of which the newest is taken",
    )
    exporting.add_argument(
        "--output", type=Path, required=True, help="folder to make; it appears when complete"
    )
    add_overwrite_flag(exporting)
    exporting.add_argument(
        "--dtype", choices=DTYPES, help="of the exported weights (default: as stored)"
    )
    exporting.add_argument(
        "--max-shard-gb",
        type=float,
        default=5.0,
        help="largest weight file in units of 10^9 bytes (default: %(default)s)",
    )
    exporting.add_argument(
        "--lora-format",
        choices=("merged", "peft"),
        default="merged",
        help="for a run with LoRA: the whole model with its adapters merged, or the adapters alone "
        "as the PEFT library loads them (default: %(default)s)",
    )
    exporting.add_argument(
        "--without-chat-template",
        action="store_true",
        help="write no chat template (default: the fine-tuning template, whose token ids are "
        "compared with ours; a base model has none)",
    )
    exporting.add_argument(
        "--weights-only",
        action="store_true",
        help="write neither tokenizer nor chat template; for a tokenizer.model whose ids no fast "
        "tokenizer of transformers gives",
    )
    exporting.add_argument(
        "--check-texts",
        type=Path,
        metavar="FILE",
        help="UTF-8 text file; on its lines (first 5 million characters) the exported tokenizer "
        "must give our ids too (default: only on texts made from the vocabulary)",
    )


if __name__ == "__main__":
    sys.exit(main())
