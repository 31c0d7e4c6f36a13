"""`python -m bench [--only NAME] [--runs N]`: every workload in turn, the median of several runs with its spread."""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import statistics
from pathlib import Path
from typing import Any

from bench import workloads


def main() -> None:
    """Run the workloads and write `bench/results/latest.json`."""
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--only", help="run workloads whose name contains this")
    options.add_argument("--runs", type=int, default=5)
    chosen = options.parse_args()
    results: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}
    }
    for found in sorted(pkgutil.iter_modules(workloads.__path__), key=lambda module: module.name):
        if chosen.only and chosen.only not in found.name:
            continue
        workload = importlib.import_module(f"bench.workloads.{found.name}")
        ours, theirs = [], []
        name = ""
        for _ in range(chosen.runs):  # in turn, so that a machine that changes its speed does so for both
            ours.append(workload.run())
            peer = workload.peer() if hasattr(workload, "peer") else None
            if peer is not None:
                name, figure = peer
                theirs.append(figure)
        print(f"{workload.TITLE}\n  retinue       {_figure(ours)} {workload.UNIT}")
        results[found.name] = {"title": workload.TITLE, "unit": workload.UNIT, "ours": ours}
        if theirs:
            ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
            print(f"  {name:<13} {_figure(theirs)} {workload.UNIT}\n  ratio         {ratio:.2f}")
            results[found.name] |= {"peer": name, "theirs": theirs, "ratio": ratio}
        elif hasattr(workload, "peer"):
            print("  its peer is not installed here: skipped")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(results, indent=1) + "\n")


def _figure(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


if __name__ == "__main__":
    main()
