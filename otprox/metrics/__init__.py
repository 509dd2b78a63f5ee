"""Metrics, one family a file."""

from .base import Metric
from .landau import Landau
from .mobility import Mobility
from .stein import Stein
from .wasserstein import Entropic, Moving, Wasserstein

__all__ = ["Entropic", "Landau", "Metric", "Mobility", "Moving", "Stein", "Wasserstein"]
