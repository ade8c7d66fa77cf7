"""What kind of model a folder holds, and what to do with a folder of the wrong kind."""

from pathlib import Path

CONVERT = "tools/convert_checkpoint.py"


def is_hf_folder(path: Path) -> bool:
    """Whether a folder looks like a model saved by transformers."""
    patterns = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
    is_ours = (path / "manifest.json").exists() or (path / "index.json").exists()
    is_model = (path / "config.json").is_file() and any(any(path.glob(p)) for p in patterns)
    return is_model and not is_ours


def not_a_checkpoint(path: Path) -> str | None:
    """Advice if a path given as a checkpoint is another kind of model, else None."""
    folder = path if path.is_dir() else path.parent
    if is_hf_folder(folder):
        return (
            f"{folder} is a Hugging Face folder, not a checkpoint of this project. Bring it in "
            f"once, and give what that makes: {CONVERT} import-hf --input {folder} "
            f"--output {str(folder).rstrip('/')}_imported"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} holds adapters of peft, not a model. Merge them into their model there "
            f"(merge_and_unload), save that, and bring it in with {CONVERT} import-hf."
        )
    marks = ("latest_checkpointed_iteration.txt", "common.pt", ".metadata")
    if any((folder / mark).is_file() for mark in marks):
        return (
            f"{folder} is a checkpoint of Megatron-LM, which this project does not read. Export it "
            f"to a Hugging Face folder there, and bring that in with {CONVERT} import-hf."
        )
    return None


def not_an_hf_folder(path: Path) -> str | None:
    """Advice if a path given as a Hugging Face folder is a checkpoint, else None."""
    is_checkpoint = (path / "manifest.json").is_file() and (path / "index.json").is_file()
    if is_checkpoint or any(path.glob("checkpoints/iter_*")) or any(path.glob("iter_*/index.json")):
        return (
            f"{path} is a checkpoint of this project, not a Hugging Face folder. Use it as it is, "
            f"with --checkpoint.load or --checkpoint, or make such a folder of it: {CONVERT} "
            f"export-hf --checkpoint {path} --output {str(path).rstrip('/')}_hf"
        )
    return None
