"""Measures, each in its own representation."""

from .base import Field, Flux, Growth, Measure, Tangent, Tangents, Velocity
from .density import Density
from .gaussian import Gaussian
from .grid import Grid
from .particles import Particles
from .quadrature import Antithetic, GaussHermite, Quadrature, Samples, Trapezoidal
from .quantiles import Quantiles
from .spd import bures2, optimal_map, spectral, sqrtm
from .spectral import Spectral

__all__ = [
    "Antithetic",
    "Density",
    "Field",
    "Flux",
    "GaussHermite",
    "Gaussian",
    "Grid",
    "Growth",
    "Measure",
    "Particles",
    "Quadrature",
    "Quantiles",
    "Samples",
    "Spectral",
    "Tangent",
    "Tangents",
    "Trapezoidal",
    "Velocity",
    "bures2",
    "optimal_map",
    "spectral",
    "sqrtm",
]
