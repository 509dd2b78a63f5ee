"""The divergence of a network's output, exactly or by random probes."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(s: Tensor, x: Tensor, probes: Tensor | None = None) -> Tensor:
    """∇·s at each point, (n,): by d backward passes, or as the mean over probes e of eᵀ∇s e, one pass each.

    Without bias for probes with E eeᵀ = I (Hutchinson 1989).
    """
    if not s.requires_grad:  # a constant
        return torch.zeros_like(s[..., 0])
    directions = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[:, None] if probes is None else probes
    total = torch.zeros_like(s[..., 0])
    for e in directions:
        (slope,) = torch.autograd.grad((e * s).sum(), x, create_graph=True, materialize_grads=True)
        total = total + (e * slope).sum(-1)
    return total if probes is None else total / len(probes)


def signs(count: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Probes with entries ±1, (count, n, d): of all probes those of least variance."""
    coins = torch.randint(2, (count, *x.shape), generator=generator, device=x.device)
    return (2 * coins - 1).to(x.dtype)
