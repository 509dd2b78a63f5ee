"""Which route answers for a kernel."""

from __future__ import annotations

from torch import Tensor

from ..domains import Domain, Euclidean
from ..kernels import (
    Bilinear,
    Combination,
    Energy,
    Expected,
    Kernel,
    Laplace,
    Radial,
    RadialCombination,
    RandomBatch,
    Rescaled,
    Riesz,
    Sliced,
    Stationary,
    StationaryCombination,
    Weighted,
)
from ..kernels.torus import Trigonometric
from ..kernels.weighted import slope_of
from .batches import BatchSums
from .engines import Engine, choose
from .features import FeatureSums
from .fourier import FourierSums
from .generic import GenericSums
from .keops import has_formula
from .moments import BilinearSums, SquareSums
from .radial_sums import RadialSums
from .slicing import SlicedSums
from .sorting import DecaySums, DistanceSums
from .sums import CombinedSums, Sums
from .weighted import RescaledSums, WeightedSums


def route(k: Kernel, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    """Moments, the parts of a combination, matrix products of a radial kernel, or the matrix of any other."""
    if isinstance(k, Stationary):
        k.check_domain(domain)
    if isinstance(k, RandomBatch):
        return _batched(k, x, y, domain, engine)
    if isinstance(k, Combination | StationaryCombination):
        return CombinedSums(tuple((c, route(part, x, y, domain, engine)) for c, part in k.terms))
    if isinstance(k, Weighted):
        return _weighted(k, x, y, domain, engine)
    if isinstance(k, Bilinear) and domain.straight:
        return BilinearSums(x, y)
    if isinstance(k, Expected) and domain.straight:
        return FeatureSums(k, x, y, GenericSums(k, x, y, domain))
    if isinstance(k, Rescaled) and domain.straight:
        z = k.shrunk(x)
        return RescaledSums(route(k.k, z, z if x is y else k.shrunk(y), domain, engine), k.lengths(x))
    if isinstance(k, Trigonometric):
        return FourierSums(k, x, y)
    if isinstance(k, Riesz) and k.r == 2 and domain.straight and engine == "auto":
        return SquareSums.of(x, y)
    if isinstance(k, Sliced) and domain.straight:
        return SlicedSums(k, x, y)
    if engine == "auto" and domain.straight and x.shape[-1] == 1:
        sorted_ = _sorted(k, x, y)
        if sorted_ is not None:
            return sorted_
    if isinstance(k, Radial) and domain.straight:
        return RadialSums(k, x, y, choose(x, y, engine, formula=has_formula(k)))
    choose(x, y, engine, formula=False)
    return GenericSums(k, x, y, domain)


def explain(
    k: Kernel, x: Tensor, y: Tensor | None = None, *, domain: Domain | None = None, engine: Engine = "auto"
) -> str:
    """The route and the engine that sums of k take, why, and what they cost; y is x unless given.

    >>> import torch
    >>> from otprox.kernels import RBF, Energy
    >>> x = torch.zeros(3000, 1)
    >>> explain(Energy(), x)
    'sorting: O((m + n)·log n)'
    >>> explain(RBF(1.0), x.double())
    'tiled: 9.0e+06 pairs on cpu; 2.1 MB for pairs'
    """
    y = x if y is None else y
    return route(k.fit(y), x, y, domain or Euclidean(), engine).how


def _batched(k: RandomBatch, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    if not isinstance(k.W, Kernel):
        raise TypeError("RandomBatch of a plain function has convolutions only; give it a kernel, such as RBF(1.0)")
    W = k.W
    return BatchSums(k, x, lambda z: route(W, z, z, domain, engine)) if x is y else route(W, x, y, domain, engine)


def _sorted(k: Kernel, x: Tensor, y: Tensor) -> Sums | None:
    """Sums on the line by sorting; of a combination the parts that can, and the others together."""
    if isinstance(k, Laplace):
        return DecaySums(x, y, k.h)
    if isinstance(k, Energy):
        return DistanceSums(x, y)
    if not isinstance(k, RadialCombination):
        return None
    parts = [(c, _sorted(part, x, y)) for c, part in k.terms]
    found = [(c, sums) for c, sums in parts if sums is not None]
    others = [term for term, (_, sums) in zip(k.terms, parts, strict=True) if sums is None]
    if found and others:
        rest = RadialCombination(tuple(others))
        found.append((1.0, RadialSums(rest, x, y, choose(x, y, formula=has_formula(rest)))))
    return CombinedSums(tuple(found)) if found else None


def _weighted(k: Weighted, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    a, p = k.weight(x)[..., None], slope_of(k.log_weight, x)[1]
    b, q = (a, p) if x is y else (k.weight(y)[..., None], slope_of(k.log_weight, y)[1])
    return WeightedSums(route(k.k, x, y, domain, engine), a, b, p, q)
