"""The command line: `otprox demo`, `otprox verify`, `otprox doctor`."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status is 0 unless a verdict fails or something needed is missing."""
    parser = argparse.ArgumentParser(prog="otprox", description="Proximal steps and gradient flows over measures.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run the main job: tables, and figures in a folder")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the figures (default: demo)")
    demo.add_argument("--only", choices=("gradient", "posterior", "well"), help="one of the three parts")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    verify = commands.add_parser("verify", help="run schemes against closed forms over a ladder of step sizes")
    verify.add_argument("names", nargs="*", help="only cases whose name contains one of these")
    verify.add_argument("--json", action="store_true", help="machine-readable output")
    commands.add_parser("doctor", help="report versions, devices and what is missing")
    options = parser.parse_args(arguments)
    if options.command == "demo":
        return _demo(options.out, options.only, not options.quiet and sys.stderr.isatty())
    if options.command == "verify":
        return _verify(options.names, options.json)
    return _doctor()


def _demo(out: Path, only: str | None, progress: bool) -> int:
    missing = [name for name in ("sklearn", "matplotlib") if util.find_spec(name) is None]
    if missing:
        print(f"otprox demo needs {', '.join(missing)}: pip install 'otprox[demo]'", file=sys.stderr)
        return 1
    import matplotlib

    matplotlib.use("Agg")
    from . import demo

    demo.run(out, only, progress)
    return 0


def _verify(names: Sequence[str], as_json: bool) -> int:
    from . import verify

    verdicts = []
    if not as_json:
        print(f"{'case':55} {'error at the last rung':>22} {'order':>7} {'expected':>9}  verdict")
    for v in verify.run(names):
        verdicts.append(v)
        if not as_json:
            order = "–" if v.observed is None or v.expected is None else f"{v.observed:.2f}"
            want = "–" if v.expected is None else f"{v.expected:.2f}"
            verdict = "pass" if v.passed else "FAIL"
            print(f"{v.name:55} {v.errors[-1]:22.3e} {order:>7} {want:>9}  {verdict}", flush=True)
    if as_json:
        print(json.dumps(verify.as_json(verdicts), indent=1))
    if not verdicts:
        print(f"no case is named like {', '.join(names)}", file=sys.stderr)
        return 2
    failed = sum(not v.passed for v in verdicts)
    if not as_json:
        print(f"{len(verdicts) - failed} of {len(verdicts)} cases pass")
    return 1 if failed else 0


_PACKAGES = {
    "torch": "",
    "numpy": "",
    "scipy": "",
    "cvxpy": "",
    "clarabel": "",
    "POT": "",
    "tqdm": "",
    "matplotlib": "",
    "pykeops": "optional: pip install 'otprox[keops]'",
    "torchdiffeq": "optional: pip install 'otprox[ode]'",
    "scikit-learn": "for `otprox demo`: pip install 'otprox[demo]'",
    "rich": "optional, nicer tables: pip install 'otprox[demo]'",
    "xarray": "optional, Trajectory.to_xarray: pip install xarray",
}


def _doctor() -> int:
    healthy = True
    print(f"otprox {_version('otprox')}, Python {platform.python_version()} on {platform.platform()}")
    for name, optional in _PACKAGES.items():
        version = _version(name)
        healthy = healthy and (version is not None or bool(optional))
        print(f"  {name:13} {version or 'missing: ' + (optional or 'pip install ' + name)}")
    import torch

    print(f"  threads       {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            print(f"  cuda:{k}        {torch.cuda.get_device_name(k)}")
    else:
        print("  cuda          none; otprox runs on the CPU (a CUDA build of torch and a driver would add it)")
    print(f"  KeOps         {_keops()}")
    print("ready" if healthy else "something that otprox needs is missing; see above")
    return 0 if healthy else 1


def _keops() -> str:
    if _version("pykeops") is None:
        return "not installed; the tiled torch engine is used, which needs no compiler"
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "installed, but there is no C++ compiler: install g++ or clang++"
    return f"installed; it compiles with {compiler}, 5 to 10 s at the first use of each formula"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
