"""otprox: proximal steps and gradient flows over probability measures."""

from . import domains, exact, functionals, kernels, measures, metrics, observe, schemes, solvers
from .domains import Box, Euclidean, Torus
from .flow import Path, Tick, Trajectory, flow, record
from .functionals import (
    KL,
    Blob,
    Entropy,
    Functional,
    GeneralizedLinear,
    Interaction,
    PorousMedium,
    Potential,
    Quadratic,
    Varying,
)
from .lattice import Lattice
from .measures import Density, GaussHermite, Gaussian, Grid, Measure, Particles, Quantiles, Samples, Spectral
from .metrics import Entropic, Metric, Moving, Wasserstein
from .steps import Backward, Chain, Drift, Flow, Forward, Halves, Heat, Step, Strang

__all__ = [
    "KL",
    "Backward",
    "Blob",
    "Box",
    "Chain",
    "Density",
    "Drift",
    "Entropic",
    "Entropy",
    "Euclidean",
    "Flow",
    "Forward",
    "Functional",
    "GaussHermite",
    "Gaussian",
    "GeneralizedLinear",
    "Grid",
    "Halves",
    "Heat",
    "Interaction",
    "Lattice",
    "Measure",
    "Metric",
    "Moving",
    "Particles",
    "Path",
    "PorousMedium",
    "Potential",
    "Quadratic",
    "Quantiles",
    "Samples",
    "Spectral",
    "Step",
    "Strang",
    "Tick",
    "Torus",
    "Trajectory",
    "Varying",
    "Wasserstein",
    "domains",
    "exact",
    "flow",
    "functionals",
    "kernels",
    "measures",
    "metrics",
    "observe",
    "record",
    "schemes",
    "solvers",
]
