"""Prox solvers, in the order in which `choose` tries them."""

from .base import ConvergenceError, ConvergenceWarning, Out, Solver, Stats
from .bures import Bures
from .choose import choose, explain
from .gaussian_map import GaussianMap
from .quantile import Quantile

__all__ = [
    "Bures",
    "ConvergenceError",
    "ConvergenceWarning",
    "GaussianMap",
    "Out",
    "Quantile",
    "Solver",
    "Stats",
    "choose",
    "explain",
]
