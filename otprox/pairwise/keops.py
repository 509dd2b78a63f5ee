"""A radial sum by KeOps: one formula for each kernel, order and dimension, compiled at its first use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import RBF, Energy, InverseMultiquadric, Laplace, Radial, RadialCombination
from .terms import Term


def has_formula(k: object) -> bool:
    """Whether KeOps can sum this kernel."""
    if isinstance(k, RadialCombination):
        return all(has_formula(part) for _, part in k.terms)
    return isinstance(k, RBF | Laplace | InverseMultiquadric | Energy)


def keops_sum(k: Radial, x: Tensor, y: Tensor, terms: Sequence[Term]) -> Tensor:
    """The sum of the terms, (m, p), for x (m, d) and y (n, d); no batches. Numbers are parameters of the formula, so
    another width compiles nothing."""
    from pykeops.torch import LazyTensor

    z = LazyTensor(x[:, None].contiguous()) - LazyTensor(y[None].contiguous())
    s = (z**2).sum(-1)
    total = None
    for t in terms:
        weights = _formula(k, s, t.order)
        for u, v in t.factors:
            weights = weights * (LazyTensor(u[:, None].contiguous()) | LazyTensor(v[None].contiguous()))
        for part in _sources(t, z, LazyTensor):
            summed = (weights * part).sum(dim=1)
            total = summed if total is None else total + summed
    assert total is not None
    return total


def keops_collisions(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    """Σ_j w_j |z|^{γ+2}(I − ẑẑᵀ)(u_i − v_j), (*batch, m, d), item by item. Pairs at one place count 0."""
    from pykeops.torch import Genred

    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x, u, y, v)), w.shape[:-1])
    if batch:
        given = [t.expand(*batch, *t.shape[-2:]).flatten(0, -3) for t in (x, u, y, v, w[..., None])]
        items = [keops_collisions(x, u, y, v, w[:, 0], gamma) for x, u, y, v, w in zip(*given, strict=True)]
        return torch.stack(items).unflatten(0, batch)
    d, s, r = x.shape[-1], "SqDist(x, y)", "Rsqrt(SqDist(x, y))"
    ready = {-3.0: r, -2.0: "IntCst(1)", -1.0: f"Sqrt({s})"}
    power = ready.get(gamma, f"Exp(p*Log({r if gamma < -2 else s}))")  # 0 at 0, as KeOps has 1/√0 = 0
    exponent = x.new_tensor([-gamma - 2 if gamma < -2 else gamma / 2 + 1])
    aliases = [f"x = Vi({d})", f"u = Vi({d})", f"y = Vj({d})", f"v = Vj({d})", "w = Vj(1)", "p = Pm(1)"]
    formula = f"w*{power}*((u - v) - (((x - y)|(u - v))*Square({r}))*(x - y))"
    sums = Genred(formula, aliases, reduction_op="Sum", axis=1)
    return sums(*(t.contiguous() for t in (x, u, y, v, w[:, None])), exponent)


def _sources(t: Term, z: Any, lazy: Any) -> list[Any]:
    c = [] if t.c is None else [lazy(t.c[None].contiguous())]
    return c if t.b is None else [*c, lazy(t.b[None].contiguous()) * z]


def _formula(k: Any, s: Any, order: int) -> Any:
    """f^(order)(s), with KeOps's 1/√0 = 0."""
    if isinstance(k, RadialCombination):
        first, *rest = [c * _formula(part, s, order) for c, part in k.terms]
        return sum(rest, first)
    if isinstance(k, RBF):
        return (s * k.rate).exp() * k.rate**order
    if isinstance(k, InverseMultiquadric):
        scale = math.prod(-(0.5 + q) / k.h**2 for q in range(order))
        return scale * (1 + s * k.h**-2).rsqrt() ** (2 * order + 1)
    if isinstance(k, Energy):
        scale = -math.prod(0.5 - q for q in range(order))
        return scale * (s.rsqrt() ** (2 * order - 1) if order else s.sqrt())
    root = s.sqrt()
    decay = (root * (-1 / k.h)).exp()
    if order == 0:
        return decay
    scale = (-0.5 / k.h**2) ** order * k.h ** (2 * order - 1)
    before: Any = 1.0
    theta: Any = 1.0 + (root * (1 / k.h) if order > 1 else 0.0)
    for n in range(2, order):
        before, theta = theta, (2 * n - 1) * theta + s * k.h**-2 * before
    return scale * (decay * s.rsqrt() ** (2 * order - 1)) * theta
