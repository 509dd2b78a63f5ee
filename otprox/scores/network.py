"""A score that is a neural network, trained by score matching."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..measures import Field, Measure
from ..measures.base import ConvergenceWarning
from .base import Estimator, Known, nodes_of
from .divergence import divergence, signs
from .frame import Frame
from .perceptron import Perceptron
from .template import Template
from .training import Losses, State, Trained, Training

EXACT = 5  # the largest dimension whose divergences are exact unless probes are asked for


@dataclass(frozen=True, eq=False)
class Fit:
    """What training a network found; every tensor has the leading batch shape.

    `held_out` is the loss on the particles held out, `loss` that on a batch of the others: E|s|² + 2E ∇·s in
    coordinates in which the particles have covariance I, over d. The Gaussian fit has −1, and the excess over the least
    value is the mean squared error over d. In a fit to a known score s₀ it is E|s − s₀|²/E|s₀|² there. `warm` holds the
    parameters and what else the next fit starts from.
    """

    converged: Tensor
    iterations: Tensor
    loss: Tensor
    held_out: Tensor
    message: str = ""
    warm: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Network(Estimator):
    """s(x) = L⁻ᵀ(net(z) − z) at z = L⁻¹(x − m), LLᵀ = Σ: a network corrects the Gaussian fit, in units of its own.

    Its parameters minimise E|s|² + 2E ∇·s over the particles (Hyvärinen 2005), of which a share is held out to stop
    before noise is learnt. `module` is any torch module (n, d) -> (n, d), a `Perceptron` unless given, which starts as
    0, at the Gaussian fit. It serves as a template: its parameters are copied, never written. Trained ones travel in
    the stats, a `Fit`: each step starts from the step before, and checkpoints resume bit for bit. A batch trains one
    network an item.

    initial: the score at the start, where it is known; the first fit is then to it, by least squares
    residual: whether the module corrects the Gaussian fit; without it s(x) = L⁻ᵀnet(z)
    probes: of the divergence, random, redrawn each iteration; None is exact for d ≤ 5, and takes 1 probe above
    training: the options of training
    generator: of the held-out share, batches and probes; each fit draws one number from it

    Modules that draw random numbers, such as dropout, belong in `eval()` mode. A training that diverges keeps the best
    parameters before, and warns. Huang, Wang 2025, "A score-based particle method for homogeneous Landau equation";
    Boffi, Vanden-Eijnden 2023, "Probability flow solution of the Fokker–Planck equation".

    >>> import torch, otprox as ox
    >>> network = ox.scores.Network(generator=torch.Generator().manual_seed(0))
    >>> mu = ox.Gaussian([0.0, 0.0], torch.eye(2)).to_particles(400, torch.Generator().manual_seed(0))
    >>> out = ox.Forward(ox.Entropy(score=network))(mu, 0.0, 0.1)
    >>> bool(out.stats.converged), ox.Forward(ox.Entropy(score=network))(out.mu, 0.1, 0.2, out.stats).stats.warm.keys()
    (True, dict_keys(['parameters', 'mean', 'square', 'count', 'held']))
    """

    module: torch.nn.Module | None = None
    initial: Field | None = field(default=None, kw_only=True)
    residual: bool = field(default=True, kw_only=True)
    probes: int | None = field(default=None, kw_only=True)
    training: Training = field(default_factory=Training, kw_only=True)
    generator: torch.Generator = field(kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.module, torch.nn.Module | None):
            raise TypeError(f"module must be a torch.nn.Module, not {self.module!r}")
        if not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, not a {type(self.generator).__name__}")
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, or None, not {self.probes}")

    def generators(self) -> tuple[torch.Generator, ...]:
        return (self.generator,)

    def fit(self, mu: Measure, last: Any = None) -> Known:
        points, w = (t.detach() for t in nodes_of(mu, self))
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        frame = Frame.of(mu)
        net, z = self._template(points, seed), frame.points(points)
        before = _before(last, net.parameters, w)
        goal = None
        if before is None and self.initial is not None:
            goal = frame.covector(Known(self.initial)(points))
        states = before or [(State.start(net.parameters), None)] * mu.batch.numel()
        goals = [None] * len(states) if goal is None else goal.reshape(-1, *goal.shape[-2:])
        items = zip(z.reshape(-1, *z.shape[-2:]), w.reshape(-1, w.shape[-1]), goals, states, strict=True)
        fits = [self._train(net, *item, torch.Generator(points.device).manual_seed(seed)) for item in items]
        stats = _stats(fits, mu, fresh=goal is not None)
        _report(stats)
        theta = stats.warm["parameters"]

        def score(x: Tensor) -> Tensor:
            z = frame.points(x)
            return frame.score(self._correct(net.each(theta, z), z))

        return Known(score, stats=stats)

    def _template(self, points: Tensor, seed: int) -> Template:
        return Template(self.module or Perceptron(points.shape[-1], generator=_seeded(seed)), points)

    def _train(
        self,
        net: Template,
        z: Tensor,
        w: Tensor,
        goal: Tensor | None,
        start: tuple[State, Tensor | None],
        generator: torch.Generator,
    ) -> tuple[Trained, Tensor]:
        state, held = start
        held = self.training.split(len(z), generator) if held is None else held
        losses = self._matching(net, z) if goal is None else self._regression(net, z, w, goal)
        return self.training(losses, w, held, state, generator), held

    def _matching(self, net: Template, z: Tensor) -> Losses:
        """(|s|² + 2∇·s)/d at particles, with the divergence of −z, −d, left out of what probes estimate."""
        dim = z.shape[-1]
        probes = self.probes or (None if dim <= EXACT else 1)

        def losses(theta: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
            with torch.enable_grad():
                at = z[index].requires_grad_()
                out = net(theta, at)
                slopes = divergence(out, at, None if probes is None else signs(probes, at, generator))
            return (self._correct(out, at).square().sum(-1) + 2 * (slopes - dim * self.residual)) / dim

        return losses

    def _regression(self, net: Template, z: Tensor, w: Tensor, goal: Tensor) -> Losses:
        """|s − s₀|²/E|s₀|² at particles."""
        size = (w * goal.square().sum(-1)).sum()

        def losses(theta: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
            return (self._correct(net(theta, z[index]), z[index]) - goal[index]).square().sum(-1) / size

        return losses

    def _correct(self, out: Tensor, z: Tensor) -> Tensor:
        return out - z if self.residual else out


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _before(last: Any, parameters: Tensor, w: Tensor) -> list[tuple[State, Tensor | None]] | None:
    """The state and held-out particles (n,) that the fit before left, one a batch item, if the network was the same."""
    if not isinstance(last, Fit) or last.warm["held"].shape != w.shape:
        return None
    if last.warm["parameters"].shape[-1:] != parameters.shape:
        return None
    rows = {name: t.reshape(-1, *t.shape[w.ndim - 1 :]) for name, t in last.warm.items()}
    held = rows.pop("held")
    return [(State(**{name: t[i] for name, t in rows.items()}), held[i]) for i in range(len(held))]


def _stats(fits: Sequence[tuple[Trained, Tensor]], mu: Measure, *, fresh: bool) -> Fit:
    """The fits of a batch together; Adam starts anew after a regression, whose slopes are of another loss."""
    trained = [fit for fit, _ in fits]
    states = [State.start(fit.state.parameters) if fresh else fit.state for fit in trained]

    def gather(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).view(mu.batch + values[0].shape)

    def numbers(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=mu.anchor.device).view(mu.batch)

    return Fit(
        converged=numbers([fit.converged for fit in trained], torch.bool),
        iterations=numbers([fit.iterations for fit in trained], torch.int64),
        loss=numbers([fit.loss for fit in trained], mu.anchor.dtype),
        held_out=numbers([fit.held_out for fit in trained], mu.anchor.dtype),
        message="; ".join(dict.fromkeys(fit.message for fit in trained if fit.message)),
        warm={
            **{name: gather([getattr(state, name) for state in states]) for name in (f.name for f in fields(State))},
            "held": gather([held for _, held in fits]),
        },
    )


def _report(stats: Fit) -> None:
    """Warn when a training diverged or ran out of iterations."""
    if not bool(stats.converged.all()):
        reason = stats.message or f"its loss was still falling after {int(stats.iterations.max())} iterations"
        advice = "a smaller rate or batches of more particles" if stats.message else "more iterations, or a larger rate"
        warnings.warn(f"scores.Network stopped: {reason}; try {advice}", ConvergenceWarning, stacklevel=4)
