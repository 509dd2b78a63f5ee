"""otprox: proximal steps and gradient flows over probability measures."""

from . import chaos, domains, exact, functionals, kernels, measures, metrics, observe, polchinski, schemes, solvers
from .adagrad import Adagrad
from .adaptive import Adaptive, Richardson
from .domains import Box, Euclidean, Torus
from .flow import Path, Tick, Trajectory, flow, record
from .functionals import (
    KL,
    MMD,
    Blob,
    Congestion,
    Dirichlet,
    Entropy,
    Functional,
    GeneralizedLinear,
    Interaction,
    Minibatch,
    Moments,
    Obstacle,
    PorousMedium,
    Potential,
    Quadratic,
    Varying,
)
from .lattice import Lattice
from .measures import Density, GaussHermite, Gaussian, Grid, Measure, Particles, Quantiles, Samples, Spectral
from .metrics import Entropic, Metric, Mobility, Moving, Stein, Wasserstein
from .multistep import BDF2
from .noisy import NoisyForward
from .pseudospectral import PseudoSpectral
from .steps import Backward, Chain, Drift, Flow, Forward, Halves, Heat, Step, Strang
from .sweep import Table, sweep

__all__ = [
    "BDF2",
    "KL",
    "MMD",
    "Adagrad",
    "Adaptive",
    "Backward",
    "Blob",
    "Box",
    "Chain",
    "Congestion",
    "Density",
    "Dirichlet",
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
    "Minibatch",
    "Mobility",
    "Moments",
    "Moving",
    "NoisyForward",
    "Obstacle",
    "Particles",
    "Path",
    "PorousMedium",
    "Potential",
    "PseudoSpectral",
    "Quadratic",
    "Quantiles",
    "Richardson",
    "Samples",
    "Spectral",
    "Stein",
    "Step",
    "Strang",
    "Table",
    "Tick",
    "Torus",
    "Trajectory",
    "Varying",
    "Wasserstein",
    "chaos",
    "domains",
    "exact",
    "flow",
    "functionals",
    "kernels",
    "measures",
    "metrics",
    "observe",
    "polchinski",
    "record",
    "schemes",
    "solvers",
    "sweep",
]
