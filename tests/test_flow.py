"""Running: paths that iterate again, records, checkpoints, interrupts, failures."""

import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import otprox as ox
from otprox import observe

V = ox.Quadratic([0.0])
TIMES = [0.1 * k for k in range(11)]


def cloud(n=50):
    return ox.Particles(torch.randn(n, 1, generator=torch.Generator().manual_seed(0)))


def langevin(seed=0):
    return ox.Forward(ox.Potential(V)) >> ox.Heat(generator=torch.Generator().manual_seed(seed))


def test_ticks_cover_the_times():
    ticks = list(ox.flow(ox.Forward(ox.Potential(V)), cloud(), TIMES))
    assert [t.k for t in ticks] == list(range(10))
    assert [(t.t0, t.t1) for t in ticks] == list(zip(TIMES[:-1], TIMES[1:], strict=True))
    for a, b in zip(ticks, ticks[1:], strict=False):
        assert b.before is a.after


def test_a_path_can_be_iterated_again():
    path = ox.flow(langevin(), cloud(), TIMES)
    first, second = ([t.after.x for t in path] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(path) == 10


@pytest.mark.parametrize(("every", "want"), [(1, list(range(1, 11))), (3, [3, 6, 9, 10]), (5, [5, 10]), (20, [10])])
def test_record_keeps_every_nth_and_the_last(every, want):
    run = ox.record(ox.flow(ox.Forward(ox.Potential(V)), cloud(), TIMES), every, mean=observe.mean, mass=observe.mass)
    torch.testing.assert_close(run.times, torch.tensor([TIMES[k] for k in want]))
    assert run.series["mean"].shape == (len(want), 1)
    assert run.series["mass"].shape == (len(want),)
    assert run.status == "finished" and run.steps == 10


def test_until_stops_and_the_stopping_tick_is_kept():
    path = ox.flow(ox.Forward(ox.Potential(V)), cloud(), TIMES)
    run = ox.record(path, 4, until=lambda tick: tick.t1 > 0.55, mean=observe.mean)
    assert run.status == "stopped" and run.steps == 6
    torch.testing.assert_close(run.times, torch.tensor([TIMES[4], TIMES[6]]))


def test_batches_lead_in_series():
    mu = ox.Gaussian(torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), torch.eye(2).expand(3, 2, 2))
    run = ox.record(ox.flow(ox.Heat(), mu, TIMES), cov=observe.covariance, energy=observe.energy(ox.Entropy()))
    assert run.series["cov"].shape == (10, 3, 2, 2) and run.series["energy"].shape == (10, 3)


class Boom(Exception):
    pass


@pytest.mark.parametrize("broken", [1, 4, 7])
@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, broken, every):
    def bomb(tick):
        if armed and tick.k == broken:
            raise Boom
        return observe.mean(tick)

    armed = False
    whole = ox.record(ox.flow(langevin(3), cloud(), TIMES), every, mean=bomb, cov=observe.covariance)
    armed, file = True, tmp_path / "run.npz"
    if (broken + 1) % every == 0:
        with pytest.raises(Boom) as caught:
            ox.record(ox.flow(langevin(3), cloud(), TIMES), every, checkpoint=file, mean=bomb, cov=observe.covariance)
        assert caught.value.trajectory.steps == broken and caught.value.trajectory.status == "failed"
    armed = False
    again = ox.record(ox.flow(langevin(3), cloud(), TIMES), every, checkpoint=file, mean=bomb, cov=observe.covariance)
    assert torch.equal(again.final.x, whole.final.x) and torch.equal(again.times, whole.times)
    assert all(torch.equal(again.series[name], whole.series[name]) for name in whole.series)


def test_resume_restores_warm_starts_of_solvers(tmp_path):
    step = ox.Backward(ox.KL(lambda x: (x**2 - 1).square().sum(-1)), ox.Entropic(0.05))
    mu = ox.Gaussian([0.5], [[0.3]]).to_density(ox.Grid(-4.0, 4.0, 64))
    times = [0.05 * k for k in range(7)]
    whole = ox.record(ox.flow(step, mu, times), mean=observe.mean)
    file = tmp_path / "run.npz"
    ox.record(ox.flow(step, mu, times[:4]), checkpoint=file, mean=observe.mean)
    again = ox.record(ox.flow(step, mu, times), checkpoint=file, mean=observe.mean)
    assert torch.equal(again.final.values, whole.final.values)
    assert torch.equal(again.series["mean"], whole.series["mean"])


def test_a_finished_checkpoint_is_returned_at_once_and_can_be_extended(tmp_path):
    file, calls = tmp_path / "run.npz", []

    def count(tick):
        calls.append(tick.k)
        return observe.mean(tick)

    short = ox.record(ox.flow(langevin(), cloud(), TIMES[:6]), 2, checkpoint=file, mean=count)
    n = len(calls)
    same = ox.record(ox.flow(langevin(), cloud(), TIMES[:6]), 2, checkpoint=file, mean=count)
    assert len(calls) == n and torch.equal(same.series["mean"], short.series["mean"])
    longer = ox.record(ox.flow(langevin(), cloud(), TIMES), 2, checkpoint=file, mean=count)
    whole = ox.record(ox.flow(langevin(), cloud(), TIMES), 2, mean=count)
    assert torch.equal(longer.series["mean"], whole.series["mean"]) and torch.equal(longer.times, whole.times)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.npz"
    ox.record(ox.flow(langevin(), cloud(), TIMES), checkpoint=file, mean=observe.mean)
    for step, mu, times, every in [
        (langevin(), cloud(40), TIMES, 1),
        (langevin(), cloud(), [2 * t for t in TIMES], 1),
        (langevin(), cloud(), TIMES, 2),
        (ox.Forward(ox.Potential(V)), cloud(), TIMES, 1),
        (ox.Forward(ox.Potential(ox.Quadratic([0.1]))) >> langevin().steps[1], cloud(), TIMES, 1),
        (ox.Forward(ox.Potential(V), ox.Wasserstein(torch.tensor([[2.0]]))) >> langevin().steps[1], cloud(), TIMES, 1),
        (ox.Forward(ox.Potential(lambda x: (x**2).sum(-1))) >> langevin().steps[1], cloud(), TIMES, 1),
    ]:
        with pytest.raises(ValueError, match="another run"):
            ox.record(ox.flow(step, mu, times), every, checkpoint=file, mean=observe.mean)
    file.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="not written by otprox"):
        ox.record(ox.flow(langevin(), cloud(), TIMES), checkpoint=file, mean=observe.mean)


