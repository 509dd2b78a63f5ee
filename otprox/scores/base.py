"""What an estimator of the score ∇log ρ of particles is, and a score that is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..measures import Field, Measure


class Estimator(ABC):
    """A way to estimate the score s = ∇log ρ from particles drawn from ρ. Subclasses are final frozen dataclasses."""

    @abstractmethod
    def fit(self, mu: Measure, last: Any = None) -> Known:
        """The score of μ. `last` is the stats of the fit before, from which estimators that are trained start."""

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that `fit` draws from."""
        return ()


@dataclass(frozen=True, eq=False)
class Known(Estimator):
    """A score that is given: a function s of points, (*batch, n, d) -> (*batch, n, d), written in torch.

    Every fit returns one. `jacobian` gives ∇s, (*batch, n, d, d), where there is a faster way than differentiating;
    `stats` is what the fit has to say, None when it was in closed form.
    """

    score: Field
    jacobian: Field | None = field(default=None, kw_only=True)
    stats: Any = field(default=None, kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """s(x), its shape checked."""
        s = self.score(x)
        if not isinstance(s, Tensor) or s.shape != x.shape:
            given = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
            raise ValueError(f"a score maps points to vectors of the same shape: {tuple(x.shape)} gave {given}")
        return s

    def fit(self, mu: Measure, last: Any = None) -> Known:
        return self


def as_estimator(score: Any) -> Estimator:
    """A score as a user gave it: an estimator, or a function of points."""
    if isinstance(score, Estimator):
        return score
    if isinstance(score, torch.nn.Module):
        raise TypeError("a torch module becomes a score by training: scores.Network(module, generator=...)")
    if isinstance(score, type) or not callable(score):
        raise TypeError(
            "score must be an estimator such as scores.GaussianFit() or scores.KDE(), or a function of points "
            f"(*batch, n, d), not {score!r}"
        )
    return Known(score)


def nodes_of(mu: Measure, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Points and weights of particles in R^d, from which a score can be estimated."""
    domain = getattr(mu, "domain", None)
    if domain is not None and not domain.straight:
        raise TypeError(f"{type(estimator).__name__} estimates scores in R^d, not on a {type(domain).__name__}")
    return mu.points, mu.weights
