"""Kernels k(x, y) as values, with +, - and scalar *: of any two points, of their difference, of their distance."""

from .base import Combination, Kernel, Radial, RadialCombination, Stationary, StationaryCombination
from .bilinear import Bilinear
from .radial import RBF, Energy, InverseMultiquadric, Laplace, Riesz
from .torus import Cosine

__all__ = [
    "RBF",
    "Bilinear",
    "Combination",
    "Cosine",
    "Energy",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Radial",
    "RadialCombination",
    "Riesz",
    "Stationary",
    "StationaryCombination",
]
