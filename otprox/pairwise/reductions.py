"""Sums over all pairs of a kernel, of its slopes and mixed derivatives, and the sums of Stein."""

from __future__ import annotations

from torch import Tensor

from ..domains import Domain, Euclidean
from ..kernels import Kernel
from .engines import Engine
from .routes import route
from .sums import Sums


def kernel_sum(
    k: Kernel, x: Tensor, y: Tensor, b: Tensor, *, domain: Domain | None = None, engine: Engine = "auto"
) -> Tensor:
    """Σ_j k(x_i, y_j) b_j, (*batch, m) for b (*batch, n) and (*batch, m, p) for b (*batch, n, p), in the batch of y.

    >>> import torch
    >>> from otprox.kernels import RBF
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> kernel_sum(RBF(1.0), x, x, torch.ones(2))
    tensor([1.6065, 1.6065])
    """
    many = b.ndim == y.ndim
    _check(x, y, b if many else b[..., None], "b")
    out = _sums(k, x, y, domain, engine).values(b if many else b[..., None])
    return out if many else out[..., 0]


def gradient_sum(
    k: Kernel, x: Tensor, y: Tensor, b: Tensor, *, domain: Domain | None = None, engine: Engine = "auto"
) -> Tensor:
    """Σ_j b_j ∇₁k(x_i, y_j), (*batch, m, d), for b (*batch, n)."""
    _check(x, y, b[..., None], "b")
    return _sums(k, x, y, domain, engine).slopes(b[..., None])


def trace_sum(
    k: Kernel, x: Tensor, y: Tensor, b: Tensor, *, domain: Domain | None = None, engine: Engine = "auto"
) -> Tensor:
    """Σ_j b_j tr ∇₁∇₂k(x_i, y_j), (*batch, m), for b (*batch, n). k must be smooth at x = y."""
    _check(x, y, b[..., None], "b")
    return _sums(k, x, y, domain, engine).traces(b[..., None])[..., 0]


def divergence_sum(
    k: Kernel, x: Tensor, y: Tensor, v: Tensor, *, domain: Domain | None = None, engine: Engine = "auto"
) -> Tensor:
    """Σ_j ∇₁k(x_i, y_j)·v_j, (*batch, m), for v (*batch, n, d)."""
    _check(x, y, v, "v")
    return _sums(k, x, y, domain, engine).divergences(v)[..., 0]


def stein_sum(
    k: Kernel,
    x: Tensor,
    score: Tensor,
    w: Tensor | None = None,
    *,
    at: Tensor | None = None,
    domain: Domain | None = None,
    engine: Engine = "auto",
) -> Tensor:
    """Σ_j w_j [k(x_i, x_j) s_j + ∇₂k(x_i, x_j)], the velocity of SVGD, (*batch, n, d); weights 1/n unless given.

    `score` (*batch, n, d) is s_j = ∇log π(x_j), w is (*batch, n). `at` (*batch, m, d): points other than the x_i.

    Liu and Wang, "Stein variational gradient descent" (2016), equation (8).
    """
    _check(x, x, score, "score")
    b = x.new_full((x.shape[-2], 1), 1 / x.shape[-2]) if w is None else w[..., None]
    _check(x, x, b, "w")
    return _sums(k, x if at is None else at, x, domain, engine).stein(b * score, b)


def stein_discrepancy(
    k: Kernel,
    x: Tensor,
    score: Tensor,
    w: Tensor | None = None,
    *,
    domain: Domain | None = None,
    engine: Engine = "auto",
) -> Tensor:
    """KSD² = Σ_ij w_i w_j [s_i·s_j k + s_i·∇₂k + s_j·∇₁k + tr ∇₁∇₂k](x_i, x_j), (*batch,); as `stein_sum`.

    Pairs i = j count (the V-statistic). k must be smooth at x = y.

    Liu, Lee, Jordan, "A kernelized Stein discrepancy" (2016), definition 3.2.
    """
    _check(x, x, score, "score")
    b = x.new_full((x.shape[-2], 1), 1 / x.shape[-2]) if w is None else w[..., None]
    _check(x, x, b, "w")
    sums = _sums(k, x, x, domain, engine)
    drift = sums.stein(b * score, 2 * b)  # k is symmetric: the two mixed terms are equal
    return (b * ((score * drift).sum(-1, keepdim=True) + sums.traces(b))).sum((-2, -1))


def _sums(k: Kernel, x: Tensor, y: Tensor, domain: Domain | None, engine: str) -> Sums:
    if not isinstance(k, Kernel):
        raise TypeError(f"sums over pairs need a kernel such as kernels.RBF(1.0), not {k!r}; convolve takes functions")
    return route(k.fit(y), x, y, domain or Euclidean(), engine if y.shape[-2] else "dense")


def _check(x: Tensor, y: Tensor, b: Tensor, name: str) -> None:
    if not all(isinstance(t, Tensor) for t in (x, y, b)):
        raise TypeError(f"sums take tensors; torch.as_tensor makes one of points, sources and {name}")
    if not x.dtype == y.dtype == b.dtype or not x.is_floating_point():
        raise TypeError(f"sums need one floating dtype; points are {x.dtype}, sources {y.dtype}, {name} {b.dtype}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"points live in dimension {x.shape[-1]} and sources in {y.shape[-1]}")
    if b.shape[-2:-1] != y.shape[-2:-1]:
        raise ValueError(f"{name} needs one entry a source: {y.shape[-2]} of them, not {tuple(b.shape[:-1])}")
