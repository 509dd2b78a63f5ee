"""What would work where no solver takes an implicit step: changes of one noun, each tried before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..functionals import Blob, Entropy, Functional
from ..functionals.base import Sum
from ..functionals.constraint import Constraint
from ..measures import Density, Grid, Measure, Particles, Quantiles
from ..measures.covariance import dense
from ..metrics import Entropic, Metric, Wasserstein
from .base import Solver
from .gaussian_map import GaussianMap

Find = Callable[[Functional, Metric, Measure], Solver | None]


def suggestions(F: Functional, metric: Metric, mu: Measure, find: Find) -> list[str]:
    """The changes with which `find` has a solver, in words, with its name; none when no single change is enough."""

    def named(words: str, F: Functional, metric: Metric, mu: Measure) -> Iterator[str]:
        try:
            solver = find(F, metric, mu)
        except (TypeError, ValueError, RuntimeError):  # the functional belongs to the representation that it had
            return
        if solver is not None:
            yield f"{words}, by {type(solver).__name__}"

    found: list[str] = []
    for words, other in _axes(metric, mu):
        found += named(words, F, other, mu)
    for part, rest in _splits(F, mu):
        found += named(f"a splitting, Forward({part}) >> Backward({rest})", rest, metric, mu)
    for words, energy in _energies(F, mu):
        found += named(words, energy, metric, mu)
    for words, measure in _measures(mu):
        found += named(words, F, metric, measure)
    for words, other in _metrics(metric):
        found += named(words, F, other, mu)
    if isinstance(mu, Particles) and GaussianMap().supports(F, metric, mu) is None:
        found.append("solver=GaussianMap(), which moves them by affine maps")
    return found + _noise(F, metric, mu)


def _axes(metric: Metric, mu: Measure) -> Iterator[tuple[str, Metric]]:
    """The metric in coordinates in which it is diagonal, for a grid."""
    base = metric.base if isinstance(metric, Entropic) else metric
    if not isinstance(mu, Density) or not isinstance(base, Wasserstein) or base.Q is None:
        return
    Q = dense(base.Q)
    if Q.ndim > 2 or not bool((Q - torch.diag(Q.diagonal())).any()):
        return
    diagonal = Wasserstein(torch.diag(torch.linalg.eigvalsh(Q)))
    words = "a grid along the principal axes of Q, where it is diagonal (torch.linalg.eigh, or C.principal())"
    yield words, Entropic(metric.reg, metric.reference, diagonal) if isinstance(metric, Entropic) else diagonal


def _splits(F: Functional, mu: Measure) -> Iterator[tuple[Functional, Functional]]:
    """A smooth term and the rest."""
    for i, (c, f) in enumerate(F.terms):
        others = [k * g for j, (k, g) in enumerate(F.terms) if j != i]
        if others and not isinstance(f, Constraint) and _explicit(f, mu):
            yield c * f, Sum(tuple(others)) if len(others) > 1 else others[0]


def _energies(F: Functional, mu: Measure) -> Iterator[tuple[str, Functional]]:
    """Entropy in a form that particles have."""
    if isinstance(mu, Particles) and any(isinstance(f, Entropy) for _, f in F.terms):
        yield (
            "Blob(width) instead of Entropy",
            Sum(tuple(c * (Blob(1.0) if isinstance(f, Entropy) else f) for c, f in F.terms)),
        )


def _noise(F: Functional, metric: Metric, mu: Measure) -> list[str]:
    """Particles diffuse without an implicit step."""
    weight = sum(c for c, f in F.terms if isinstance(f, Entropy))
    rest = [c * f for c, f in F.terms if not isinstance(f, Entropy)]
    if not isinstance(mu, Particles) or not isinstance(metric, Wasserstein) or not weight > 0:
        return []
    if not all(_explicit(f, mu) for f in rest):
        return []
    explicit = f"Forward({Sum(tuple(rest)) if len(rest) > 1 else rest[0]}) >> " if rest else ""
    return [f"no implicit step, {explicit}Heat({weight:g}, generator=rng)"]


def _explicit(f: Functional, mu: Measure) -> bool:
    """Whether f has an explicit step that does not ask for a density's score: potentials and interactions."""
    try:
        return bool((f.diffusivity(mu) == 0).all())
    except (NotImplementedError, TypeError):
        return False


def _metrics(metric: Metric) -> Iterator[tuple[str, Metric]]:
    if isinstance(metric, Entropic):
        for reference in ("lebesgue", "debiased", "product"):
            if reference != metric.reference:
                yield f'the reference "{reference}"', Entropic(metric.reg, reference, metric.base)
        yield "the metric Wasserstein()", metric.base
        return
    if isinstance(metric, Wasserstein):
        yield "the metric Entropic(reg)", Entropic(1.0, base=metric)
        yield 'the metric Entropic(reg, "debiased")', Entropic(1.0, "debiased", metric)
        return
    yield "the metric Wasserstein()", Wasserstein()


def _measures(mu: Measure) -> Iterator[tuple[str, Measure]]:
    """A small one of each of the other representations."""
    line = torch.arange(4).to(mu.anchor)
    if mu.dim == 1 and not isinstance(mu, Quantiles):
        yield "Quantiles.of(mu, n)", Quantiles(line)
    if not isinstance(mu, Particles):
        cloud = Particles(torch.stack([line ** (a + 1) for a in range(mu.dim)], -1))
        yield "Particles", cloud
        yield "Particles with a log_density", cloud.with_state(log_density=torch.zeros_like(cloud.w))
    elif mu.log_density is None:
        yield "Particles(x, log_density=…)", mu.with_state(log_density=torch.zeros_like(mu.w))
    if not isinstance(mu, Density) and mu.dim <= 3:
        grid = Grid((0.0,) * mu.dim, (1.0,) * mu.dim, (2,) * mu.dim)
        yield "a Density on a Grid", Density(torch.ones(grid.shape).to(mu.anchor), grid)
