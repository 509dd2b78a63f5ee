"""Training by Adam on random batches of particles, stopped by the loss on those held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # parameters (p,), indices of particles (m,) -> (m,)


@dataclass(frozen=True, eq=False)
class State:
    """Parameters (p,), Adam's means of their slopes and of the squares, and the number of iterations behind these."""

    parameters: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def start(cls, parameters: Tensor) -> State:
        zero = torch.zeros_like(parameters)
        return cls(parameters, zero, zero, zero.new_zeros(()))


class Trained(NamedTuple):
    """The best state, the loss there on a batch and on the particles held out, and how the training ended."""

    state: State
    loss: float
    held_out: float
    iterations: int
    converged: bool
    message: str


@dataclass(frozen=True)
class Training:
    """How a network is trained: by Adam (Kingma, Ba 2015) with step size `rate`, on random batches of particles.

    Every `every` iterations the loss is taken on the particles held out, a share `held_out` of all that is chosen once
    and for all steps, and the parameters that are best there are kept. Training has converged when `patience` looks in
    a row have not lowered it by `tol` in all; losses are relative to the size of the score, so that is a squared
    relative error. `patience=None` takes all `iterations`. A loss that is NaN, or above the one at the start by more
    than 10, has diverged: training ends there, with the parameters that were best before.

    Independent samples need particles held out, or their noise is learnt. Particles that fill a grid have no noise, and
    leaving some out would bring it in: `held_out=0` trains and looks at all of them.

    batch: particles a batch, drawn by their weights; all of them each time where there are no more than that
    """

    rate: float = 3e-3
    batch: int = 512
    iterations: int = 2000
    every: int = 10
    patience: int | None = 2
    tol: float = 1e-4
    held_out: float = 0.2

    def __post_init__(self) -> None:
        for name in ("rate", "batch", "iterations", "every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 look, or None for all iterations, not {self.patience}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a share of the particles in [0, 1), not {self.held_out}")

    def split(self, n: int, generator: torch.Generator) -> Tensor:
        """Which of n particles are held out, (n,)."""
        count = round(self.held_out * n)
        if self.held_out and not 0 < count < n:
            raise ValueError(f"held_out = {self.held_out} of {n} particles leaves none to train on, or none to test on")
        order = torch.randperm(n, generator=generator, device=generator.device)
        return torch.zeros(n, dtype=torch.bool, device=generator.device).index_fill(0, order[:count], True)

    def __call__(self, losses: Losses, w: Tensor, held: Tensor, state: State, generator: torch.Generator) -> Trained:
        """Minimise the mean of `losses` over the particles of weights w (n,) that are not `held` (n,)."""
        draw, test = _batches(w * ~held, self.batch, generator), _Test(losses, w * held if held.any() else w)
        best, k, looks, message = state, 0, 0, ""
        first = least = mark = test(state)
        if not math.isfinite(first):
            raise ValueError(f"the loss is {first} before training: the network is not finite at the particles")
        while k < self.iterations and looks != self.patience and not message:
            for _ in range(min(self.every, self.iterations - k)):
                state, k = self._step(losses, *draw(), state, generator), k + 1
            loss = test(state)
            if not loss < first + 10:
                message = f"the loss went from {first:.3g} to {loss:.3g}; the best parameters before that are kept"
            elif loss < least:
                best, least = state, loss
            looks, mark = (0, least) if least < mark - self.tol else (looks + 1, mark)
        converged = not message and (self.patience is None or looks == self.patience)
        index, share = draw()
        loss = (share * losses(best.parameters, index, generator)).sum().item()
        return Trained(best, loss, least, k, converged, message)

    def _step(self, losses: Losses, index: Tensor, share: Tensor, state: State, generator: torch.Generator) -> State:
        at = state.parameters.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((share * losses(at, index, generator)).sum(), at)
        mean, square = torch.lerp(state.mean, slope, 0.1), torch.lerp(state.square, slope.square(), 1e-3)
        count = state.count + 1
        unit = mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        return State(state.parameters - self.rate * unit, mean, square, count)


class _Test:
    """The mean loss over the particles with w > 0, with the same probes each time."""

    def __init__(self, losses: Losses, w: Tensor) -> None:
        self.losses, self.index = losses, w.nonzero()[:, 0]
        self.share = w[self.index] / w.sum()

    def __call__(self, state: State) -> float:
        generator = torch.Generator(self.share.device).manual_seed(0)
        return (self.share * self.losses(state.parameters, self.index, generator)).sum().item()


def _batches(w: Tensor, size: int, generator: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """Indices (m,) and shares (m,) of a batch: one particle from each of `size` parts of equal weight."""
    everyone = w.nonzero()[:, 0]
    if len(everyone) <= size:
        whole = everyone, w[everyone] / w.sum()
        return lambda: whole
    total = w.cumsum(0)
    share, parts = w.new_full((size,), 1 / size), torch.arange(size, device=w.device)

    def draw() -> tuple[Tensor, Tensor]:
        u = (parts + torch.rand(size, generator=generator, dtype=w.dtype, device=w.device)) / size
        return torch.searchsorted(total, u * total[-1]).clamp_max(len(w) - 1), share

    return draw
