"""The shape checks themselves: they refuse what contradicts an annotation, and nothing else."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from otprox import Gaussian, Particles

shapes = pytest.importorskip("shapes")


@pytest.mark.parametrize("bad", [{"mean": torch.zeros(3)}, {"cov": torch.eye(3)}, {"mean": torch.zeros(5, 2)}])
def test_fields_that_disagree_are_refused(bad: dict[str, Tensor]):
    mu = Gaussian([0.0, 0.0], torch.eye(2))
    with pytest.raises(AssertionError, match="is not"):
        mu.with_state(**bad)


def test_fields_that_agree_are_accepted():
    mu = Particles(torch.zeros(4, 3, 2))
    assert mu.with_state(x=torch.ones(4, 3, 2)).x.shape == (4, 3, 2)
    assert mu.with_state(log_density=torch.ones(4, 3)).log_density is not None


def norm(x: Float[Tensor, "n d"], scale: float) -> Float[Tensor, " n"]:
    return scale * x.square().sum(-1)


def test_functions_are_checked_for_shapes_alone():
    checked = jaxtyped(norm, typechecker=shapes.check)
    assert checked(torch.ones(3, 2), 2).shape == (3,)  # 2 is no float, but that is not our business here
    with pytest.raises(TypeCheckError):
        checked(torch.ones(3), 2.0)
