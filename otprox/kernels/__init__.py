"""Kernels k(x, y) as values, with +, - and scalar *: of any two points, of their difference, of their distance."""

from .bandwidth import Bandwidth, Fixed, Median
from .base import Combination, Kernel, Radial, RadialCombination, Stationary, StationaryCombination
from .bilinear import Bilinear
from .expected import Expected
from .radial import RBF, Energy, InverseMultiquadric, Laplace, Riesz
from .random_batch import RandomBatch
from .rescaled import Rescaled
from .sliced import Sliced
from .torus import Cosine, PeriodicRBF, Sobolev, Trigonometric
from .weighted import Weighted

__all__ = [
    "RBF",
    "Bandwidth",
    "Bilinear",
    "Combination",
    "Cosine",
    "Energy",
    "Expected",
    "Fixed",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Median",
    "PeriodicRBF",
    "Radial",
    "RadialCombination",
    "RandomBatch",
    "Rescaled",
    "Riesz",
    "Sliced",
    "Sobolev",
    "Stationary",
    "StationaryCombination",
    "Trigonometric",
    "Weighted",
]
