"""Orders of the splittings of a Fokker–Planck flow, as the steps run them on Gaussians, against Ornstein–Uhlenbeck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import (
    KL,
    Backward,
    Drift,
    Entropy,
    Flow,
    Forward,
    Gaussian,
    Halves,
    Heat,
    Potential,
    Quadratic,
    Strang,
    Wasserstein,
)
from otprox.exact import gaussian as exact
from otprox.steps import Step


def splittings(target: Gaussian, Q: Tensor | None = None) -> dict[str, tuple[Step, int]]:
    """Every splitting of the flow of KL(· | target) in the metric Q, and its order."""
    V, metric = Quadratic(target.mean, cov=target.cov), Wasserstein(Q)
    heat, prox, drift = Heat(metric=metric), Backward(Entropy(), metric), Flow(V, metric)
    forward, implicit = Forward(Potential(V), metric), Backward(Potential(V), metric)
    explicit, jko = Forward(KL(target), metric), Backward(KL(target), metric)

    def velocity(t: float, mu: object, x: Tensor) -> Tensor:
        v = -(x - V.mean) @ V.precision
        return v if Q is None else v @ Q

    return {
        "forward, heat (Langevin)": (forward >> heat, 1),
        "heat, forward": (heat >> forward, 1),
        "forward, prox of entropy": (forward >> prox, 1),
        "exact drift, prox of entropy": (drift >> prox, 1),
        "exact drift, heat": (drift >> heat, 1),
        "implicit drift, heat": (implicit >> heat, 1),
        "Strang(heat, forward)": (Strang(heat, forward), 1),
        "Strang(forward, heat)": (Strang(forward, heat), 1),
        "Strang(drift of order 1, heat)": (Strang(Drift(velocity, order=1), heat), 1),
        "Strang(prox of entropy, exact drift)": (Strang(prox, drift), 1),
        "Strang(exact drift, prox of entropy)": (Strang(drift, prox), 1),
        "forward KL": (explicit, 1),
        "JKO": (jko, 1),
        "Strang(heat, exact drift)": (Strang(heat, drift), 2),
        "Strang(exact drift, heat)": (Strang(drift, heat), 2),
        "Strang(heat, drift of order 2)": (Strang(heat, Drift(velocity, order=2)), 2),
        "Strang(drift of order 2, heat)": (Strang(Drift(velocity, order=2), heat), 2),
        "Strang(heat, drift of order 4)": (Strang(heat, Drift(velocity, order=4)), 2),
        "half forward KL, half JKO": (Halves(explicit, jko), 2),
        "half JKO, half forward KL": (Halves(jko, explicit), 2),
    }


METRIC = torch.tensor([[1.5, 0.4, 0.0], [0.4, 0.7, -0.2], [0.0, -0.2, 1.2]], dtype=torch.float64)
NAMES = list(splittings(Gaussian(torch.zeros(1), torch.eye(1))))


def end(step: Step, mu: Gaussian, n: int) -> Gaussian:
    times = torch.linspace(0, 1, n + 1).tolist()
    for t0, t1 in zip(times, times[1:], strict=False):
        mu = step(mu, t0, t1).mu
    return mu


@pytest.mark.parametrize("name", NAMES)
def test_order_at_time_one(gaussians, name):
    mu, target = Gaussian(gaussians.m0, gaussians.S0), Gaussian(gaussians.mq, gaussians.Q)
    step, order = splittings(target)[name]
    true = exact.ornstein_uhlenbeck(mu, target, 1.0)
    distance = [exact.w2_squared(end(step, mu, n), true).sqrt().item() for n in (32, 64)]
    assert math.log2(distance[0] / distance[1]) == pytest.approx(order, abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_local_order_in_a_metric(gaussians, name):
    """One step errs by τ^{order + 1}, in a metric whose matrix commutes with neither covariance."""
    mu, target = Gaussian(gaussians.m0, gaussians.S0), Gaussian(gaussians.mq, gaussians.Q)
    step, order = splittings(target, METRIC)[name]

    def error(tau: float) -> float:
        new, true = step(mu, 0.0, tau).mu, exact.ornstein_uhlenbeck(mu, target, tau, METRIC)
        return max((new.mean - true.mean).abs().max().item(), (new.cov - true.cov).abs().max().item())

    assert math.log2(error(4e-3) / error(2e-3)) == pytest.approx(order + 1, abs=0.06)


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("forward, heat (Langevin)", exact.ula),
        ("forward, prox of entropy", exact.forward_backward),
        ("forward KL", exact.forward_kl),
        ("JKO", exact.prox_kl),
    ],
)
@pytest.mark.parametrize("Q", [None, METRIC], ids=["identity", "metric"])
def test_one_step_is_the_closed_form(gaussians, name, closed_form, Q):
    mu, target = Gaussian(gaussians.m0, gaussians.S0), Gaussian(gaussians.mq, gaussians.Q)
    new, want = splittings(target, Q)[name][0](mu, 0.0, 0.2).mu, closed_form(mu, target, 0.2, Q)
    torch.testing.assert_close(new.mean, want.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new.cov, want.cov, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "splitting"),
    [
        ("heat, forward", "Heat then Forward(V)"),
        ("implicit drift, heat", "Backward(V) then Heat"),
        ("Strang(heat, forward)", "Strang(Heat, Forward(V))"),
        ("Strang(exact drift, heat)", "Strang(exact drift, Heat)"),
        ("Strang(heat, drift of order 2)", "Strang(Heat, second-order drift)"),
        ("Strang(exact drift, prox of entropy)", "Strang(exact drift, Backward(Entropy))"),
        ("half forward KL, half JKO", "Forward(KL) then Backward(KL), halves"),
        ("half JKO, half forward KL", "Backward(KL) then Forward(KL), halves"),
    ],
)
def test_one_step_is_the_exact_map_of_the_splitting(gaussians, name, splitting):
    mu, target = Gaussian(gaussians.m0, gaussians.S0), Gaussian(gaussians.mq, gaussians.Q)
    [want] = [s.step(mu, target, 0.2) for s in exact.SPLITTINGS if s.name == splitting]
    new = splittings(target)[name][0](mu, 0.0, 0.2).mu
    torch.testing.assert_close(new.mean, want.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new.cov, want.cov, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["forward, prox of entropy", "forward KL", "JKO", "half forward KL, half JKO", "half JKO, half forward KL"]
)
def test_unbiased_splittings_keep_the_target(gaussians, name):
    target = Gaussian(gaussians.mq, gaussians.Q)
    for Q in (None, METRIC):
        new = splittings(target, Q)[name][0](target, 0.0, 0.2).mu
        torch.testing.assert_close(new.cov, target.cov, rtol=0, atol=1e-12)
        torch.testing.assert_close(new.mean, target.mean, rtol=0, atol=1e-12)


def test_langevin_does_not_keep_the_target(gaussians):
    target = Gaussian(gaussians.mq, gaussians.Q)
    new = splittings(target)["forward, heat (Langevin)"][0](target, 0.0, 0.2).mu
    assert (new.cov - target.cov).abs().max() > 1e-2