def test_an_interrupt_keeps_what_was_recorded():
    def press(tick):
        if tick.k == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return observe.mean(tick)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    with pytest.warns(UserWarning, match="interrupted"):
        run = ox.record(ox.flow(langevin(), cloud(), TIMES), mean=press)
    signal.signal(signal.SIGINT, before)
    assert run.status == "interrupted" and 4 <= len(run.times) <= 5


def test_a_killed_process_resumes(tmp_path):
    file = tmp_path / "run.npz"
    script = textwrap.dedent(
        f"""
        import os, torch, otprox as ox
        from otprox import observe
        torch.set_default_dtype(torch.float64)
        V = ox.Quadratic([0.0])
        step = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=torch.Generator().manual_seed(3))
        mu = ox.Particles(torch.randn(50, 1, generator=torch.Generator().manual_seed(0)))
        kill = lambda tick: os._exit(9) if tick.k == 5 else tick.after.mean
        ox.record(ox.flow(step, mu, [0.1 * k for k in range(11)]), checkpoint={str(file)!r}, mean=kill)
        """
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 9
    whole = ox.record(ox.flow(langevin(3), cloud(), TIMES), mean=observe.mean)
    again = ox.record(ox.flow(langevin(3), cloud(), TIMES), checkpoint=file, mean=observe.mean)
    assert torch.equal(again.final.x, whole.final.x) and torch.equal(again.series["mean"], whole.series["mean"])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_failing_step_keeps_the_steps_before_it():
    F = ox.Varying(lambda t: ox.Potential(lambda x: x.sum(-1) if t < 0.45 else x.sum(-1) * math.nan))
    with pytest.raises(ValueError, match="Potential.*non-finite") as caught:
        ox.record(ox.flow(ox.Forward(F), cloud(), TIMES), mean=observe.mean)
    assert caught.value.trajectory.steps == 5 and len(caught.value.trajectory.times) == 5
    assert torch.isfinite(caught.value.trajectory.final.x).all()


def test_save_and_load(tmp_path):
    step = ox.Forward(ox.Potential(ox.Quadratic([0.0, 0.0]))) >> ox.Heat(generator=torch.Generator().manual_seed(0))
    mu = ox.Particles(torch.rand(9, 2), domain=ox.Torus((1.0, 2.0)))
    run = ox.record(ox.flow(step, mu, TIMES), m=observe.mean)
    run.save(tmp_path / "run.npz")
    back = ox.Trajectory.load(tmp_path / "run.npz")
    assert torch.equal(back.final.x, run.final.x) and back.final.domain == ox.Torus((1.0, 2.0))
    assert torch.equal(back.series["m"], run.series["m"]) and back.status == "finished"
    density = ox.Gaussian([0.0], [[1.0]]).to_density(ox.Grid(-6.0, 6.0, 40))
    run = ox.record(ox.flow(ox.Heat(), density, [0.0, 0.1]))
    run.save(tmp_path / "density.npz")
    back = ox.Trajectory.load(tmp_path / "density.npz")
    assert back.final.grid == density.grid and torch.equal(back.final.values, run.final.values)


def test_xarray_and_plot():
    xarray = pytest.importorskip("xarray")
    run = ox.record(ox.flow(ox.Heat(), ox.Gaussian([0.0], [[1.0]]), TIMES), cov=observe.covariance, mass=observe.mass)
    data = run.to_xarray()
    assert isinstance(data, xarray.Dataset) and data["cov"].sizes["time"] == 10
    figure = run.plot("mass", "cov")
    assert [ax.get_ylabel() for ax in figure.axes] == ["mass", "cov"]
    with pytest.raises(ValueError, match="no series 'kl'"):
        run.plot("kl")


def test_progress_shows_a_bar(capfd):
    ox.record(ox.flow(ox.Heat(), ox.Gaussian([0.0], [[1.0]]), TIMES, progress=True))
    assert "10/10" in capfd.readouterr().err


def test_refusals():
    step, mu = ox.Heat(), ox.Gaussian([0.0], [[1.0]])
    with pytest.raises(ValueError, match="times\\[1\\] = 1.0 and times\\[2\\] = 1.0"):
        ox.flow(step, mu, [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="at least two"):
        ox.flow(step, mu, [0.0])
    with pytest.raises(ValueError, match="times"):
        ox.flow(step, mu, [0.0, math.nan])
    with pytest.raises(TypeError, match="Step"):
        ox.flow(ox.Entropy(), mu, [0.0, 1.0])
    with pytest.raises(ValueError, match="every"):
        ox.record(ox.flow(step, mu, [0.0, 1.0]), every=0)
