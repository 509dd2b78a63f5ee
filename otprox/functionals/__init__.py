"""Functionals, one family a file."""

from .base import Composite, Functional, Scaled, Sum, Varying
from .divergence import KL
from .interaction import Interaction
from .internal import Entropy, Internal, PorousMedium
from .potential import GaussianMoments, Potential, Quadratic

__all__ = [
    "KL",
    "Composite",
    "Entropy",
    "Functional",
    "GaussianMoments",
    "Interaction",
    "Internal",
    "PorousMedium",
    "Potential",
    "Quadratic",
    "Scaled",
    "Sum",
    "Varying",
]
