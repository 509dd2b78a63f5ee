"""otprox: proximal steps and gradient flows over probability measures."""

from . import domains, functionals, kernels, measures, metrics, observe, schemes, solvers
from .domains import Box, Euclidean, Torus
from .flow import Path, Tick, Trajectory, flow, record
from .functionals import KL, Blob, Entropy, Functional, Interaction, PorousMedium, Potential, Quadratic, Varying
from .measures import Density, GaussHermite, Gaussian, Grid, Measure, Particles, Quantiles, Samples
from .metrics import Entropic, Metric, Moving, Wasserstein
from .steps import Backward, Chain, Drift, Flow, Forward, Halves, Heat, Step, Strang
