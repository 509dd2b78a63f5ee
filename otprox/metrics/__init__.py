"""Metrics, one family a file."""

from .base import Metric
from .mobility import Mobility
from .stein import Stein
from .wasserstein import Entropic, Moving, Wasserstein

__all__ = ["Entropic", "Metric", "Mobility", "Moving", "Stein", "Wasserstein"]
