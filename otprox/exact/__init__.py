"""Closed forms and reference solutions, as functions of their parameters and apart from the solvers they check."""

from . import diffusion, games, gaussian, kuramoto, landau, mckean_vlasov, mmd, polchinski, svgd

__all__ = ["diffusion", "games", "gaussian", "kuramoto", "landau", "mckean_vlasov", "mmd", "polchinski", "svgd"]
