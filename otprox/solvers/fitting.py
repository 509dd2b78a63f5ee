"""Fits of maps to particles: objectives of coefficients, and acceptance on particles that were held out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..functionals import Functional, Internal
from ..measures import Particles

Objective = Callable[[Tensor], Tensor]  # coefficients (items, K) -> values (items,)
HALVINGS = 6  # lengths 1, ½, ¼, … of a fitted map that are tried on the particles held out


def carries_entropy(F: Functional, mu: Particles) -> str | None:
    """None, or why a fit of maps cannot see the internal energies in F."""
    internal = [(c, f) for c, f in F.terms if isinstance(f, Internal)]
    if internal and mu.log_density is None:
        return (
            f"{type(internal[0][1]).__name__} needs the log-density of the particles: Particles(x, log_density=…), "
            "up to a constant for Entropy"
        )
    if any(c < 0 for c, _ in internal):
        return "an internal energy with a negative coefficient makes the step unbounded below"
    return None


def differentiated(J: Objective, c: Tensor) -> tuple[Tensor, Tensor]:
    """J and its gradient, each item by itself."""
    with torch.enable_grad():
        c = c.detach().requires_grad_()
        value = J(c)
        (gradient,) = torch.autograd.grad(value.sum(), c)
    return value.detach(), gradient


def split(mu: Particles, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the particles to fit on and of those held out, by a fixed seed, the same for every batch item.

    With a share that holds out none, all are both.
    """
    n = mu.x.shape[-2]
    count = round(share * n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(mu.x.device)
    return (order[count:], order[:count]) if count else (order, order)


def some(mu: Particles, index: Tensor) -> Particles:
    """The particles of that index, their weights normalised."""
    w = mu.w[..., index]
    log_density = None if mu.log_density is None else mu.log_density[..., index]
    return mu.with_state(x=mu.x[..., index, :], w=w / w.sum(-1, keepdim=True), log_density=log_density)


def shortened(J: Objective, c: Tensor) -> tuple[Tensor, Tensor]:
    """c·θ and θ (items,) = 1, ½, ¼, … the first that lowers J on the particles held out, else 0."""
    before = J(torch.zeros_like(c))
    slack = 100 * torch.finfo(c.dtype).eps * (1 + before.abs())
    theta, accepted = torch.ones_like(before), torch.zeros_like(before, dtype=torch.bool)
    for _ in range(HALVINGS):
        accepted = J(theta[:, None] * c) <= before + slack
        if accepted.all():
            break
        theta = torch.where(accepted, theta, theta / 2)
    theta = torch.where(accepted, theta, 0.0)
    return theta[:, None] * c, theta


def reservation(theta: Tensor, what: str) -> str:
    """Why the least of the lengths θ is not 1, in words: what is shortened is no minimiser; nothing where all are 1."""
    least = theta.min().item()
    if least == 1:
        return ""
    if least == 0:
        return f"the fitted {what} does not lower the objective on particles held out"
    return f"{what} was shortened to {least:g} of the fitted one, as more raises the objective on particles held out"


def whitening(H: Tensor, floor: float | None = None) -> Tensor:
    """S with SᵀHS = I, (…, K, K).

    Directions without effect, below `floor` (rounding, unless given) relative to the largest, are left out; one of
    negative curvature takes the size of its curvature.
    """
    floor = H.shape[-1] * 100 * torch.finfo(H.dtype).eps if floor is None else floor
    sizes = H.diagonal(dim1=-2, dim2=-1).abs()
    unit = torch.where(sizes > floor * sizes.amax(-1, keepdim=True), sizes.rsqrt(), 0.0)
    values, U = torch.linalg.eigh((H + H.mT) / 2 * unit[..., None] * unit[..., None, :])
    scales = torch.where(values.abs() > floor * values.abs().amax(-1, keepdim=True), values.abs().rsqrt(), 0.0)
    return unit[..., None] * U * scales[..., None, :]
