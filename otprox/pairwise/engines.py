"""Which engine sums over all pairs: dense, tiled or KeOps; the choice, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from .tiles import TILE

Engine = Literal["auto", "dense", "tiled", "keops"]

LIMIT = {"cpu": 1 << 31, "cuda": 1 << 34}  # bytes that "dense" may hold
KEOPS_PAIRS, KEOPS_DIM = 10**9, 16  # on a GPU "auto" takes KeOps from here on, up to this dimension


@dataclass(frozen=True)
class Choice:
    """An engine, why it was taken, and the bytes of its largest tensor of pairs."""

    engine: str
    why: str
    memory: int

    def __str__(self) -> str:
        return f"{self.engine}: {self.why}; {_size(self.memory)} for pairs"


def choose(x: Tensor, y: Tensor, engine: str = "auto", *, formula: bool = True) -> Choice:
    """The engine for points x (*batch, m, d) and y (*batch, n, d); `formula`: whether the kernel has one for KeOps.

    "auto" is "dense" when all pairs fit in one tile; on a GPU KeOps when it is installed, from 10⁹ pairs and up to 16
    dimensions; "tiled" otherwise. "dense" is refused where the pairs would not fit in memory.
    """
    if engine not in ("auto", "dense", "tiled", "keops"):
        raise ValueError(f"engine must be 'auto', 'dense', 'tiled' or 'keops', not {engine!r}")
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]).numel()
    m, n, d = x.shape[-2], y.shape[-2], x.shape[-1]
    pairs, device = batch * m * n, x.device.type
    tile = min(pairs, TILE.get(device, TILE["cpu"]))
    if engine == "keops":
        return _keops(formula)
    if engine == "dense":
        return _dense(pairs, tile, x)
    if engine == "tiled":
        return Choice("tiled", "asked for", tile * x.element_size())
    if pairs <= tile:
        return Choice("dense", f"{pairs} pairs fit in one tile", pairs * x.element_size())
    if device == "cuda" and pairs >= KEOPS_PAIRS and d <= KEOPS_DIM and formula and find_spec("pykeops"):
        return Choice("keops", f"{pairs:.1e} pairs in dimension {d} on a GPU", 0)
    return Choice("tiled", f"{pairs:.1e} pairs on {device}", tile * x.element_size())


def _keops(formula: bool) -> Choice:
    if not formula:
        raise ValueError("engine='keops' has no formula for this kernel or domain; engine='tiled' serves every one")
    if not find_spec("pykeops"):
        raise ImportError("engine='keops' needs pykeops: pip install 'otprox[keops]'; engine='tiled' needs nothing")
    return Choice("keops", "asked for", 0)


def _dense(pairs: int, tile: int, x: Tensor) -> Choice:
    memory, limit = pairs * x.element_size(), LIMIT.get(x.device.type, LIMIT["cpu"])
    if memory > limit:
        raise ValueError(
            f"engine='dense' would hold {pairs:.2e} pairs, {_size(memory)} where {_size(limit)} is the limit; "
            f"engine='tiled' needs {_size(tile * x.element_size())}"
        )
    return Choice("dense", "asked for", memory)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
