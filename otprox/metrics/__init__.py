"""Metrics, one family a file."""

from .base import Metric
from .stein import Stein
from .wasserstein import Entropic, Moving, Wasserstein

__all__ = ["Entropic", "Metric", "Moving", "Stein", "Wasserstein"]
