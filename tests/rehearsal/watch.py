"""What a step asks of the device, seen op by op: waits of the host, mixed devices, dense masks.

Fake tensors have no values, so where the host asks for one, this gives a plausible one.
"""

import sys
from collections import Counter
from typing import Any

import torch
from torch._C._distributed_c10d import FakeWork
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CANDIDATES = 4  # what a search on the device finds
ROOTS = {"megatron_chimed/": "", "megatron/core/": "megatron.core/"}


class Watch(TorchDispatchMode):
    """Counts by the line of ours or of megatron-core that asked; enter it inside a fake world.

    Args:
        seq_length: s; tensors [.., s, s] are reported.

    Attributes:
        waits: Copies to the host and results whose shape the device knows: each waits for it.
        uploads: Copies from the host, which waits until pageable memory is read.
        dense: Tensors [.., s, s]: masks and scores.
        ops: Ops on the device.
    """

    def __init__(self, seq_length: int) -> None:
        super().__init__()
        self.seq_length = seq_length
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.dense: Counter[str] = Counter()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one op."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in given if x.device.type == "cuda"]
        self.ops += bool(on_device)
        if func.namespace == "c10d":
            return _communicate(func, args, given)
        if func.namespace == "chimed":
            _require_one_device(func, given)
        if func is aten._local_scalar_dense.default:
            return self._value(args[0])
        if func.namespace == "aten" and torch.is_inference_mode_enabled():
            # Composite ops arrive whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        found = _search(func, args, kwargs)
        if found is not None:
            if on_device:
                self.waits[_asker(func)] += 1
            return found
        result = func(*args, **kwargs)
        is_result = isinstance(result, torch.Tensor) and result.device.type == "cuda"
        if is_result and any(x.device.type == "cpu" and x.dim() for x in given):
            self.uploads[_asker(func)] += 1
        if on_device:
            self._look_at(func, result)
        return result

    def synchronize(self, *_: Any, **__: Any) -> None:
        """Takes the place of `torch.cuda.synchronize`."""
        self.waits[_asker("synchronize")] += 1

    def _value(self, tensor: torch.Tensor) -> Any:
        if tensor.device.type == "cuda":
            self.waits[_asker(aten._local_scalar_dense.default)] += 1
        else:
            constant = getattr(tensor, "constant", tensor)
            if constant is not None and type(constant) is torch.Tensor:
                with torch.utils._python_dispatch._disable_current_modes():
                    return constant.item()
        return True if tensor.dtype == torch.bool else 1 if not tensor.is_floating_point() else 1.0

    def _look_at(self, func: Any, result: Any) -> None:
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor):
                continue
            if x.device.type == "cpu" and func is not aten.detach.default:
                self.waits[_asker(func)] += 1
            if x.shape[-2:] == (self.seq_length, self.seq_length):
                self.dense[_asker(func)] += 1


def _require_one_device(func: Any, given: list[torch.Tensor]) -> None:
    """Fake tensors check torch's ops; the fakes of ours only read shapes."""
    devices = {x.device for x in given}
    if len(devices) > 1:
        raise RuntimeError(f"{func} got tensors on {sorted(map(str, devices))}")


def _communicate(func: Any, args: Any, given: list[torch.Tensor]) -> Any:
    """What a collective returns, its first argument and a handle, without any communication."""
    on_host = [x for x in given if x.device.type != "cuda"]
    if on_host:
        raise RuntimeError(f"{func} got {len(on_host)} tensors on the host, which NCCL refuses")
    work = FakeWork().boxed()
    return work if len(func._schema.returns) == 1 else (args[0], work)


def _search(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an op whose shape depends on values, or None."""
    if func is aten.nonzero.default:
        return args[0].new_empty((CANDIDATES, args[0].dim()), dtype=torch.int64)
    if func is aten.bincount.default:
        length = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
        return args[0].new_empty((length or CANDIDATES,), dtype=torch.int64)
    if func is aten.unique_consecutive.default:
        x = args[0]
        counts = x.new_empty((2,), dtype=torch.int64)
        half = x.numel() // 2
        counts.tolist = lambda: [half, x.numel() - half]
        return x.new_empty((2,)), x.new_empty((0,), dtype=torch.int64), counts
    return None


def _asker(func: Any) -> str:
    """The innermost line of ours or of megatron-core on the stack, as `file:function: op`."""
    frame = sys._getframe(2)
    what = func if isinstance(func, str) else func.overloadpacket.__name__
    while frame is not None:
        code = frame.f_code
        root = next((root for root in ROOTS if root in code.co_filename), None)
        if root and not code.co_name.startswith("<"):  # a comprehension: its function is next
            where = code.co_filename.rpartition(root)[2]
            return f"{ROOTS[root]}{where}:{code.co_name}: {what}"
        frame = frame.f_back
    return f"?: {what}"
