"""Prox solvers, in the order in which `choose` tries them."""

from .base import ConvergenceError, ConvergenceWarning, Out, Solver, Stats
from .choose import choose, explain

__all__ = ["ConvergenceError", "ConvergenceWarning", "Out", "Solver", "Stats", "choose", "explain"]
