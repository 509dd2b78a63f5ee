"""Measures, each in its own representation."""

from .base import Field, Flux, Growth, Measure, Tangent, Tangents, Velocity
from .gaussian import Gaussian
from .particles import Particles
from .quadrature import GaussHermite, Quadrature, Samples
from .spd import bures2, optimal_map, spectral, sqrtm

__all__ = [
    "Field",
    "Flux",
    "GaussHermite",
    "Gaussian",
    "Growth",
    "Measure",
    "Particles",
    "Quadrature",
    "Samples",
    "Tangent",
    "Tangents",
    "Velocity",
    "bures2",
    "optimal_map",
    "spectral",
    "sqrtm",
]
