"""Time of `import otprox` beside `import torch`, in fresh processes, in turn; the claim is a ratio below 1.3.

Both have their bytecode, as an installed package has: the warm-up writes it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

PROGRAM = """
import resource, time
begin = time.perf_counter()
import {module}
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main(rounds: int = 7) -> None:
    """Print the median of each and the median of the ratios of pairs."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    samples: dict[str, list[tuple[float, float]]] = {"torch": [], "otprox": []}
    for _ in range(rounds + 1):
        for module, seen in samples.items():
            command = [sys.executable, "-c", PROGRAM.format(module=module)]
            out = subprocess.run(command, capture_output=True, check=True, env=env)
            seconds, megabytes = map(float, out.stdout.split())
            seen.append((seconds, megabytes))
    print(f"{'import':10} {'seconds':>8} {'peak MB':>8}   median of {rounds} after a warm-up")
    for module, seen in samples.items():
        seconds, megabytes = (statistics.median(column) for column in zip(*seen[1:], strict=True))
        print(f"{module:10} {seconds:8.3f} {megabytes:8.0f}")
    pairs = zip(samples["otprox"][1:], samples["torch"][1:], strict=True)
    print(f"otprox / torch: {statistics.median(a[0] / b[0] for a, b in pairs):.3f}")


if __name__ == "__main__":
    main()
