"""Figures: the density of a measure in one or two dimensions, and the errors of verdicts against their ladder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .measures import Density, Gaussian, Grid, Measure, Particles, Quantiles
from .verify import Verdict


def density(mu: Measure, ax: Any = None, *, cells: int = 80, **style: Any) -> Any:
    """Draw a measure without batch; returns the axes.

    1-D: the density as a line (Gaussian, Density), or in `cells` cells (Quantiles, Particles). 2-D: an image (Density),
    points (Particles) or the ellipses of 1, 2 and 3 standard deviations (Gaussian). `style` goes to matplotlib.
    """
    import matplotlib.pyplot as plt

    if mu.batch or mu.dim > 2:
        raise ValueError(f"density draws one measure in dimension 1 or 2, not batch {tuple(mu.batch)} in {mu.dim}")
    ax = plt.gca() if ax is None else ax
    if mu.dim == 1:
        _line(mu, ax, cells, style)
    elif isinstance(mu, Density):
        (a, c), (b, d) = mu.grid.lower, mu.grid.upper
        ax.imshow(mu.values.detach().cpu().mT, origin="lower", extent=(a, b, c, d), **style)
    elif isinstance(mu, Gaussian):
        _ellipses(mu, ax, style)
    else:
        x = mu.points.detach().cpu()
        ax.scatter(x[:, 0], x[:, 1], **{"s": 4, **style})
    return ax


def ladder(verdicts: Iterable[Verdict], ax: Any = None) -> Any:
    """Errors against step sizes (or resolutions), on logarithmic axes; returns the axes."""
    import matplotlib.pyplot as plt

    ax = plt.gca() if ax is None else ax
    for verdict in verdicts:
        order = "" if verdict.observed is None else f", order {verdict.observed:.2f}"
        ax.loglog(verdict.ladder, verdict.errors, "o-", ms=4, label=f"{verdict.name}{order}")
    ax.set(xlabel="step size, or resolution", ylabel="error")
    ax.legend(fontsize=7)
    return ax


def _line(mu: Measure, ax: Any, cells: int, style: dict[str, Any]) -> None:
    if isinstance(mu, Gaussian):
        spread = mu.cov[0, 0].sqrt().item()
        x = torch.linspace(-4 * spread, 4 * spread, 300, dtype=mu.mean.dtype, device=mu.mean.device)[:, None] + mu.mean
        ax.plot(x[:, 0].cpu(), mu.log_prob(x).exp().detach().cpu(), **style)
        return
    if isinstance(mu, Particles | Quantiles):
        x = mu.x.detach().flatten().sort().values
        low, high = x[0].item(), x[-1].item()
        ends = [(b - a).item() for a, b in ((x[:1], x[1:2]), (x[-2:-1], x[-1:])) if len(a) == len(b)]
        margin = max(0.02 * (high - low), *ends, 0.0) or 0.5  # the outer quantiles carry mass half a gap outside
        mu = mu.to_density(Grid(low - margin, high + margin, cells))
        style = {"drawstyle": "steps-mid", **style}
    assert isinstance(mu, Density)
    ax.plot(mu.points[:, 0].detach().cpu(), mu.values.detach().cpu(), **style)


def _ellipses(mu: Gaussian, ax: Any, style: dict[str, Any]) -> None:
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=mu.mean.dtype, device=mu.mean.device)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    for k in (1, 2, 3):
        ring = (mu.mean + k * circle @ mu.factor.mT).detach().cpu()
        ax.plot(ring[:, 0], ring[:, 1], **{"color": "C0", "lw": 2 / k, **style})
