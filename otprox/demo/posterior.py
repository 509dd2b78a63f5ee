"""A real posterior: Bayesian logistic regression on the breast-cancer data, by four methods and a reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import observe
from ..flow import Trajectory, flow, record
from ..functionals import KL, Entropy, GeneralizedLinear, Potential
from ..measures import Gaussian, Particles
from ..metrics import Wasserstein
from ..steps import Backward, Forward, Heat
from .report import heading, save, say, table

STEPS = 1200
DRAWS = 400_000


@dataclass(frozen=True, eq=False)
class Data:
    """Standardised features and labels ±1, split once (seed 0, a quarter held out)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """Posterior moments by self-normalised importance sampling, with the Monte Carlo error of each mean."""

    mean: Tensor
    cov: Tensor
    mean_error: Tensor
    variance_error: Tensor
    samples: Tensor
    effective: float
    log_normaliser: float  # log ∫e^(−V), so that KL(μ | posterior) is the free energy plus this


def load() -> Data:
    """The Wisconsin breast-cancer data that ships with scikit-learn, 569 × 30."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    X, y = load_breast_cancer(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
    scale = StandardScaler().fit(X)
    arrays = (scale.transform(X), 2 * y - 1, scale.transform(X_test), 2 * y_test - 1)
    return Data(*(torch.as_tensor(a, dtype=torch.float64) for a in arrays))


def model(data: Data) -> GeneralizedLinear:
    """−log posterior of logistic regression with prior N(0, I)."""
    labels = data.train_labels
    return GeneralizedLinear(data.train, lambda eta: softplus(-labels * eta))


def importance_sampling(V: GeneralizedLinear, laplace: Gaussian, n: int, inflation: float = 1.5) -> Reference:
    """Weights exp(−V)/q on n draws of q, the Laplace approximation with its covariance inflated."""
    proposal = Gaussian(laplace.mean, inflation * laplace.cov)
    draws = proposal.to_particles(n, torch.Generator().manual_seed(1))
    log_w = torch.cat([-V(part) for part in draws.x.split(20_000)]) - draws.log_prob()
    w = torch.softmax(log_w, -1)
    posterior = Particles(draws.x, w)
    mean, cov = posterior.mean, posterior.cov
    centred = draws.x - mean
    squares = centred.square() - cov.diagonal()
    errors = [(w.square() @ part.square()).sqrt() for part in (centred, squares)]
    resampled = draws.x[torch.multinomial(w, 4000, replacement=True, generator=torch.Generator().manual_seed(2))]
    log_z = log_w.logsumexp(-1).item() - math.log(n)
    return Reference(mean, cov, errors[0], errors[1], resampled, 1 / w.square().sum().item(), log_z)


def run(folder: Path, progress: bool = True) -> None:
    """Print and draw the comparison."""
    heading("2. A real posterior: logistic regression, breast cancer (426 train, 143 test, d = 30, prior N(0, I))")
    data = load()
    V = model(data)
    mode = V.mode()
    laplace = Gaussian(mode, torch.linalg.inv(V.hessian(mode)))
    metric, smoothness = _preconditioner(V, laplace)
    tau = 0.98 / smoothness
    reference, seconds = _timed(lambda: importance_sampling(V, laplace, DRAWS))
    spread = reference.cov.diagonal().sqrt()
    say(
        f"reference: importance sampling, {reference.effective:,.0f} effective of {DRAWS:,} draws, {seconds:.1f} s; "
        f"its own Monte Carlo error of a mean is at most {(reference.mean_error / spread).max():.3f} posterior std"
    )
    gaussian, gaussian_time = _timed(lambda: _forward_backward(V, laplace, metric, tau, progress))
    particles, particle_time = _timed(lambda: _langevin(V, laplace, metric, tau, progress))
    energy = gaussian.series["free_energy"]
    say(
        f"forward-backward: free energy {energy[0]:.4f} → {energy[-1]:.4f}, decreasing at "
        f"{int((energy.diff() < 0).sum())} of {len(energy) - 1} recorded steps"
    )
    fits: list[tuple[str, Any, float]] = [
        ("Laplace", laplace, 0.0),
        ("forward-backward, Gaussian", gaussian.final, gaussian_time),
        ("Langevin, 2,000 particles", particles.final, particle_time),
    ]
    rows = [_row(name, fit, reference, data, V, duration) for name, fit, duration in fits]
    rows.append(_noise_row(reference, data))
    table(
        "error against the reference, in posterior standard deviations (means) and relative (covariance)",
        ["method", "mean, rms", "mean, max", "cov, Frobenius", "KL to posterior", "held-out log-loss", "seconds"],
        rows,
    )
    save(_figure(gaussian, fits, reference), folder, "posterior.png")


def _preconditioner(V: GeneralizedLinear, laplace: Gaussian) -> tuple[Wasserstein, float]:
    """Q = inverse Hessian at the mode, and the smoothness constant of V in that metric (and, said, without it)."""
    bound = 0.25 * V.features.mT @ V.features + V.prior.precision  # ∇²V ≤ ¼XᵀX + I, attained at θ = 0
    L = torch.linalg.cholesky(laplace.cov)
    plain, preconditioned = (torch.linalg.eigvalsh(A)[-1].item() for A in (bound, L.mT @ bound @ L))
    say(
        f"smoothness: L = {plain:,.0f} in W2; {preconditioned:,.0f} in Wasserstein(Q), Q the inverse Hessian at the "
        "mode, used below for forward-backward and for Langevin, with tau = 0.98/L"
    )
    return Wasserstein(laplace.cov), preconditioned


def _forward_backward(
    V: GeneralizedLinear, start: Gaussian, metric: Wasserstein, tau: float, progress: bool
) -> Trajectory:
    step = Forward(Potential(V), metric) >> Backward(Entropy(), metric)
    times = [k * tau for k in range(STEPS + 1)]
    return record(flow(step, start, times, progress), free_energy=observe.energy(KL(V)))


def _langevin(V: GeneralizedLinear, start: Gaussian, metric: Wasserstein, tau: float, progress: bool) -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    step = Forward(Potential(V), metric) >> Heat(metric=metric, generator=generator)
    cloud = start.to_particles(2000, generator)
    times = [k * tau for k in range(STEPS + 1)]
    return record(flow(step, Particles(cloud.x), times, progress), every=STEPS // 40, mean=observe.mean)


def _row(name: str, fit: Any, reference: Reference, data: Data, V: GeneralizedLinear, seconds: float) -> list[Any]:
    gap = (fit.mean - reference.mean) / reference.cov.diagonal().sqrt()
    cov = torch.linalg.matrix_norm(fit.cov - reference.cov) / torch.linalg.matrix_norm(reference.cov)
    kl = f"{KL(V)(fit).item() + reference.log_normaliser:.3f}" if isinstance(fit, Gaussian) else "–"
    sample = fit.to_particles(4000, torch.Generator().manual_seed(3)).x if isinstance(fit, Gaussian) else fit.x
    return [
        name,
        gap.square().mean().sqrt().item(),
        gap.abs().max().item(),
        cov.item(),
        kl,
        f"{_log_loss(sample, data):.4f}",
        f"{seconds:.1f}",
    ]


def _noise_row(reference: Reference, data: Data) -> list[Any]:
    error = reference.mean_error / reference.cov.diagonal().sqrt()
    spread = (reference.variance_error / reference.cov.diagonal()).max().item()
    return [
        "reference's own error",
        error.square().mean().sqrt().item(),
        error.max().item(),
        f"{spread:.2g} (variances)",
        f"{reference.effective**-0.5:.3f}",
        f"{_log_loss(reference.samples, data):.4f}",
        "–",
    ]


def _log_loss(theta: Tensor, data: Data) -> float:
    """−mean log E_θ p(y | x, θ) on the held-out quarter."""
    probability = torch.sigmoid(data.test_labels * (theta @ data.test.mT)).mean(0)
    return -probability.log().mean().item()


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = job()
    return result, time.perf_counter() - start


def _figure(gaussian: Trajectory, fits: list[tuple[str, Any, float]], reference: Reference) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.1), layout="constrained")
    kl = gaussian.series["free_energy"] + reference.log_normaliser
    left.plot(range(1, len(kl) + 1), kl, "C1")
    left.set(xlabel="iteration", ylabel="KL to the posterior", title="Forward-backward, Gaussian", ylim=(0, None))
    spread = reference.cov.diagonal().sqrt()
    for name, fit, _ in fits:
        middle.plot(((fit.mean - reference.mean) / spread).abs(), "o", ms=4, label=name)
        right.plot(spread, fit.cov.diagonal().sqrt(), "o", ms=4, label=name)
    middle.plot(reference.mean_error / spread, "k_", label="Monte Carlo error of the reference")
    middle.set(xlabel="coefficient", ylabel="|mean − reference| / std", yscale="log", title="Posterior means")
    right.axline((spread.max().item(),) * 2, slope=1, color="k", lw=0.8)
    right.set(xlabel="reference std", ylabel="std", title="Posterior standard deviations")
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
