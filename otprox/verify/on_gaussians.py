"""Claims about Gaussians: orders of splittings, what they leave at rest, and single implicit steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import exact, schemes
from ..adaptive import Richardson
from ..functionals import KL, Entropy, Potential, Quadratic
from ..measures import Gaussian, Measure
from ..measures.distance import w2_squared
from ..metrics import Entropic, Wasserstein
from ..multistep import BDF2
from ..steps import Backward, Drift, Flow, Forward, Halves, Heat, Step, Strang
from .case import Case
from .scenes import COV, march, two_gaussians


def _to_ornstein_uhlenbeck(step: Callable[[Quadratic, Gaussian], Step]) -> Callable[[float], float]:
    """W2 at t = 1 between a scheme and the exact Ornstein–Uhlenbeck flow."""

    def error(tau: float) -> float:
        mu, target = two_gaussians()
        end = march(step(Quadratic.of(target), target), mu, tau, 1.0)
        return w2_squared(end, exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0)).sqrt().item()

    return error


def splittings() -> list[Case]:
    ladder = (0.1, 0.05, 0.025)
    first: dict[str, Callable[[Quadratic, Gaussian], Step]] = {
        "JKO": lambda V, pi: schemes.jko(pi),
        "forward-backward": lambda V, pi: schemes.proximal_gradient(V),
        "Langevin (forward, heat)": lambda V, pi: schemes.langevin(V),
        "heat, forward": lambda V, pi: Heat() >> Forward(Potential(V)),
        "forward KL": lambda V, pi: schemes.forward_kl(pi),
        "Strang(heat, forward)": lambda V, pi: Strang(Heat(), Forward(Potential(V))),
        "Strang(prox entropy, exact drift)": lambda V, pi: Strang(Backward(Entropy()), Flow(V)),
    }
    second: dict[str, Callable[[Quadratic, Gaussian], Step]] = {
        "Strang(heat, exact drift)": lambda V, pi: schemes.strang(V),
        "Strang(heat, midpoint drift)": lambda V, pi: Strang(Heat(), Drift(_drift(V), order=2)),
        "forward half, backward half": lambda V, pi: schemes.midpoint(KL(pi)),
        "backward half, forward half": lambda V, pi: Halves(Backward(KL(pi)), Forward(KL(pi))),
        "BDF2": lambda V, pi: BDF2(KL(pi)),
        "Richardson(JKO)": lambda V, pi: Richardson(schemes.jko(pi)),
    }
    reference = "exact Ornstein–Uhlenbeck flow at t = 1, W2"
    return [
        Case(f"order: {name}", reference, ladder, _to_ornstein_uhlenbeck(step), order)
        for order, family in ((1.0, first), (2.0, second))
        for name, step in family.items()
    ]


def _drift(V: Quadratic) -> Callable[[float, Measure, torch.Tensor], torch.Tensor]:
    return lambda t, mu, x: -(x - V.mean) @ V.precision


def fixed_points() -> list[Case]:
    def stationary(
        step: Callable[[Quadratic, Gaussian], Step], law: Callable[[Gaussian, float], Gaussian]
    ) -> Callable[[float], float]:
        def error(tau: float) -> float:
            mu, target = two_gaussians()
            end = march(step(Quadratic.of(target), target), mu, tau, 500 * tau)
            assert isinstance(end, Gaussian)
            return (end.cov - law(target, tau).cov).abs().max().item()

        return error

    unbiased, lawful = "stationary covariance is the target's", "stationary covariance Q(I − τQ⁻¹/2)⁻¹"
    cases: dict[str, tuple[str, Callable[[float], float]]] = {
        "forward-backward": (unbiased, stationary(lambda V, pi: schemes.proximal_gradient(V), lambda pi, tau: pi)),
        "JKO": (unbiased, stationary(lambda V, pi: schemes.jko(pi), lambda pi, tau: pi)),
        "Langevin": (lawful, stationary(lambda V, pi: schemes.langevin(V), exact.gaussian.ula_stationary)),
    }
    return [
        Case(f"bias: {name}", reference, (0.3, 0.1), error, within=1e-10) for name, (reference, error) in cases.items()
    ]


def one_step() -> list[Case]:
    def against(
        step: Callable[[Gaussian], Step], law: Callable[[Gaussian, Gaussian, float], Gaussian]
    ) -> Callable[[float], float]:
        def error(tau: float) -> float:
            mu, target = two_gaussians()
            new, want = step(target)(mu, 0.0, tau).mu, law(mu, target, tau)
            return max((new.mean - want.mean).abs().max().item(), (new.cov - want.cov).abs().max().item())

        return error

    ladder = (1.0, 0.3, 0.1, 0.01)
    jko = Case(
        "one step: JKO, non-commuting covariances",
        "closed form",
        ladder,
        against(lambda pi: Backward(KL(pi)), exact.gaussian.prox_kl),
        within=1e-9,
    )
    entropic = [
        Case(
            f"one step: entropic JKO, {reference} reference",
            "closed form, reg = 0.1",
            ladder[:3],
            against(
                lambda pi, reference=reference: Backward(KL(pi), Entropic(0.1, reference)),  # type: ignore[misc]
                lambda mu, pi, tau, reference=reference: exact.gaussian.prox_kl_entropic(mu, pi, tau, 0.1, reference),  # type: ignore[misc]
            ),
            within=1e-8,
        )
        for reference in ("lebesgue", "product", "debiased")
    ]
    metric = Case("metric: JKO in Wasserstein(Q)", "change of variables", (0.3, 0.1), _in_metric, within=1e-9)
    return [jko, *entropic, metric]


def _in_metric(tau: float) -> float:
    mu, target = two_gaussians()
    Q = torch.tensor(COV, dtype=torch.float64)
    L = torch.linalg.cholesky(Q)
    new = Backward(KL(target), Wasserstein(Q))(mu, 0.0, tau).mu
    inverse = torch.linalg.inv(L)
    moved = [g.affine((inverse @ g.mean[:, None])[:, 0], inverse) for g in (mu, target)]
    want = exact.gaussian.prox_kl(moved[0], moved[1], tau)
    return (new.cov - L @ want.cov @ L.mT).abs().max().item()
