"""Metrics, one family a file."""

from .base import Metric
from .wasserstein import Entropic, Moving, Wasserstein

__all__ = ["Entropic", "Metric", "Moving", "Wasserstein"]
