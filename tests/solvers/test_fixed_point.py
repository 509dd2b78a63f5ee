import pytest
import torch

from otprox.solvers.fixed_point import fixed_point, norm


def solve(G, v, w, **options):
    settings = {"tol": 1e-12, "floor": torch.zeros(w.shape[:-1]), "max_iter": 60, "depth": 10} | options
    return fixed_point(G, v, w, **settings)


def affine(scale: float, n: int = 6, d: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A of spectral radius `scale`, b and the fixed point of v ↦ Av + b on n·d numbers."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n * d, n * d, generator=generator)
    A = A * scale / torch.linalg.eigvals(A).abs().max()
    b = torch.randn(n * d, generator=generator)
    return A, b, torch.linalg.solve(torch.eye(n * d) - A, b).reshape(n, d)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_affine_maps_take_as_many_images_as_dimensions_even_when_they_expand(scale: float):
    A, b, want = affine(scale)
    w = torch.full((6,), 1 / 6)
    found = solve(lambda v: (A @ v.flatten() + b).reshape(6, 2), torch.zeros(6, 2), w, depth=12, tol=1e-10)
    assert found.converged and found.iterations <= 18
    torch.testing.assert_close(found.image, want)


def test_a_batch_equals_single_runs_and_finished_items_freeze():
    maps = [affine(s, seed=i)[:2] for i, s in enumerate((0.1, 0.6, 0.9))]
    A, b = (torch.stack(part) for part in zip(*maps, strict=True))
    w = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    w = w / w.sum(-1, keepdim=True)
    whole = solve(lambda v: (A @ v.flatten(-2)[..., None] + b[..., None]).reshape(3, 6, 2), torch.zeros(3, 6, 2), w)
    assert len(set(whole.iterations.tolist())) == 3
    for i in range(3):
        one = solve(lambda v, i=i: (A[i] @ v.flatten() + b[i]).reshape(6, 2), torch.zeros(6, 2), w[i])
        assert one.iterations == whole.iterations[i]
        torch.testing.assert_close(one.image, whole.image[i], rtol=1e-10, atol=1e-12)


def test_residual_is_that_of_the_image_returned():
    w = torch.full((1,), 1.0)
    found = solve(torch.cos, torch.full((1, 1), 0.3), w, max_iter=3, depth=0)
    v = torch.tensor(0.3).cos().cos()
    assert not found.converged and found.iterations == 3
    assert found.residual == pytest.approx(abs(float(v.cos() - v)))
    assert found.image.item() == pytest.approx(float(v.cos()))


def test_what_no_iteration_improves_comes_back_as_it_was_best():
    images = iter([1.5, 30.0, 1e4, 1.7, 1e9, 1.6, 1e5, 50.0])
    found = solve(lambda v: torch.full_like(v, next(images)), torch.ones(1, 1), torch.ones(1), max_iter=8, depth=2)
    assert not found.converged and found.residual <= 0.5 and torch.isfinite(found.image).all()


def test_or_else_takes_the_other_only_where_it_must():
    w = torch.ones(2, 1)
    maps = [lambda v: torch.stack([v[0] / 2 + 1, v[1].exp()]), lambda v: torch.stack([v[0] / 3 + 5, v[1] / 2 + 3])]
    first, second = (solve(G, torch.ones(2, 1, 1), w, max_iter=20) for G in maps)
    both = first.or_else(second)
    assert first.converged.tolist() == [True, False] and both.converged.all()
    torch.testing.assert_close(both.image.flatten(), torch.tensor([2.0, 6.0]))
    assert both.iterations.tolist() == [first.iterations[0], first.iterations[1] + second.iterations[1]]
    assert (both.residual < 1e-10).all() and both.point.shape == (2, 1, 1)


def test_no_finite_image_is_nan():
    found = solve(lambda v: v * torch.nan, torch.ones(1, 1), torch.ones(1), max_iter=3)
    assert not found.converged and found.image.isnan().all()


def test_norm_is_that_of_l2():
    v, w = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0.25, 0.75])
    assert norm(v, w).item() == pytest.approx((0.25 * 25 + 0.75 * 4) ** 0.5)
