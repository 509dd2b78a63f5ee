"""The dynamic JKO step in the metric of collisions, over a network."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..functionals import Functional
from ..measures import Measure, Particles
from ..metrics import Landau, Metric, Wasserstein
from . import collision_curve
from .base import ConvergenceWarning, OnFailure, Out, Stats, check_tau, report, require, warm_start
from .collision_curve import Collided, Covector, collide, driven
from .collision_flow import CollisionFlow, gradient, never_above
from .feature_basis import Hermite
from .features import Frame
from .fitting import reservation, shortened, some, split

Parameters = dict[str, Tensor]
CHECK = 20  # iterations between looks at the particles held out
FALLS = 5  # divergences after which training stops


@dataclass(frozen=True, eq=False)
class NetworkFlow:
    """The step of `CollisionFlow` with u = ∇ψ + N in every piece: ψ its solution among quadratic ψ, N a network.

    - module: (…, d) -> (…, d), from coordinates of zero mean and unit variance to N in such coordinates. It is not
      changed: its parameters are where training begins, until there are those of the previous step (`last`).
    - generator: draws the random batches, of `batch` particles that collide among themselves.

    Adam with step `lr` on the objective of a batch (Huang, Wang 2024, arXiv:2409.12296). Every 20 iterations the
    objective is computed on the particles held out, a share `held_out` drawn by a fixed seed, and the best state kept;
    training ends when `patience` looks have brought none better, or after `max_iter`. Where a map folds or the
    objective is not finite, it goes back to the best state with half the step; after the fifth time it stops and says
    so. The step is shortened or refused as in `CollisionFlow`; where no state is better than ψ alone, N is left out.
    `residual` is the share of the decrease on the particles held out that came in the last `patience` looks.
    """

    module: nn.Module
    generator: torch.Generator
    inner_steps: int = field(default=1, kw_only=True)
    held_out: float = field(default=0.2, kw_only=True)
    batch: int = field(default=256, kw_only=True)
    lr: float = field(default=3e-3, kw_only=True)
    max_iter: int = field(default=500, kw_only=True)
    patience: int = field(default=4, kw_only=True)
    on_failure: OnFailure = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module from (…, d) to (…, d), not {type(self.module).__name__}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share of the particles, in (0, 1), not {self.held_out}")
        if min(self.inner_steps, self.max_iter, self.patience) < 1 or self.batch < 2 or not self.lr > 0:
            raise ValueError(
                "inner_steps, max_iter and patience must be at least 1, batch at least 2 and lr positive; got "
                f"{self.inner_steps}, {self.max_iter}, {self.patience}, {self.batch} and {self.lr}"
            )

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if isinstance(metric, Landau) and metric.batch is not None:
            return "it draws random batches of its own: give Landau(gamma, strength) without batch"
        if mu.batch:
            return f"one network is for one measure, not for a batch of shape {tuple(mu.batch)}"
        return collision_curve.supports(F, metric, mu)

    def generators(self) -> tuple[torch.Generator, ...]:
        return (self.generator,)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F)
        mu, metric = cast(Particles, mu), cast(Landau, metric)
        quadratic = self._quadratic(F, metric, mu, tau, last)
        model = Model.of(F, metric, mu, self.module, tau, quadratic.warm["coefficients"].reshape(self.inner_steps, -1))
        start = model.start(mu, last)
        fitted, held = (some(mu, index) for index in split(mu, self.held_out))
        trained = self._train(model, start, fitted, held)
        with torch.no_grad():
            one = mu.x.new_ones(1, 1)
            J, whole = (lambda c, m=m: model.objective(m, trained.best, c) for m in (held, mu))
            length, theta = shortened(never_above(J, whole, 0 * one), one)
            curve, gain = model.curve(mu, trained.best, length), J(0 * one) - J(length)
        network = {f"network.{name}": p.detach() for name, p in (trained.best or start).items()}
        stats = Stats(
            converged=(trained.converged & (theta == 1)).reshape(()),
            iterations=torch.tensor(trained.iterations, device=mu.x.device),
            residual=mu.x.new_tensor(trained.residual),
            objective=F(curve.end) + curve.distance2 / (2 * tau),
            distance2=curve.distance2,
            message=reservation(theta, "u") or trained.message,
            warm=quadratic.warm | network | {"held_out": gain.reshape(())},
        )
        advice = "give more particles, another module, a smaller lr, or raise max_iter"
        return Out(curve.end, report(stats, self, advice, self.on_failure))

    def _quadratic(self, F: Functional, metric: Landau, mu: Particles, tau: float, last: Any) -> Stats:
        """ψ, accepted or 0."""
        solver = CollisionFlow(Hermite(2), inner_steps=self.inner_steps, held_out=self.held_out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return cast(Stats, solver(F, metric, mu, tau, last).stats)

    def _train(self, model: Model, start: Parameters, fitted: Particles, held: Particles) -> Training:
        training = Training(model, held, start)
        adam = torch.optim.Adam(training.now.values(), self.lr)
        for _ in range(self.max_iter):
            training.iterations += 1
            loss = model.objective(some(fitted, self._draw(fitted)), training.now)
            if not loss.isfinite().all():
                training.fall()
                adam = torch.optim.Adam(training.now.values(), self.lr / 2**training.falls)
            else:
                adam.zero_grad()
                loss.sum().backward()
                adam.step()
                if training.iterations % CHECK == 0:
                    training.look()
            if training.falls == FALLS or training.stale == self.patience:
                break
        return training.ended(self.patience)

    def _draw(self, mu: Particles) -> Tensor:
        order = torch.randperm(mu.x.shape[-2], generator=self.generator, device=self.generator.device)
        return order[: self.batch].to(mu.x.device)


@dataclass(eq=False)
class Training:
    """The state of the network, the best so far (None: no network), and the objective held out at each look."""

    model: Model
    held: Particles
    now: Parameters
    best: Parameters | None = None
    iterations: int = 0
    falls: int = 0
    stale: int = 0
    values: list[float] = field(default_factory=list)
    residual: float = 0.0
    converged: bool = True
    message: str = "Adam"

    def __post_init__(self) -> None:
        self.start = _copy(self.now)
        with torch.no_grad():
            alone, started = (self.model.objective(self.held, p).item() for p in (None, self.now))
        self.best = self.start if started < alone else None
        self.values = [self.model.F(self.held).item(), min(alone, started)]

    def look(self) -> None:
        """Compare the state now with the best on the particles held out."""
        with torch.no_grad():
            value = self.model.objective(self.held, self.now).item()
        if not math.isfinite(value):
            return self.fall()
        if value < self.values[-1]:
            self.best, self.stale = _copy(self.now), 0
        else:
            self.stale += 1
        self.values.append(min(value, self.values[-1]))

    def fall(self) -> None:
        """Back to the best state."""
        self.falls += 1
        self.now = _copy(self.best or self.start)

    def ended(self, patience: int) -> Training:
        gained = self.values[0] - self.values[-1]
        recent = self.values[max(1, len(self.values) - 1 - patience)] - self.values[-1]
        self.residual = recent / gained if gained > 0 else 0.0
        self.converged = self.falls < FALLS and (self.residual < 0.05 or self.stale == patience)
        if self.falls == FALLS:
            self.message = f"training diverged {FALLS} times: the loss was infinite or a map folded; best state kept"
        return self


@dataclass(frozen=True, eq=False)
class Model:
    """The objective of a sample as a function of the parameters of N (None: without N) and of a common length of u."""

    F: Functional
    metric: Landau
    frame: Frame
    module: nn.Module
    tau: float
    base: tuple[Covector, ...]

    @classmethod
    def of(cls, F: Functional, metric: Landau, mu: Particles, module: nn.Module, tau: float, c: Tensor) -> Model:
        frame = Frame.of(mu, Wasserstein())
        base = tuple(gradient(frame, Hermite(2), part) for part in c)
        return cls(F, metric, frame, module, tau, base)

    def start(self, mu: Particles, last: Any) -> Parameters:
        """The parameters of the last step, else those of the module, in the dtype of μ."""
        found = {}
        for name, p in self.module.named_parameters():
            warm = warm_start(last, f"network.{name}", p)
            found[name] = (p.detach() if warm is None else warm).to(mu.x, copy=True).requires_grad_()
        with torch.no_grad():
            out = torch.func.functional_call(self.module, found, (mu.x[:1],))
        if not isinstance(out, Tensor) or out.shape != mu.x[:1].shape:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"module must map (…, {mu.dim}) to (…, {mu.dim}); (1, {mu.dim}) gave {shape}")
        return found

    def network(self, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """N and its Jacobian in x."""
        scale = self.frame.scale

        def f(z: Tensor) -> tuple[Tensor, Tensor]:
            out = torch.func.functional_call(self.module, parameters, (z,))
            return out, out

        slope, value = torch.func.vmap(torch.func.jacfwd(f, has_aux=True))(self.frame.to(x) / scale)
        return value / scale, slope / scale / scale[:, None]

    def curve(self, mu: Particles, parameters: Parameters | None, length: Tensor | float = 1.0) -> Collided:
        def covector(base: Covector) -> Covector:
            def u(x: Tensor) -> tuple[Tensor, Tensor]:
                parts = [base(x)] + ([] if parameters is None else [self.network(x, parameters)])
                value, slope = (sum(t) for t in zip(*parts, strict=True))
                return length * value, length * slope

            return u

        return collide(mu, self.tau, [driven(self.metric, covector(base)) for base in self.base])

    def objective(self, mu: Particles, parameters: Parameters | None, length: Tensor | float = 1.0) -> Tensor:
        """(1,), infinite where a map folds."""
        curve = self.curve(mu, parameters, length)
        value = self.F(curve.end) + curve.distance2 / (2 * self.tau)
        return torch.where(curve.inside, value, torch.inf).reshape(1)


def _copy(parameters: Parameters) -> Parameters:
    return {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
