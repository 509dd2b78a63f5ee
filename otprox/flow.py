"""Run a step along times: `flow` is the path, `record` exhausts it and keeps what observers saw."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import storage
from .functionals import Functional
from .measures import Measure
from .steps import Step


class Tick(NamedTuple):
    """One step of a path: its number, its interval, the measures before and after, and the step's stats."""

    k: int
    t0: float
    t1: float
    before: Measure
    after: Measure
    stats: Any


Observer = Callable[[Tick], Tensor]


@dataclass(frozen=True, eq=False)
class Path:
    """A step along times from a measure. Iterating yields Ticks, lazily; iterating again gives the same path, as the
    states that the generators had at the first iteration are put back."""

    step: Step
    mu: Measure
    times: tuple[float, ...]
    progress: bool = False
    start: int = 0
    last: Any = None
    _seeds: list[Tensor] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.times) - 1 - self.start

    def __iter__(self) -> Iterator[Tick]:
        self._rewind()
        mu, stats = self.mu, self.last
        for k, (t0, t1) in self._bar(enumerate(pairwise(self.times[self.start :]), self.start)):
            out = self.step(mu, t0, t1, stats)
            yield Tick(k, t0, t1, mu, out.mu, out.stats)
            mu, stats = out.mu, out.stats

    def resume(self, k: int, mu: Measure, last: Any, seeds: tuple[Tensor, ...]) -> Path:
        """The same path from step k on, with the state reached there."""
        return replace(self, start=k, mu=mu, last=last, _seeds=list(seeds))

    def _rewind(self) -> None:
        generators = self.step.generators()
        if not self._seeds:
            self._seeds.extend(g.get_state() for g in generators)
        for generator, state in zip(generators, self._seeds, strict=True):
            generator.set_state(state)

    def _bar(self, ticks: Iterable[Any]) -> Iterable[Any]:
        if not self.progress:
            return ticks
        from tqdm.auto import tqdm

        return tqdm(ticks, initial=self.start, total=len(self.times) - 1, unit="step")


