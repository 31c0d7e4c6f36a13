"""The whole fleet under faults: seeds of every profile hold, a seed is the same run again, planted bugs are caught."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retinue.testing.sim import run
from retinue.testing.sim.bugs import known
from retinue.testing.sim.faults import PROFILES
from retinue.testing.sim.world import Settings

pytestmark = pytest.mark.slow

SEEDS = Path(__file__).parent / "seeds.txt"


def broken(report: run.Report) -> list[tuple[int, list[str]]]:
    return [(outcome.seed, outcome.problems) for outcome in report.failed]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_guarantee_holds_under_the_faults_of(profile: str) -> None:
    report = run.run_seeds(1, 20, Settings(profile=profile))

    assert broken(report) == []
    assert report.reached["task.completed"] == 20


@pytest.mark.timeout(900)
def test_every_guarantee_holds_in_many_seeds_of_everything_at_once() -> None:
    report = run.run_seeds(1001, 600, Settings())

    assert broken(report) == []
    assert report.seeds == 600


def test_the_same_seed_is_the_same_run_in_another_process_with_other_hashes() -> None:
    script = (
        "from retinue.testing.sim import run; from retinue.testing.sim.world import Settings;"
        "print([run.run_seed(seed, Settings()).digest for seed in range(1, 6)])"
    )

    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for salt in ("1", "2")
    }

    assert printed == {str([run.run_seed(seed, Settings()).digest for seed in range(1, 6)])}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", known())
def test_a_planted_bug_is_caught(name: str) -> None:
    profile = known()[name].profile
    report = run.run_seeds(1, 1000, Settings(profile=profile), mutant=name, until_failed=True)

    assert report.failed, f"{name} survived {report.seeds} seeds"


@pytest.mark.timeout(600)
def test_no_single_crash_or_lost_answer_breaks_a_guarantee() -> None:
    outcomes = list(run.sweep())

    assert [(outcome.faults, outcome.problems) for outcome in outcomes if not outcome.ok] == []
    assert len(outcomes) > 500


def kept_seeds() -> list[tuple[int, str]]:
    lines = [line.split() for line in SEEDS.read_text().splitlines() if line and not line.startswith("#")]
    return [(int(words[2]), words[1]) for words in lines]


@pytest.mark.parametrize(("seed", "profile"), kept_seeds())
def test_a_seed_that_once_failed_holds(seed: int, profile: str) -> None:
    assert run.run_seed(seed, Settings(profile=profile)).problems == []
