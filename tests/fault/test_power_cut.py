"""Power cuts on a real SQLite file: nothing acknowledged is missing, nothing is corrupt (INVARIANTS I-29)."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

import services
from retinue.errors import NotSupported
from retinue.testing.powercut import DATABASE, Trace, examine, record

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600)]

CUTS = int(os.environ.get("RETINUE_TEST_CUTS", "1000"))


def recorded(**settings: object) -> Trace:
    try:
        return record(**settings)  # type: ignore[arg-type]
    except NotSupported as error:
        services.missing("a recordable SQLite", error.message)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_acknowledged_is_missing_after_a_power_cut(seed: int) -> None:
    trace = recorded(seed=seed)

    report = examine(trace, cuts=CUTS // 2, seed=seed)

    assert (report.cuts, report.lost, report.corrupt) == (CUTS // 2, [], [])
    assert report.acknowledged > 100 * report.cuts


def test_the_planted_bug_synchronous_normal_is_caught() -> None:
    trace = recorded(pragmas=["synchronous=NORMAL"])

    report = examine(trace, cuts=100)

    assert len(report.lost) > 30
    assert report.corrupt == []


def test_the_planted_bug_synchronous_off_is_caught() -> None:
    trace = recorded(pragmas=["synchronous=OFF"])

    report = examine(trace, cuts=100)

    assert len(report.corrupt) > 30


def test_a_cut_is_made_again_by_its_seed() -> None:
    trace = recorded(writes=80, pragmas=["synchronous=NORMAL"])

    first, second = examine(trace, cuts=50, seed=7), examine(trace, cuts=50, seed=7)

    assert first == second


def test_the_recorder_sees_what_the_kernel_sees(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip(f"{services.MISSING}strace (a second opinion on what is synced)")
    log = tmp_path / "calls"
    watched = [strace, "-f", "-y", "-e", "trace=pwrite64,fdatasync,fsync", "-o", str(log)]

    try:
        trace = recorded(writes=80, prefix=watched)
    except RuntimeError as error:
        pytest.skip(f"{services.MISSING}strace ({error})")

    calls = re.findall(rf"(pwrite64|sync)\(\d+<[^>]*/({DATABASE}[^>]*)>.* = ", log.read_text())
    names = {"pwrite64": "write", "sync": "sync"}
    seen = Counter((names[call], file) for call, file in calls)
    noted = Counter((event.kind, event.file) for event in trace.events if event.kind in ("write", "sync"))
    assert noted == {call: count for call, count in seen.items() if not call[1].endswith("-shm")}
