"""What several claims share: two Gaussians whose covariances do not commute, and a run up to a time."""

from __future__ import annotations

import torch

from ..flow import flow, record
from ..measures import Gaussian, Measure
from ..steps import Step

COV = [[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]]
TARGET_COV = [[1.0, -0.4, 0.1], [-0.4, 0.8, 0.3], [0.1, 0.3, 1.5]]


def two_gaussians() -> tuple[Gaussian, Gaussian]:
    """A start and a target."""

    def tensor(rows: object) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    return Gaussian(tensor([1.0, -2.0, 0.5]), tensor(COV)), Gaussian(tensor([0.5, 0.25, -1.0]), tensor(TARGET_COV))


def march(step: Step, mu: Measure, tau: float, horizon: float) -> Measure:
    """Where steps of size tau arrive at the time `horizon`."""
    n = round(horizon / tau)
    return record(flow(step, mu, [horizon * k / n for k in range(n + 1)])).final
