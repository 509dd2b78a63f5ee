"""Measures, each in its own representation."""

from .base import Field, Flux, Growth, Measure, Tangent, Tangents, Velocity
from .density import Density
from .gaussian import Gaussian
from .grid import Grid
from .particles import Particles
from .quadrature import GaussHermite, Quadrature, Samples
from .quantiles import Quantiles
from .spd import bures2, optimal_map, spectral, sqrtm

__all__ = [
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
    "Tangent",
    "Tangents",
    "Velocity",
    "bures2",
    "optimal_map",
    "spectral",
    "sqrtm",
]
