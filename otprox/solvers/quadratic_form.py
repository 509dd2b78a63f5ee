"""Reading a functional as a multiple of the entropy plus a quadratic potential, which is what Gaussian steps solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functionals import Entropy, Functional, Potential, Quadratic
from ..measures import Gaussian, Spectral
from ..measures.covariance import alike


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """F = entropy·Entropy + ∫ V dμ with a quadratic V, seen from the mean m of a Gaussian.

    gradient: ∇V(m), (*batch, d); hessian: ∇²V, (*batch, d, d); both None without a potential.
    """

    entropy: float
    gradient: Tensor | None
    hessian: Tensor | None


def read(F: Functional, mu: Gaussian) -> QuadraticForm | str:
    """F as a QuadraticForm, or why not, in words."""
    entropy, gradient, hessian = 0.0, None, None
    for c, atom in F.terms:
        if isinstance(atom, Entropy):
            entropy += c
            continue
        if not isinstance(atom, Potential):
            return f"it solves Entropy and quadratic Potentials, and {type(atom).__name__} is neither"
        part = _read_potential(atom, mu)
        if isinstance(part, str):
            return part
        gradient = c * part[0] if gradient is None else gradient + c * part[0]
        hessian = c * part[1] if hessian is None else hessian + c * part[1]
    if entropy < 0:
        return f"the coefficient of Entropy must not be negative; it is {entropy:g}"
    return QuadraticForm(entropy, gradient, hessian)


def _read_potential(atom: Potential, mu: Gaussian) -> tuple[Tensor, Tensor] | str:
    if isinstance(atom.V, Quadratic):
        return _known(atom.V, mu)
    if isinstance(mu.cov, Spectral):  # a callable would be probed by its dense Hessian
        return (
            "V is not a Quadratic with Spectral precision; what would work: "
            "Forward(Potential(V)) >> Backward(Entropy()), or V as Quadratic(mean, precision=Spectral(...))"
        )
    return _probed(atom.value, mu)


def _known(V: Quadratic, mu: Gaussian) -> tuple[Tensor, Tensor] | str:
    P, m = V.precision, mu.mean
    if isinstance(mu.cov, Spectral) and not isinstance(P, Spectral):
        return "V has a dense precision, the Gaussian a Spectral one; use Quadratic(mean, precision=Spectral(...))"
    if P.shape[-1] != mu.dim:
        return f"V lives in dimension {P.shape[-1]} and the Gaussian in dimension {mu.dim}"
    if P.dtype != m.dtype or P.device != m.device:
        return f"V is {P.dtype} on {P.device}, the Gaussian {m.dtype} on {m.device}; convert one of them with .to(...)"
    return (P @ (m - V.mean)[..., None])[..., 0], alike(P, mu.cov)


def _probed(V: Callable[[Tensor], Tensor], mu: Gaussian) -> tuple[Tensor, Tensor] | str:
    """∇V(m) and ∇²V of a callable that is in fact quadratic, which seeded points verify."""
    with torch.enable_grad():
        value = V(mu.mean.detach()[..., None, :])
        keep = value.requires_grad or mu.mean.requires_grad  # V has parameters, or m a history, to differentiate
        derivatives = _derivatives(V, mu.mean)
    if derivatives is None:
        return "V is not differentiable by autograd; write it with torch operations, or as a Quadratic"
    if not all(part.isfinite().all() for part in (value, *derivatives)):
        return "V or a derivative of it is NaN or infinite at the mean of the Gaussian"
    if not (keep and torch.is_grad_enabled()):
        derivatives = (derivatives[0].detach(), derivatives[1].detach())
    if not _is_quadratic(V, value.detach(), derivatives[0].detach(), derivatives[1].detach(), mu):
        return (
            "V is not quadratic, so its prox is not Gaussian; what would work: "
            "Forward(Potential(V)) >> Backward(Entropy()), or V as a Quadratic"
        )
    return derivatives


def _derivatives(V: Callable[[Tensor], Tensor], mean: Tensor) -> tuple[Tensor, Tensor] | None:
    """Gradient and Hessian at the mean in two backward passes: row i of the Hessian from copy i of the mean."""
    d = mean.shape[-1]
    copies = mean[..., None, :].expand(*mean.shape[:-1], d, d)
    x = copies if copies.requires_grad else copies.detach().clone().requires_grad_()
    values = V(x)
    if not values.requires_grad:
        return None
    (g,) = torch.autograd.grad(values.sum(), x, create_graph=True, allow_unused=True)
    if g is None:
        return None
    if not g.requires_grad:  # V is affine
        return g[..., 0, :], torch.zeros_like(g)
    (H,) = torch.autograd.grad(g.diagonal(dim1=-2, dim2=-1).sum(), x, create_graph=True, allow_unused=True)
    H = torch.zeros_like(g) if H is None else H
    return g[..., 0, :], (H + H.mT) / 2


@torch.no_grad()
def _is_quadratic(V: Callable[[Tensor], Tensor], value: Tensor, g: Tensor, H: Tensor, mu: Gaussian) -> bool:
    """Whether V equals its expansion at m on 16 seeded points, 0.3 to 10 standard deviations out."""
    tolerance = 1e-8 if g.dtype == torch.float64 else 1e-4
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-0.5, 1.0, 16, dtype=torch.float64)[:, None]
    z = torch.randn(16, mu.dim, generator=generator, dtype=torch.float64) * scales
    step = z.to(mu.anchor) @ mu.factor.mT
    linear, quadratic = step @ g[..., None], 0.5 * (step * (step @ H)).sum(-1, keepdim=True)
    actual = V(mu.mean[..., None, :] + step)[..., None]
    size = value[..., None].abs() + (step.abs() @ g.abs()[..., None]) + quadratic.abs() + actual.abs()
    gap = (actual - value[..., None] - linear - quadratic).abs()
    return bool((gap <= tolerance * size + torch.finfo(g.dtype).tiny).all())
