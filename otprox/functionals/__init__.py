"""Functionals, one family a file."""

from .atom import Atom, NotConvex
from .base import Composite, Functional, Scaled, Sum, Varying
from .blob import Blob
from .congestion import Congestion
from .constraint import Constraint
from .dirichlet import Dirichlet
from .divergence import KL
from .generalized_linear import GeneralizedLinear
from .interaction import Interaction
from .internal import Entropy, Internal, PorousMedium
from .minibatch import Minibatch
from .mmd import MMD, KernelEnergy
from .moments import Moments
from .obstacle import Obstacle
from .potential import GaussianMoments, Potential, Quadratic

__all__ = [
    "KL",
    "MMD",
    "Atom",
    "Blob",
    "Composite",
    "Congestion",
    "Constraint",
    "Dirichlet",
    "Entropy",
    "Functional",
    "GaussianMoments",
    "GeneralizedLinear",
    "Interaction",
    "Internal",
    "KernelEnergy",
    "Minibatch",
    "Moments",
    "NotConvex",
    "Obstacle",
    "PorousMedium",
    "Potential",
    "Quadratic",
    "Scaled",
    "Sum",
    "Varying",
]
