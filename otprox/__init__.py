"""otprox: proximal steps and gradient flows over probability measures."""

from . import domains, metrics, solvers
from .domains import Box, Euclidean, Torus
from .functionals import KL, Entropy, Functional, Interaction, PorousMedium, Potential, Quadratic, Varying
from .measures import GaussHermite, Gaussian, Measure, Particles, Samples
from .metrics import Entropic, Metric, Moving, Wasserstein
