"""The largest tensor that a computation makes, for tests of memory."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor made, in forward and backward."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.untyped_storage().nbytes():
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return out
