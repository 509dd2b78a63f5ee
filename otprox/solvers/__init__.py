"""Prox solvers, in the order in which `choose` tries them."""

from .base import ConvergenceError, ConvergenceWarning, Out, Solver, Stats
from .block_spins import BlockSpins
from .bures import Bures
from .choose import choose, explain
from .convex import Convex, FrozenWarning
from .descent import Descent
from .feature_basis import Basis, Cosines, Hermite
from .features import Features
from .free_support import FreeSupport
from .gaussian_map import GaussianMap
from .kantorovich import Kantorovich
from .modes import Modes
from .quantile import Quantile
from .scaling import Scaling
from .static import entropic_cost

__all__ = [
    "Basis",
    "BlockSpins",
    "Bures",
    "ConvergenceError",
    "ConvergenceWarning",
    "Convex",
    "Cosines",
    "Descent",
    "Features",
    "FreeSupport",
    "FrozenWarning",
    "GaussianMap",
    "Hermite",
    "Kantorovich",
    "Modes",
    "Out",
    "Quantile",
    "Scaling",
    "Solver",
    "Stats",
    "choose",
    "entropic_cost",
    "explain",
]
