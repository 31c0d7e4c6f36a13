"""Simulated seeds of the torture profile, one core."""

import subprocess
import sys
import time

TITLE = "simulated seeds (P5, three nodes, twenty tasks), one core"
UNIT = "seeds/min"
SEEDS = 40


def run() -> float:
    """Seeds a minute."""
    begun = time.perf_counter()
    argv = [sys.executable, "-m", "retinue.cli.main", "torture", "--seeds", str(SEEDS), "--jobs", "1"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return SEEDS / (time.perf_counter() - begun) * 60
