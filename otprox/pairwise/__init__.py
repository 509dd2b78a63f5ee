"""The only door to sums over pairs of particles, with memory linear in their number, also under autograd.

For a kernel k of `otprox.kernels`, points x (*batch, m, d) and sources y (*batch, n, d):

- `kernel_sum(k, x, y, b)`: Σ_j k(x_i, y_j) b_j, for b (*batch, n) or (*batch, n, p)
- `gradient_sum(k, x, y, b)`: Σ_j b_j ∇₁k(x_i, y_j)
- `divergence_sum(k, x, y, v)`: Σ_j ∇₁k(x_i, y_j)·v_j
- `trace_sum(k, x, y, b)`: Σ_j b_j tr ∇₁∇₂k(x_i, y_j)
- `stein_sum(k, x, score, w)`: Σ_j w_j [k(x_i, x_j) s_j + ∇₂k(x_i, x_j)], the velocity of SVGD
- `stein_discrepancy(k, x, score, w)`: the squared kernel Stein discrepancy
- `log_gaussian_sum(x, y, log_w, width)`: log Σ_j w_j exp(−|x_i − y_j|²/(2·width²))

and between particles x and the nodes of a tensor-product grid, given by its axes, with φ = exp(−|x − g|²/(2·width²)):

- `gaussian_spread(x, w, axes, width)`: Σ_j w_j φ(x_j − g) at every node g
- `gaussian_gather(x, c, axes, width)`: Σ_g c_g φ(x_i − g); `gaussian_gather_slopes` and
  `gaussian_gather_curvatures` are its derivatives in x

for collisions with A(z) = |z|^γ(|z|²I − zzᵀ):

- `collide(x, u, y, v, w, gamma)`: Σ_j w_j A(x_i − y_j)(u_i − v_j), and `collision_jacobian` with its slope in x_i;
  `collisions_of_fields`, the same for many covector fields at once

and for any even function W of displacements `convolve(W, x, y, w)`, with `Slope(W)` for its gradient.

Sums over pairs take `engine=`: "dense" (all pairs at once), "tiled" (the default for many particles), "keops" (an
extra), or "auto", which also takes the routes that are faster than all pairs where the kernel has one: moments,
sorting, Fourier modes. Those of kernels and `convolve` take a `domain=`. `explain(k, x)` says which route and engine
that is, and `sliced_sum` gives the standard error of slicing. Radial kernels go through matrix products in tiles of the
size of a cache, each pair once where y is x itself, and derivatives of any order are again such sums.
"""

from .collision_fields import collisions_of_fields
from .collisions import collide, collision_jacobian
from .convolution import Slope, convolve, evaluate
from .engines import Choice, Engine, choose
from .gaussian import log_gaussian_sum
from .reductions import divergence_sum, gradient_sum, kernel_sum, stein_discrepancy, stein_sum, trace_sum
from .routes import explain
from .slicing import Estimate, sliced_sum
from .tensor_grid import gaussian_gather, gaussian_gather_curvatures, gaussian_gather_slopes, gaussian_spread
from .tiles import TILE

__all__ = [
    "TILE",
    "Choice",
    "Engine",
    "Estimate",
    "Slope",
    "choose",
    "collide",
    "collision_jacobian",
    "collisions_of_fields",
    "convolve",
    "divergence_sum",
    "evaluate",
    "explain",
    "gaussian_gather",
    "gaussian_gather_curvatures",
    "gaussian_gather_slopes",
    "gaussian_spread",
    "gradient_sum",
    "kernel_sum",
    "log_gaussian_sum",
    "sliced_sum",
    "stein_discrepancy",
    "stein_sum",
    "trace_sum",
]
