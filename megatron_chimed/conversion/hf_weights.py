"""The weights of a Hugging Face folder: all names are checked before a tensor is read."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_chimed.checkpoint.manifest import check_relative
from megatron_chimed.checkpoint.safetensors_io import SafetensorsFile, TensorSpec
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.conversion.hf_config import read_json_object
from megatron_chimed.conversion.hf_rope import check_frequencies
from megatron_chimed.errors import CheckpointError, DataError, UnsafeInputError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Constants that older converters stored; the model computes them from its config.
_DOWNLOADED = (".safetensors", ".json", ".model")
_POINTER = b"version https://git-lfs"
_FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class HfWeights:
    """The safetensors files of a folder.

    Args:
        folder: A Hugging Face folder.

    Raises:
        UnsafeInputError: There are only pickled weights, or the index names a file elsewhere.
        DataError: No weights, or an index that is not a JSON object of names.

    Attributes:
        problems: Contradictions: missing files, names without a tensor, tensors without a name,
            duplicate tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._files: dict[str, SafetensorsFile] = {}
        self._file_of: dict[str, str] = {}
        self._lost: set[str] = set()
        self._is_lost = False  # the single file, which would have said what it holds
        self._refuse_pointers()
        weight_map = self._read_index()
        names = [SINGLE_NAME] if weight_map is None else sorted(set(weight_map.values()))
        for name in names:
            self._open(name, weight_map)
        for key, name in (weight_map or {}).items():
            if name in self._files and key not in self._files[name].specs:
                self.problems.append(f"the index lists {key} in {name}, which has no such tensor")

    @property
    def names(self) -> list[str]:
        """Names of all tensors in the files."""
        return list(self._file_of)

    def spec(self, key: str) -> TensorSpec:
        """Type and shape of a tensor."""
        return self._files[self._file_of[key]].specs[key]

    def view(self, key: str) -> torch.Tensor:
        """The tensor as a view of its file: copy from it and drop it."""
        return self._files[self._file_of[key]].view(key)

    def check(self, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig) -> list[str]:
        """Compares the names and shapes with a model's; adds to `problems`.

        Args:
            shapes: Every weight of the model.
            model: The model.

        Returns:
            Notes on tensors that are skipped because the model computes them.
        """
        known = self._lost.union(self._file_of)
        if not self._is_lost:
            self.problems += [f"{key} is missing" for key in shapes if key not in known]
        notes = []
        for key in self.names:
            spec = self.spec(key)
            if key not in shapes:
                if _FREQUENCIES.fullmatch(key):
                    self.problems += self._check_frequencies(key, model)
                    notes.append(f"{key} is computed by the model and was left out")
                else:
                    self.problems.append(f"{key} is not a weight of this model")
            elif spec.shape != shapes[key]:
                self.problems.append(
                    f"{key} has shape {spec.shape}, config.json says {shapes[key]}"
                )
            elif spec.dtype not in WEIGHT_DTYPES:
                self.problems.append(f"{key} is of {spec.dtype}, not of fp32, fp16 or bf16")
        return notes

    def _check_frequencies(self, key: str, model: ModelConfig) -> list[str]:
        return check_frequencies(key, self.view(key), model)

    def _read_index(self) -> dict[str, str] | None:
        """The weight map, or None where a single file holds everything."""
        index, single = self.folder / INDEX_NAME, self.folder / SINGLE_NAME
        if not index.exists():
            if not single.exists():
                self._refuse_pickles()
            return None
        if single.exists():
            self.problems.append(f"{INDEX_NAME} and {SINGLE_NAME} are both there; remove one")
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise DataError(f"{index} has no `weight_map` of tensor names to file names.")
        for name in weight_map.values():
            check_relative(name, index)
        return weight_map

    def _refuse_pointers(self) -> None:
        """Of weights and tokenizer; pickles are not read, so theirs may stay.

        Raises:
            DataError: Git LFS left its pointers instead of the files.
        """
        pointers = []
        for path in sorted(self.folder.iterdir()):
            if path.suffix in _DOWNLOADED and path.is_file():
                with path.open("rb") as stream:
                    if stream.read(len(_POINTER)) == _POINTER:
                        pointers.append(path.name)
        if pointers:
            raise DataError(
                f"{self.folder} has pointers of Git LFS in place of {', '.join(pointers)}: the "
                "files themselves were not downloaded. Run `git lfs pull` there, or download the "
                "model again as docs/models.md says."
            )

    def _refuse_pickles(self) -> None:
        pickles = sorted(
            path.name for path in self.folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")
        )
        if pickles:
            raise UnsafeInputError(
                f"{self.folder} holds its weights as pickles ({', '.join(pickles)}), which can run "
                "code when they are read. They were not opened. Convert them on a machine where "
                "that does no harm: AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(new_folder, safe_serialization=True)."
            )
        raise DataError(f"{self.folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}.")

    def _open(self, name: str, weight_map: Mapping[str, str] | None) -> None:
        expected = {key for key, file in (weight_map or {}).items() if file == name}
        try:
            file = SafetensorsFile(self.folder / name)
        except CheckpointError as error:
            self._lost |= expected
            self._is_lost = weight_map is None
            reason = str(error).rstrip(".")
            lost = "the whole model" if self._is_lost else f"{len(expected)} tensors"
            self.problems.append(f"{reason}, and {lost} with it")
            return
        self._files[name] = file
        for key in file.specs:
            if key in self._file_of:
                self.problems.append(f"{key} is in {self._file_of[key]} and again in {name}")
            elif weight_map is not None and key not in weight_map:
                self.problems.append(f"{name} holds {key}, which the index does not list")
            self._file_of[key] = name
