"""Prox solvers, in the order in which `choose` tries them."""

from .base import ConvergenceError, ConvergenceWarning, Out, Solver, Stats
from .block_spins import BlockSpins
from .bures import Bures
from .choose import choose, explain
from .collision_flow import CollisionFlow
from .concave import Concave, ConcaveMobility, Linear, Saturating
from .convex import Convex, FrozenWarning
from .cramer import Cramer
from .curve import Curve
from .descent import Descent
from .dynamic import Dynamic, benamou_brenier, geodesic
from .feature_basis import Basis, Cosines, Hermite
from .features import Features
from .free_support import FreeSupport
from .gaussian_map import GaussianMap
from .grid_distance import grid_distance
from .kantorovich import Kantorovich
from .modes import Modes
from .network_flow import NetworkFlow
from .quantile import Quantile
from .scaling import Scaling
from .self_consistent import SelfConsistent
from .static import entropic_cost

__all__ = [
    "Basis",
    "BlockSpins",
    "Bures",
    "CollisionFlow",
    "Concave",
    "ConcaveMobility",
    "ConvergenceError",
    "ConvergenceWarning",
    "Convex",
    "Cosines",
    "Cramer",
    "Curve",
    "Descent",
    "Dynamic",
    "Features",
    "FreeSupport",
    "FrozenWarning",
    "GaussianMap",
    "Hermite",
    "Kantorovich",
    "Linear",
    "Modes",
    "NetworkFlow",
    "Out",
    "Quantile",
    "Saturating",
    "Scaling",
    "SelfConsistent",
    "Solver",
    "Stats",
    "benamou_brenier",
    "choose",
    "entropic_cost",
    "explain",
    "geodesic",
    "grid_distance",
]
