"""Kernels k(x, y) as values, with +, - and scalar *: of any two points, of their difference, of their distance."""

from .bandwidth import Bandwidth, Fixed, Median
from .base import Combination, Kernel, Radial, RadialCombination, Stationary, StationaryCombination
from .bilinear import Bilinear
from .radial import RBF, Energy, InverseMultiquadric, Laplace, Riesz
from .rescaled import Rescaled
from .torus import Cosine
from .weighted import Weighted

__all__ = [
    "RBF",
    "Bandwidth",
    "Bilinear",
    "Combination",
    "Cosine",
    "Energy",
    "Fixed",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Median",
    "Radial",
    "RadialCombination",
    "Rescaled",
    "Riesz",
    "Stationary",
    "StationaryCombination",
    "Weighted",
]
