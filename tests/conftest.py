"""What every test shares: float64, shape checks, reproducible properties, the fixed 3-D Gaussians."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NamedTuple

os.environ.setdefault("MPLBACKEND", "Agg")

if find_spec("beartype"):
    import shapes

    shapes.install()  # before any test imports otprox

import hypothesis
import pytest
import torch
from torch import Tensor

torch.set_default_dtype(torch.float64)
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "otprox",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # it measures wall time
)
hypothesis.settings.load_profile("otprox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "needs_cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class Gaussians(NamedTuple):
    """Two Gaussians in R³, N(m0, S0) and N(mq, Q), whose covariances do not commute."""

    m0: Tensor
    S0: Tensor
    mq: Tensor
    Q: Tensor


@pytest.fixture
def gaussians() -> Gaussians:
    """W2²(N(m0, S0), N(mq, Q)) = 8.598073996897323 and KL(N(m0, S0) | N(mq, Q)) = 7.401787151704376."""
    return Gaussians(
        m0=torch.tensor([1.0, -2.0, 0.5]),
        S0=torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]]),
        mq=torch.tensor([0.5, 0.25, -1.0]),
        Q=torch.tensor([[1.0, -0.4, 0.1], [-0.4, 0.8, 0.3], [0.1, 0.3, 1.5]]),
    )


@pytest.fixture
def m0(gaussians: Gaussians) -> Tensor:
    return gaussians.m0


@pytest.fixture
def S0(gaussians: Gaussians) -> Tensor:
    return gaussians.S0


@pytest.fixture
def mq(gaussians: Gaussians) -> Tensor:
    return gaussians.mq


@pytest.fixture
def Q(gaussians: Gaussians) -> Tensor:
    return gaussians.Q
