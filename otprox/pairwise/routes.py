"""Which route answers for a kernel."""

from __future__ import annotations

from torch import Tensor

from ..domains import Domain
from ..kernels import Bilinear, Combination, Kernel, Radial, Rescaled, Weighted
from ..kernels.weighted import slope_of
from .engines import choose
from .generic import GenericSums
from .keops import has_formula
from .moments import BilinearSums
from .radial_sums import RadialSums
from .sums import CombinedSums, Sums
from .weighted import RescaledSums, WeightedSums


def route(k: Kernel, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    """Moments, the parts of a combination, matrix products of a radial kernel, or the matrix of any other."""
    if isinstance(k, Combination):
        return CombinedSums(tuple((c, route(part, x, y, domain, engine)) for c, part in k.terms))
    if isinstance(k, Weighted):
        return _weighted(k, x, y, domain, engine)
    if isinstance(k, Bilinear) and domain.straight:
        return BilinearSums(x, y)
    if isinstance(k, Rescaled) and domain.straight:
        z = k.shrunk(x)
        return RescaledSums(route(k.k, z, z if x is y else k.shrunk(y), domain, engine), k.h[..., None, None])
    if isinstance(k, Radial) and domain.straight:
        return RadialSums(k, x, y, choose(x, y, engine, formula=has_formula(k)).engine)
    choose(x, y, engine, formula=False)
    return GenericSums(k, x, y, domain)


def _weighted(k: Weighted, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    a, p = k.weight(x)[..., None], slope_of(k.log_weight, x)[1]
    b, q = (a, p) if x is y else (k.weight(y)[..., None], slope_of(k.log_weight, y)[1])
    return WeightedSums(route(k.k, x, y, domain, engine), a, b, p, q)
