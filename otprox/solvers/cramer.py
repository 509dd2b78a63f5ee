"""The exact implicit step of the energy distance on the line, quantile by quantile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional, Interaction, Potential
from ..functionals.line_embedding import LineEmbedding, energy_factor
from ..measures import Measure, Particles, Quantiles
from ..metrics import Metric, Wasserstein
from .base import Out, check_positive, exact, require


@dataclass(frozen=True)
class Cramer:
    """The prox of a·½∬ −|x − y| dμdμ + b·∫|x − y| dμdν on the line, b·MMD(Energy(), ν) where a = b, in closed form:

        X' + tau·Q·(2b·F_ν(X') − b − a(2q − 1)) = X,  for a = b:  X' + 2b·tau·Q·(F_ν(X') − q) = X,

    for the quantile X at level q. On the line W2 and the repulsion are flat and linear in the quantiles, so every
    quantile has a scalar equation of its own, increasing in X'; F_ν may jump, and a quantile then rests on the atom.
    Levels are those of the sorted particles, (i + ½)/n for equal weights: particles at one place are spread, but none
    is split. Atoms and cells cost a sort of the target once and a search a step; a Gaussian target, Newton's method.

    ½MMD² with k = −|x − y| is the squared distance ∫(F_μ − F_ν)² of Cramér. Results are constants to autograd.
    """

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Quantiles | Particles) or mu.dim != 1:
            return f"it works on Quantiles, and Particles on the line, not on {type(mu).__name__} in {mu.dim}-D"
        if isinstance(mu, Particles) and not isinstance(mu.domain, Euclidean):
            return f"particles on {mu.domain} are not on the line: it needs Euclidean()"
        if not isinstance(metric, Wasserstein):
            return f"it works in Wasserstein, not in {type(metric).__name__}"
        parts = _parts(F)
        if isinstance(parts, str):
            return parts
        if parts.own < 0 or parts.pull < 0:
            return "a negative multiple of the energy distance has no implicit step quantile by quantile"
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_positive(tau)
        parts = _parts(F)
        assert not isinstance(parts, str) and isinstance(mu, Quantiles | Particles)
        Q = metric.mobility(mu)[..., 0].double()  # type: ignore[attr-defined]
        with torch.no_grad():
            x, w, order = _sorted(mu)
            twice = 2 * w.cumsum(-1) - w - 1  # 2q − 1
            z = x + tau * Q * (parts.pull + parts.own * twice)
            if parts.pull:
                z = parts.embedding.resolvent(z, 2 * tau * parts.pull * Q)
            distance2 = (w * (z - x).square()).sum(-1) / Q[..., 0]
            energy = -parts.own * (w * twice * z).sum(-1)
            for c, f in parts.potentials:
                energy = energy + c * (w * f.value(z.to(mu.x)[..., None]).double()).sum(-1)
            new = (z if order is None else torch.empty_like(z).scatter_(-1, order, z)).to(mu.x)[..., None]
        moved = mu.with_state(x=new, log_density=None) if isinstance(mu, Particles) else mu.with_state(x=new)
        objective = energy + distance2 / (2 * tau)
        return Out(moved, exact(mu, objective.to(mu.x), distance2.to(mu.x)))


def _sorted(mu: Quantiles | Particles) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions in order, their weights, and the permutation that sorts them, None where they come sorted."""
    x, w = mu.x[..., 0].double(), mu.w.double()
    if isinstance(mu, Quantiles):
        return x, w, None
    x, order = x.sort(-1)
    return x, w.gather(-1, order), order


@dataclass(frozen=True, eq=False)
class _Parts:
    """a, b, and the potentials that b comes from, all of one target."""

    own: float
    pull: float
    embedding: LineEmbedding
    potentials: tuple[tuple[float, Potential], ...]


def _parts(F: Functional) -> _Parts | str:
    """F taken apart, or why it is no energy distance to one target."""
    try:
        terms = F.terms
    except TypeError as error:
        return str(error)
    own, potentials, found = 0.0, [], []
    for c, f in terms:
        if isinstance(f, Interaction) and energy_factor(f.W) is not None:
            own += c * energy_factor(f.W)  # type: ignore[operator]
        elif isinstance(f, Potential) and isinstance(f.V, LineEmbedding):
            potentials.append((c, f))
            found.append(f.V)
        else:
            return f"{type(f).__name__} is not a term of MMD(Energy(), target) with a target on the line"
    if len({id(V.target) for V in found}) != 1:
        return f"it takes the energy distance to one target, not to {len(found)}"
    return _Parts(
        own, sum(c * V.factor for (c, _), V in zip(potentials, found, strict=True)), found[0], tuple(potentials)
    )
