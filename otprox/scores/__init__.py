"""Estimators of the score ∇log ρ from particles, for `Entropy(score=…)`.

`Forward(Entropy(score=…), Landau(γ))` is the score-based particle method of Huang and Wang (2025),
`Forward(Potential(V) + Entropy(score=…))` the deterministic Fokker–Planck flow of Boffi and Vanden-Eijnden (2023).
"""

from .base import Estimator, Known, as_estimator
from .gaussian_fit import GaussianFit
from .kde import KDE
from .network import Fit, Network
from .perceptron import Perceptron
from .random_features import RandomFeatures
from .training import Training

__all__ = [
    "KDE",
    "Estimator",
    "Fit",
    "GaussianFit",
    "Known",
    "Network",
    "Perceptron",
    "RandomFeatures",
    "Training",
    "as_estimator",
]
