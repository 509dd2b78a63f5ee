"""φ⁴ on 16² sites, by the ascent and by the JKO on particles, beside long Hamiltonian runs; refinement: tables.

Run `python -m tests.benchmarks.bench_polchinski_phi4 [particles]`.
"""

from __future__ import annotations

import sys
import time

import torch

from otprox.lattice import Lattice
from otprox.polchinski.refinement import Ladder, phi4_spacings, sizes, spacings
from otprox.polchinski.studies import LatticePhi4, ParticleJKO, Study
from otprox.solvers import BlockSpins

MASSES = (-0.9, -1.5)  # g = 1: without order, and ordered; the transition is at -1.27


def main(particles: int = 64) -> None:
    """Print every table."""
    for mass2 in MASSES:
        begin = time.perf_counter()
        seen = Study(LatticePhi4(Lattice((16, 16)), mass2), particles=particles).run(seed=0)
        print(f"φ⁴ on 16², g = 1, mass2 = {mass2}, {particles} fields ({time.perf_counter() - begin:.0f} s)\n{seen}\n")
    for mass2 in MASSES:
        jko(LatticePhi4(Lattice((16, 16)), mass2))
    free()
    for wick in (False, True):
        interacting(wick)


def jko(theory: LatticePhi4) -> None:
    """Form A on 512 particles to t = ½, by maps of modes alone and with sites and blocks."""
    for blocks, name in (
        (None, "modes, magnetisation, sites and blocks of 2²"),
        ((), "modes alone, which do not suffice"),
    ):
        begin = time.perf_counter()
        seen = ParticleJKO(theory, BlockSpins(theory.lattice, blocks)).run(seed=0)
        print(f"JKO of form A on 16², mass2 = {theory.mass2}, {name} ({time.perf_counter() - begin:.0f} s)\n{seen}\n")


def free() -> None:
    """Two-point function at fixed distance: order in the spacing, rate in the size."""
    for dim, counts in ((1, (8, 16, 32, 64)), (2, (16, 32, 64, 128)), (3, (8, 16, 32, 64))):
        small, large = spacings(counts, dim), sizes((16, 24, 32, 40), dim)
        print(f"free field, d = {dim}\n  spacing: {errors(small)}\n  orders: {numbers(small.orders)}")
        print(f"  size: {errors(large)}\n  rates: {numbers(large.rates)}\n")


def interacting(wick: bool) -> None:
    """φ⁴ with fixed couplings, and with the counterterm."""
    print("φ⁴, g = mass = 1, length 4, " + ("Wick ordered" if wick else "bare"))
    print(f"{'spacing':>9}{'μ':>9}{'G(0)':>9}{'E φ²':>19}{'E φ² − G(0)':>13}{'χ':>19}")
    for row in phi4_spacings((4, 8, 16, 32), torch.Generator().manual_seed(0), wick=wick, samples=1000):
        square, chi = (f"{e.value.item():.4f} ± {e.error.item():.4f}" for e in (row.square, row.susceptibility))
        shift = row.square.value.item() - row.free
        print(f"{row.spacing:9.3f}{row.counterterm:9.3f}{row.free:9.4f}{square:>19}{shift:13.4f}{chi:>19}")
    print()


def errors(ladder: Ladder) -> str:
    return ", ".join(f"{h:g}: {e:.2e}" for h, e in zip(ladder.rungs, ladder.errors, strict=True))


def numbers(values: list[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in values)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
