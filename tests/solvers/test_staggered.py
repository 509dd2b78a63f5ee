"""The staggered grid: adjoints, eigenfunctions by matrices and by FFT, and the projection against a dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from otprox import Grid
from otprox.solvers import harmonics
from otprox.solvers.continuity import Continuity, Projection, Weights
from otprox.solvers.harmonics import Harmonics
from otprox.solvers.staggered import Staggered, StaggeredAxis, lines

GRIDS = [
    Grid(0.0, 2.0, 6),
    Grid(0.0, 2.0, 5, periodic=True),
    Grid((0, 0), (1, 3), (4, 3), periodic=(True, False)),
    Grid((0, 0, 0), (1, 2, 1), (2, 3, 4), periodic=(False, True, False)),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def faces(line: StaggeredAxis, grid: Grid) -> tuple[int, ...]:
    shape = list(grid.shape)
    shape[line.dim] = line.faces
    return tuple(shape)


@pytest.mark.parametrize("grid", GRIDS)
def test_averages_and_gradients_have_their_adjoints(grid: Grid):
    for line in lines(grid, [1.0] * grid.dim):
        x, y = draw(*grid.shape), draw(*faces(line, grid), seed=1)
        gathered = (line.gather(y) * x).sum()
        torch.testing.assert_close((line.average(x) * line.counted(y)).sum(), gathered)
        torch.testing.assert_close(
            (line.gradient(x) * line.counted(y)).sum(), -(x * line.divergence(_closed(line, y))).sum()
        )


def _closed(line: StaggeredAxis, y: Tensor) -> Tensor:
    """y with nothing through the walls."""
    if line.periodic:
        return y
    y = y.clone()
    y.select(line.dim, 0).zero_()
    y.select(line.dim, line.n).zero_()
    return y


@pytest.mark.parametrize("grid", GRIDS)
def test_the_laplacian_and_the_averages_are_diagonal_in_the_harmonics(grid: Grid):
    along, like = lines(grid, [1.0] * grid.dim), torch.zeros(())
    basis = Harmonics.on(along, like)
    x = draw(2, *grid.shape)
    torch.testing.assert_close(basis.inverse(basis.forward(x)), x)
    torch.testing.assert_close(basis.forward(x).square().sum(), x.square().sum())
    laplacian = -sum(line.divergence(line.gradient(x)) for line in along)
    torch.testing.assert_close(basis.inverse(basis.laplacian(grid.spacing, like) * basis.forward(x)), laplacian)
    averaged = sum(line.gather(line.average(x)) for line in along)
    torch.testing.assert_close(basis.inverse(basis.averaging(like) * basis.forward(x)), averaged)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_fft_and_matrix_give_the_same_harmonics(periodic: bool, n: int, monkeypatch: pytest.MonkeyPatch):
    line, x = StaggeredAxis(-1, n, 0.5, periodic), draw(3, n)
    dense = Harmonics.on([line], x)
    monkeypatch.setattr(harmonics, "DENSE", 0)
    fast = Harmonics.on([line], x)
    assert fast.axes[0].matrix is None and dense.axes[0].matrix is not None
    torch.testing.assert_close(fast.forward(x), dense.forward(x))
    torch.testing.assert_close(fast.inverse(dense.forward(x)), x)


def problem(grid: Grid, ends: int, viscosity: float) -> tuple[Continuity, Projection, Staggered]:
    K, mobility = 3, [1.0, 0.5, 2.0][: grid.dim]
    along = lines(grid, mobility)
    start, end = (draw(*grid.shape, seed=s).exp() for s in (1, 2))
    start, end = (rho / rho.sum() for rho in (start, end))
    c = Continuity.on(grid, along, start, end if ends == 2 else None, 0.25, K, viscosity)
    one = [1] * grid.dim
    nodes = torch.linspace(1.0, 2.0, c.nodes).reshape(-1, *one)
    weights = Weights(nodes, torch.full((1, *one), 1.7), torch.full((1, *one), 0.6))
    shapes = [(K, *faces(line, grid)) for line in along]
    flux = [_closed(line, draw(*shape, seed=5)) for line, shape in zip(along, shapes, strict=True)]
    target = Staggered(draw(c.nodes, *grid.shape, seed=3), tuple(draw(*s, seed=4) for s in shapes), tuple(flux))
    return c, c.factor(weights), target


@pytest.mark.parametrize("viscosity", [0.0, 0.3])
@pytest.mark.parametrize("ends", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_projection_obeys_the_equation_and_is_the_nearest(grid: Grid, ends: int, viscosity: float):
    c, project, target = problem(grid, ends, viscosity)
    path, psi = project(target)
    missed = c.change(c.whole(path.nodes)) + c.divergence(path.flux)
    assert missed.abs().max() < 1e-12
    torch.testing.assert_close(path.density, c.averages(path.nodes))
    for again, once in zip(project(path)[0].parts, path.parts, strict=True):
        torch.testing.assert_close(again, once)
    for line, m, wanted in zip(c.lines, path.flux, target.flux, strict=True):
        torch.testing.assert_close(m - wanted, line.gradient(psi))
    other, _ = project(
        Staggered.of([part + _closed_part(c, i, draw(*part.shape, seed=7)) for i, part in enumerate(target.parts)])
    )
    inner = sum(
        (w * count(a - t) * (b - a)).sum()
        for w, count, a, b, t in zip(
            project.weights.parts(grid.dim),
            [lambda x: x, *[line.counted for line in c.lines] * 2],
            path.parts,
            other.parts,
            target.parts,
            strict=True,
        )
    )
    assert abs(inner.item()) < 1e-10  # the step to the projection is orthogonal to the affine space


def _closed_part(c: Continuity, i: int, x: Tensor) -> Tensor:
    return _closed(c.lines[i - 1 - c.grid.dim], x) if i > c.grid.dim else x
