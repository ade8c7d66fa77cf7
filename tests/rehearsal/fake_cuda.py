"""A process in which torch believes in eight GPUs; for fake tensors alone.

`build` runs in the test's process, `load` as the first thing of another one: neither torch nor
megatron-core can be told later.
"""

import contextlib
import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
DEVICES = 8


def build(folder: Path) -> Path | str:
    """The library that `load` needs, or why it cannot be built."""
    compiler, torch = shutil.which("g++"), importlib.util.find_spec("torch")
    if compiler is None or torch is None or torch.origin is None:
        return "no g++ to build the fake CUDA device with"
    root, path = Path(torch.origin).parent, folder / "libfake_cuda.so"
    command = [compiler, "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{root / 'include'}"]
    command += [str(SOURCE), "-o", str(path), f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}"]
    command += ["-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return path


def load(library: str) -> None:
    """Makes torch, which this imports, believe in GPUs."""
    ctypes.CDLL(library)
    import torch

    assert not torch.backends.cuda.is_built(), "the rehearsal is for a CPU build of torch"
    cuda: Any = torch.cuda
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": DEVICES,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "fake GPU",
        "get_arch_list": ["sm_80", "sm_90"],
        "is_bf16_supported": True,
        "get_device_properties": SimpleNamespace(
            name="fake GPU", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
        ),
        "mem_get_info": (80 << 30, 80 << 30),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
    }
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    for name in ("set_device", "empty_cache", "manual_seed", "_lazy_call", "_lazy_init"):
        setattr(cuda, name, _always(None))
    cuda.nvtx.range_push = cuda.nvtx.range_pop = _always(None)
    # Fake tensors lie nowhere, and torch has no fake of pinning.
    torch.Tensor.pin_memory = lambda tensor: tensor
    cuda.Stream, cuda.Event, cuda.stream = _Stream, _Stream, _in_stream
    cuda.current_stream = cuda.default_stream = _Stream
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = _always(None)
    cuda.default_generators = (torch.default_generator,) * DEVICES
    torch.version.cuda = "13.0"
    from torch._subclasses.fake_tensor import FakeTensorMode

    # torch.tensor(.., device="cuda") is then made on the CPU and moved by the mode.
    FakeTensorMode.avoid_device_init = property(_always(True))  # type: ignore[assignment]


def choose_attention() -> None:
    """Makes torch's attention choose as on a GPU; without CUDA's code it takes the plain products.

    Flash attention takes half precision without a mask, the memory-efficient kernel the rest, but
    no grouped queries: those are left to plain products.
    """
    import torch
    import torch.nn.functional as F

    plain, aten = F.scaled_dot_product_attention, torch.ops.aten

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        if query.device.type != "cuda":
            return plain(query, key, value, attn_mask=attn_mask, **options)
        causal, dropout = options.get("is_causal", False), options.get("dropout_p", 0.0)
        given = (query, key, value)
        if query.dtype != torch.float32 and attn_mask is None and query.shape[-1] % 8 == 0:
            return aten._scaled_dot_product_flash_attention(*given, dropout, causal)[0]
        if query.shape[1] != key.shape[1]:
            return plain(query, key, value, attn_mask=attn_mask, **options)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[2])
        saved = any(x.requires_grad for x in given)
        return aten._scaled_dot_product_efficient_attention(
            *given, attn_mask, saved, dropout, causal
        )[0]

    F.scaled_dot_product_attention = attend


def register_kernels() -> None:
    """Tells torch that every op with a CUDA source has a CUDA kernel; none is ever run.

    Fake tensors call the op's fake.
    """
    import torch

    from megatron_chimed.kernels import binding, native

    assert not native.load_library()
    library = torch.library.Library("chimed", "IMPL", "CUDA")
    # An op is a forward and a backward; only the CPU's own have no CUDA kernel.
    without = {op.kernel for op in binding.OPS if getattr(op, "why_cpu_only", "")}
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        short = name.removeprefix("chimed::")
        is_there = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        if short != name and short not in without and not is_there:
            library.impl(short, _never)
    _held.append(library)


_held: list[Any] = []  # a registration lasts as long as its library


def _never(*_: Any) -> Any:
    raise AssertionError("a kernel was called on a tensor that is not fake")


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer


class _Stream:
    """A stream or an event, on which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def _do_nothing(self, *_: Any, **__: Any) -> "_Stream":
        return self

    wait_stream = wait_event = record_event = record = wait = _do_nothing

    def query(self) -> bool:
        """Whether all work is done."""
        return True


@contextlib.contextmanager
def _in_stream(stream: Any) -> Any:
    yield stream