def flow(step: Step, mu: Measure, times: Iterable[float], progress: bool = False) -> Path:
    """The path of `step` from `mu` along increasing `times`; a step for each interval between them.

    >>> import torch, otprox as ox
    >>> V = ox.Quadratic([0.0])
    >>> fb = ox.Forward(ox.Potential(V)) >> ox.Backward(ox.Entropy())
    >>> for tick in ox.flow(fb, ox.Gaussian([10.0], [[100.0]]), [0.0, 0.5, 1.0]):
    ...     print(tick.k, round(tick.after.mean.item(), 4), round(tick.after.cov.item(), 4))
    0 5.0 25.9904
    1 2.5 7.4641
    """
    if not isinstance(step, Step):
        raise TypeError(f"flow needs a Step such as Forward(F) >> Heat(), not a {type(step).__name__}")
    if not isinstance(mu, Measure):
        raise TypeError(f"flow starts from a Measure such as Particles(x), not a {type(mu).__name__}")
    if isinstance(times, int | float):
        raise TypeError(f"times must be increasing instants such as [0.0, {times}], not the number {times}")
    grid = tuple(float(t) for t in times)
    if len(grid) < 2:
        raise ValueError(f"times must hold at least two instants, not {len(grid)}")
    for k, (t0, t1) in enumerate(pairwise(grid)):
        if not t0 < t1:
            raise ValueError(f"times must increase; times[{k}] = {t0} and times[{k + 1}] = {t1}")
    return Path(step, mu, grid, progress)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a run left: the last measure, the times of the recorded ticks, and a series an observer, time leading.

    `status` is "finished", "stopped" (until), "interrupted" or "failed"; `steps` counts the steps taken.
    """

    final: Measure
    times: Tensor
    series: dict[str, Tensor]
    status: str
    steps: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one .npz file, without pickle."""
        storage.save(path, {f: getattr(self, f) for f in ("final", "times", "series", "status", "steps")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote."""
        return cls(**storage.load(path))

    def to_xarray(self) -> Any:
        """An xarray.Dataset with coordinate `time`; needs xarray."""
        try:
            import xarray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Trajectory.to_xarray needs xarray: pip install xarray") from error
        data = {
            name: (("time", *(f"{name}_{i}" for i in range(values.ndim - 1))), values.detach().cpu().numpy())
            for name, values in self.series.items()
        }
        return xarray.Dataset(data, coords={"time": self.times.numpy()})

    def plot(self, *names: str, log: bool = False) -> Any:
        """One panel a series against time (all of them unless named); returns the matplotlib figure."""
        import matplotlib.pyplot as plt

        names = names or tuple(self.series)
        for name in names:
            if name not in self.series:
                raise ValueError(f"no series {name!r}; there are {sorted(self.series)}")
        if not names:
            raise ValueError("nothing to plot: record was given no observers")
        figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False, layout="constrained")
        for ax, name in zip(axes[0], names, strict=True):
            values = self.series[name].detach().cpu()
            ax.plot(self.times, values.reshape(len(values), -1))
            ax.set(xlabel="time", ylabel=name, yscale="log" if log else "linear")
        return figure


def record(
    path: Path,
    every: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    until: Callable[[Tick], Any] | None = None,
    **observers: Observer,
) -> Trajectory:
    """Run a path and keep what the observers see at every `every`-th step and at the last one, stamped t1.

    `until(tick)` true (for the whole batch) stops the run after that tick; its checkpoint remembers that, and to go
    on one deletes the file. With `checkpoint`, the state is written to
    that file (.npz, atomically, at most once a second and at the end; missing folders are made), and a run that finds
    it goes on from there, bit for bit as if it had not been broken; the states of the generators come from the file
    too, so another seed needs another file. Ctrl-C ends the run and returns what was recorded, with status
    "interrupted". A step that fails raises its error with the recorded part as `error.trajectory`.
    """
    if not isinstance(path, Path):
        raise TypeError(f"record needs a path, as flow(step, mu, times) makes it, not a {type(path).__name__}")
    for name, look in observers.items():
        if isinstance(look, Functional) or not callable(look):
            raise TypeError(f"observer {name!r} must be a function of a Tick, such as observe.energy(F), not {look}")
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    run = _Run(path, every, checkpoint, observers)
    path = run.restore()
    if run.status in ("stopped", "finished"):
        return run.trajectory()
    try:
        for tick in path:
            run.keep(tick)
            if until is not None and bool(torch.as_tensor(until(tick)).all()):
                run.status = "stopped"
                break
        else:
            run.status = "finished"
    except KeyboardInterrupt:
        run.status = "interrupted"
        warnings.warn(f"interrupted after {run.steps} steps; what was recorded is returned", stacklevel=2)
    except Exception as error:
        run.status = "failed"
        run.close()
        error.trajectory = run.trajectory()  # type: ignore[attr-defined]
        error.add_note(f"step {run.steps} failed; the {run.steps} steps before it are in error.trajectory")
        raise
    run.close()
    return run.trajectory()


class _Run:
    """The mutable part of `record`: what has been seen so far, and its checkpoint."""

    def __init__(
        self, path: Path, every: int, checkpoint: str | os.PathLike[str] | None, observers: dict[str, Observer]
    ) -> None:
        self.path, self.every, self.checkpoint, self.observers = path, every, checkpoint, observers
        self.start = path.mu
        self.times: list[float] = []
        self.series: dict[str, list[Tensor]] = {name: [] for name in observers}
        self.tail: tuple[float, dict[str, Tensor]] | None = None  # the last tick, when it was not due
        self.mu, self.stats, self.steps = path.mu, path.last, path.start
        self.seeds: tuple[Tensor, ...] = ()
        self.tick: Tick | None = None
        self.status = "running"
        self.written = -float("inf")

    def keep(self, tick: Tick) -> None:
        """Take in a tick: look at it when it is due, and write a checkpoint when the last is older than a second."""
        if (tick.k + 1) % self.every == 0:
            seen = self._look(tick)
            self.times.append(tick.t1)
            for name, value in seen.items():
                self.series[name].append(value)
        self.tick, self.mu, self.stats, self.steps = tick, tick.after, tick.stats, tick.k + 1
        if self.checkpoint is not None:
            self.seeds = tuple(g.get_state() for g in self.path.step.generators())
            if time.monotonic() - self.written > 1:
                self._write()

    def close(self) -> None:
        """Look at the last tick if it was not due, and write the state."""
        if self.tick is None:
            return
        if not self.times or self.times[-1] != self.tick.t1:
            self.tail = (self.tick.t1, self._look(self.tick))
        if self.checkpoint is not None:
            self._write()

    def trajectory(self) -> Trajectory:
        tail_time, tail = self.tail or (None, {})
        times = self.times if tail_time is None else [*self.times, tail_time]
        rows = {name: values + [tail[name]] if tail else values for name, values in self.series.items()}
        series = {name: torch.stack(values) for name, values in rows.items() if values}
        return Trajectory(self.mu, torch.tensor(times, dtype=torch.float64), series, self.status, self.steps)

    def restore(self) -> Path:
        """The path from the checkpoint on, when there is one of this run."""
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return self.path
        saved = storage.load(self.checkpoint, self.path.mu.anchor.device)
        self._check(saved)
        self.times = saved["times"].tolist()
        self.series = {name: list(saved["series"].get(name, ())) for name in self.observers}
        self.mu, self.stats, self.steps = saved["mu"], saved["stats"], saved["steps"]
        self.seeds = tuple(seed.cpu() for seed in saved["seeds"])
        over = len(self.path.times) - 1 == self.steps
        self.status = "stopped" if saved["status"] == "stopped" else "finished" if over else "running"
        self.tail = saved["tail"] if self.status != "running" else None
        return self.path.resume(self.steps, self.mu, self.stats, self.seeds)

    def _look(self, tick: Tick) -> dict[str, Tensor]:
        return {name: torch.as_tensor(look(tick)).detach() for name, look in self.observers.items()}

    def _write(self) -> None:
        state = {
            "run": storage.fingerprint((self.path.step, self.start)),
            "clock": self.path.times[: self.steps + 1],
            "every": self.every,
            "observers": sorted(self.observers),
            "mu": self.mu,
            "stats": self.stats,
            "steps": self.steps,
            "status": self.status,
            "seeds": self.seeds,
            "times": torch.tensor(self.times, dtype=torch.float64),
            "series": {name: torch.stack(values) for name, values in self.series.items() if values},
            "tail": self.tail,
        }
        assert self.checkpoint is not None
        storage.save(self.checkpoint, state)
        self.written = time.monotonic()

    def _check(self, saved: dict[str, Any]) -> None:
        same = (
            saved["run"] == storage.fingerprint((self.path.step, self.start))
            and saved["clock"] == self.path.times[: saved["steps"] + 1]
            and saved["every"] == self.every
            and list(saved["observers"]) == sorted(self.observers)
        )
        if not same:
            raise ValueError(
                f"{self.checkpoint} belongs to another run (another step, functional, initial measure, times, every or "
                "observers); delete it, or give another checkpoint"
            )
