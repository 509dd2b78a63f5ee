"""Implicit steps of a Density as convex programs over plans between its cells: all pairs, or few that are certified."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..functionals.atom import Atom
from ..measures import Density, Grid, Measure
from ..measures.covariance import dense
from ..metrics import Entropic, Wasserstein
from .programs import Program, Solution, entropic_program, numbers, structure, transport_program
from .sparse_plan import Certified, Settings, certified_plans

Energy = Callable[[Density], list[Atom]]  # the atoms of F on a density


FROZEN = 1.5  # cells of motion below which a step between the centres of cells is known to stick


class FrozenWarning(UserWarning):
    """The step moved mass by about a cell or less: between the centres of cells it freezes, or does in part."""


class Compiler(Protocol):
    """What keeps compiled programs, and solves them."""

    def program(self, key: Hashable, make: Callable[[], Program]) -> Program: ...

    def solve(self, program: Program, values: Sequence[Any]) -> Solution: ...


class Found(NamedTuple):
    """What programs found for a batch: the measure, distances (*batch,) and plans."""

    mu: Measure
    solutions: list[Solution]
    distance2: Tensor
    plan: Tensor | None = None


def over_few_pairs(settings: Settings, energy: Energy, metric: Wasserstein, mu: Density, tau: float) -> Found:
    """F + W2²/(2·tau) over sparse plans, each certified; `plan` is a sparse tensor, (*batch, n, n)."""
    masses = _masses(mu)
    precision = _precision(metric, mu)
    found = certified_plans(mu, energy, precision / (2 * tau), settings)
    flows = [one.flow(m) for one, m in zip(found, masses, strict=True)]
    new = torch.zeros_like(masses)
    for item, one, flow in zip(new, found, flows, strict=True):
        item.index_add_(0, one.pairs.new, flow)
    distance2 = 2 * tau * torch.stack([one.cost @ p for one, p in zip(found, flows, strict=True)])
    _warn_if_frozen(distance2, precision, mu)
    return Found(
        _density(new, mu),
        [one.solution for one in found],
        distance2.to(mu.anchor).reshape(mu.batch),
        _sparse(found, flows, mu),
    )


def over_all_pairs(compiler: Compiler, energy: Energy, metric: Wasserstein, mu: Density, tau: float) -> Found:
    """F + W2²/(2·tau) over all plans, by a program that is compiled once."""
    q, components = _components(metric, mu)
    masses, atoms = _masses(mu), energy(mu)
    key = (Density, mu.grid, q.shape[-1], structure(atoms))
    program = compiler.program(key, lambda: transport_program(mu, components, atoms))
    weights = (q[:, :, None] * masses[:, None, :] / (2 * tau)).flatten(-2)
    own = [[m.numpy(), w.numpy()] for m, w in zip(masses, weights, strict=True)]
    solutions = [compiler.solve(program, [*o, *numbers(atoms, len(own), i)]) for i, o in enumerate(own)]
    plan, distance2 = _read(solutions, masses, q, components)
    _warn_if_frozen(distance2, _precision(metric, mu), mu)
    return _dense_found(solutions, plan, distance2, mu)


def entropic(compiler: Compiler, energy: Energy, metric: Entropic, base: Wasserstein, mu: Density) -> Found:
    """(2·tau·F + OT)/reg, its energy scaled so by the caller: the entropy of the plan has weight 1."""
    q, components = _components(base, mu)
    masses, atoms = _masses(mu), energy(mu)
    key = (Density, mu.grid, metric.reference, q.shape[-1], structure(atoms))
    program = compiler.program(key, lambda: entropic_program(mu, components, atoms, metric.reference))
    own = [[m.numpy(), w.numpy()] for m, w in zip(masses, q / metric.reg, strict=True)]
    solutions = [compiler.solve(program, [*o, *numbers(atoms, len(own), i)]) for i, o in enumerate(own)]
    plan, cost = _read(solutions, masses, q, components)
    return _dense_found(solutions, plan, cost + metric.reg * _plan_entropy(plan, metric, mu.grid.volume), mu)


def _read(solutions: list[Solution], masses: Tensor, q: Tensor, components: Tensor) -> tuple[Tensor, Tensor]:
    """Plans (items, n, n) with the old masses exactly, from kernels or plans; and their costs (items,)."""
    kernel = torch.stack([torch.as_tensor(s.plan) for s in solutions]).clamp_min(0)
    plan = kernel / kernel.sum(-2, keepdim=True).clamp_min(1e-300) * masses[:, None, :]
    return plan, ((q[:, :, None, None] * components).sum(1) * plan).sum((-2, -1))


def _dense_found(solutions: list[Solution], plan: Tensor, distance2: Tensor, mu: Density) -> Found:
    shape = (*mu.batch, *plan.shape[1:])
    mu_new = _density(plan.sum(-1), mu)
    return Found(mu_new, solutions, distance2.to(mu.anchor).reshape(mu.batch), plan.to(mu.anchor).reshape(shape))


def _density(new: Tensor, mu: Density) -> Density:
    values = new / (new.sum(-1, keepdim=True) * mu.grid.volume)
    return mu.with_state(values=values.to(mu.anchor).reshape(mu.values.shape))


def _sparse(found: list[Certified], flows: list[Tensor], mu: Density) -> Tensor:
    n = mu.grid.n
    items = torch.arange(len(found)).repeat_interleave(torch.tensor([len(f) for f in flows]))
    batch = torch.unravel_index(items, mu.batch) if mu.batch else ()
    new, old = (torch.cat([f.pairs[k] for f in found]) for k in (0, 1))
    where = torch.stack([*batch, new, old])
    plan = torch.sparse_coo_tensor(where, torch.cat(flows), (*mu.batch, n, n), check_invariants=False)
    return plan.to(mu.anchor).coalesce()


def _masses(mu: Density) -> Tensor:
    """(items, n) in float64 on the CPU."""
    return mu.masses.detach().reshape(-1, mu.grid.n).double().cpu()


def _precision(metric: Wasserstein, mu: Density) -> Tensor:
    """Q⁻¹ (items, d, d) in float64 on the CPU."""
    P = torch.linalg.inv(dense(metric.mobility(mu)).detach().double().cpu())
    return P.expand(*mu.batch, mu.dim, mu.dim).reshape(-1, mu.dim, mu.dim)


def _components(metric: Wasserstein, mu: Density) -> tuple[Tensor, Tensor]:
    """q (items, k) and Z (k, n, n) with cost Σ_a q_a Z_a between cell centres, in float64 on the CPU."""
    x = mu.grid.points(mu.values.detach()).double().cpu()
    z = mu.grid.displacement(x[:, None], x[None])
    if metric.Q is None:
        return z.new_ones(mu.batch.numel(), 1), z.square().sum(-1)[None]
    a, b = torch.triu_indices(mu.dim, mu.dim)
    q = _precision(metric, mu)[:, a, b] * torch.where(a == b, 1.0, 2.0)
    return q, (z[..., a] * z[..., b]).movedim(-1, 0)


def _plan_entropy(plan: Tensor, metric: Entropic, volume: float) -> Tensor:
    """∫π log π of the density π = plan/volume², or KL of the plan relative to its marginals."""
    joint = torch.special.xlogy(plan, plan).sum((-2, -1))
    if metric.reference == "lebesgue":
        return joint - 2 * math.log(volume)
    new, old = plan.sum(-1), plan.sum(-2)
    return joint - torch.special.xlogy(new, new).sum(-1) - torch.special.xlogy(old, old).sum(-1)


def _nearest(precision: Tensor, grid: Grid) -> Tensor:
    """The least cost between two cells, (items,); infinite on a grid of one."""
    ways = [range(-1, 2) if n > 1 else (0,) for n in grid.shape]
    z = precision.new_tensor([way for way in product(*ways) if any(way)]).reshape(-1, grid.dim)
    z = z * precision.new_tensor(grid.spacing)
    cost = ((z @ precision) * z).sum(-1)
    return torch.cat([cost, torch.full_like(precision[:, :1, 0], torch.inf)], -1).amin(-1)


def _warn_if_frozen(distance2: Tensor, precision: Tensor, mu: Density) -> None:
    """Below half a cell nothing moves; up to about one and a half, some of what should move stays where it is."""
    nearest = _nearest(precision, mu.grid)
    moved = (distance2 / nearest).sqrt()
    if not torch.isfinite(nearest).all() or not (moved < FROZEN).any():
        return
    least = moved.min().item()
    harm = "less than half a cell: it freezes there" if least < 0.5 else "and some of it too little: it freezes in part"
    axes = bool((precision - torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1))).any())
    warnings.warn(
        f"the step moves mass by {least:.3g} cells (root mean square), {harm}, since the exact step between the "
        "centres of cells moves by whole cells. Take larger steps or a finer grid, or what does not freeze: "
        f"Kantorovich where F allows{' (on a grid along the principal axes of Q)' if axes else ''}, Entropic(reg), "
        "Particles, or Quantiles in 1-D",
        FrozenWarning,
        stacklevel=5,
    )
