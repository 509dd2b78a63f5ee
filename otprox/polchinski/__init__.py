"""Renormalisation as transport: the Polchinski flow of a field theory, its potential and its measure across scales."""

from .covariances import Covariances, Family, HeatKernel, PauliVillars

__all__ = ["Covariances", "Family", "HeatKernel", "PauliVillars"]
