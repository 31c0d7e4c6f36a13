"""The checkers, each on evidence made by hand: what holds passes, what is broken is named."""

from typing import Any

import pytest

from retinue.testing.sim.check import CHECKERS, Evidence, Fact, Row, violations
from retinue.testing.sim.history import Entry

SECOND = 1_000_000


def fact(position: int, kind: str, fence: int | None = None, **data: Any) -> Fact:
    said = data if fence is None else data | {"fence": fence}
    return Fact(position, f"task.{kind}", position * SECOND, "t", "n1", {"task_id": "t"} | said)


def task(status: str = "completed", **changes: Any) -> Row:
    row: Row = {"id": "t", "team": "a", "status": status, "fence": 1, "failures": 0, "losses": 0, "spec": "{}"}
    return row | changes


def attempt(fence: int, status: str, digest: str | None = None) -> Row:
    return {"task": "t", "fence": fence, "id": f"att{fence}", "status": status, "digest": digest, "started_at": 1}


def held(fence: int, status: str = "running", reap_at: int = 10**15) -> Row:
    return {"id": "t", "fence": fence, "status": status, "node": "n1", "reap_at": reap_at}


GOOD = (
    fact(1, "created", status="pending"),
    fact(2, "claimed", 1),
    fact(3, "started", 1),
    fact(4, "completed", 1, digest="d"),
)
CREATED = Entry(1.0, "ok", "client", 1, {"verb": "create", "key": "k", "value": "t"})


def evidence(*facts: Fact, tasks: list[Row] | None = None, **parts: Any) -> Evidence:
    rows = [task()] if tasks is None else tasks
    counts: dict[str, int] = {}
    stands = {row["id"]: row["status"] for row in parts.get("running", [])}
    for row in rows:
        status = stands.get(row["id"], row["status"])
        counts[status] = counts.get(status, 0) + 1
    made: dict[str, Any] = {
        "history": [CREATED, *[Entry(1.5, "start", "n1", 1, {"task": "t", "fence": n}) for n in range(1, 5)]],
        "tasks": rows,
        "ready": [],
        "running": [],
        "attempts": [attempt(1, "completed", "d")],
        "counts": [{"team": "a", "status": status, "tasks": number} for status, number in counts.items()],
        "events": {"a": list(facts)},
        "now": 200 * SECOND,
        "lease": 9.0,
        "sweep": 0.5,
        "calm": 60.0,
    }
    return Evidence(**made | parts)


def broken(proof: Evidence) -> set[str]:
    return {sentence.partition(":")[0] for sentence in violations(proof)}


def test_a_good_run_breaks_nothing() -> None:
    assert violations(evidence(*GOOD)) == []


def test_a_task_may_be_lost_handed_back_and_retried() -> None:
    story = [
        fact(1, "created", status="pending"),
        fact(2, "claimed", 1),
        fact(3, "released", 1, status="pending"),
        fact(4, "claimed", 2),
        fact(5, "started", 2),
        fact(6, "orphaned", 2, status="pending"),
        fact(7, "claimed", 3),
        fact(8, "started", 3),
        fact(9, "failed", 3, code="EXIT"),
        fact(10, "retried", status="pending", by="op"),
        fact(11, "claimed", 4),
        fact(12, "completed", 4, digest="d"),
    ]
    attempts = [attempt(2, "orphaned"), attempt(3, "failed"), attempt(4, "completed", "d")]

    assert violations(evidence(*story, tasks=[task(fence=4)], attempts=attempts)) == []


def test_an_orphan_that_may_not_run_again_fails_under_its_fence() -> None:
    story = [
        *GOOD[:3],
        fact(4, "orphaned", 1, status="failed"),
        fact(5, "failed", 1, code="NODE_LOST"),
    ]

    assert violations(evidence(*story, tasks=[task("failed")], attempts=[attempt(1, "orphaned")])) == []


def test_an_acknowledged_task_that_is_missing_or_open_is_lost() -> None:
    assert "I-01" in broken(evidence(*GOOD, tasks=[]))
    assert "I-01" in broken(evidence(GOOD[0], tasks=[task("pending", fence=0)], attempts=[]))


def test_two_accepted_results_are_a_double_completion() -> None:
    twice = [attempt(1, "completed", "d"), attempt(2, "completed", "e")]
    told = Entry(2.0, "accepted", "n2", 1, {"task": "t", "fence": 2, "digest": "e"})

    assert "I-02" in broken(evidence(*GOOD, attempts=twice))
    assert "I-02" in broken(evidence(*GOOD, history=[CREATED, told]))


def test_the_same_completion_told_twice_is_one() -> None:
    told = Entry(2.0, "accepted", "n1", 1, {"task": "t", "fence": 1, "digest": "d"})

    assert violations(evidence(*GOOD, history=[*evidence().history, told, told])) == []


@pytest.mark.parametrize(
    "story",
    [
        [*GOOD[:2], fact(3, "released", 1, status="pending"), fact(4, "claimed", 1), fact(5, "completed", 1)],
        [*GOOD[:2], fact(3, "released", 1, status="pending"), fact(4, "completed", 1)],
        [*GOOD[:2], fact(3, "released", 1, status="pending"), fact(4, "claimed", 2), fact(5, "completed", 1)],
    ],
    ids=["the same fence again", "after it was handed back", "while another one holds it"],
)
def test_an_old_fence_that_has_an_effect_is_found(story: list[Fact]) -> None:
    assert "I-03" in broken(evidence(*story))


def test_anything_after_the_end_is_found() -> None:
    assert "I-04" in broken(evidence(*GOOD, fact(5, "orphaned", 1, status="pending")))
    assert "I-04" in broken(evidence(*GOOD, ready=[{"id": "t", "queue": "q", "rank": 1, "fence": 1}]))


def test_a_claim_of_a_held_task_is_found() -> None:
    assert "I-05" in broken(evidence(*GOOD[:3], fact(4, "claimed", 2), fact(5, "completed", 2)))


def test_a_claim_that_outlives_its_lease_is_found() -> None:
    stuck = evidence(*GOOD[:3], tasks=[task("pending")], running=[held(1, reap_at=190 * SECOND)], attempts=[])

    assert "I-07" in broken(stuck)


def test_too_many_attempts_are_found() -> None:
    assert "I-08" in broken(evidence(*GOOD, attempts=[attempt(1, "failed"), attempt(2, "failed")]))
    assert "I-08" in broken(evidence(*GOOD, attempts=[attempt(fence, "orphaned") for fence in range(1, 6)]))


def test_a_loss_that_is_counted_without_an_attempt_is_found() -> None:
    assert "I-08" in broken(evidence(*GOOD, tasks=[task(losses=1)]))


def test_a_store_that_says_something_else_than_the_feed_is_found() -> None:
    assert "I-28" in broken(evidence(*GOOD, tasks=[task("failed")]))
    assert "I-28" in broken(evidence(*GOOD, tasks=[task(fence=7)]))


def test_a_hole_in_the_feed_is_found() -> None:
    assert "I-41" in broken(evidence(*GOOD[:2], *[fact(7, "started", 1), fact(8, "completed", 1, digest="d")]))
    assert "I-41" in broken(evidence(*GOOD, notes={"broken_links": {"a": [3]}}))


def test_wrong_counts_are_found() -> None:
    assert "counts" in broken(evidence(*GOOD, counts=[{"team": "a", "status": "pending", "tasks": 1}]))


def test_a_program_without_a_claim_is_found() -> None:
    runs = Entry(2.0, "program", "n1", 1, {"pid": 1, "label": "t", "program": "run"})

    assert "outside" in broken(evidence(*GOOD, history=[CREATED, runs]))


def test_a_second_task_for_one_key_is_found() -> None:
    again = Entry(2.0, "ok", "client", 2, {"verb": "create", "key": "k", "value": "u"})
    twins = [task(spec='{"name":"c1"}'), task(spec='{"name":"c1"}', id="u")]

    assert "I-06" in broken(evidence(*GOOD, history=[CREATED, again]))
    assert "I-06" in broken(evidence(*GOOD, tasks=twins))


def test_a_child_that_ran_before_its_parent_is_found() -> None:
    story = [fact(1, "created", status="pending", parents=["p"]), *GOOD[1:]]

    assert "I-09" in broken(evidence(*story))


def test_a_cancelled_task_that_completes_is_found() -> None:
    cancelled = Entry(2.0, "ok", "client", 2, {"verb": "cancel", "value": "t"})

    assert "I-10" in broken(evidence(*GOOD, history=[CREATED, cancelled]))


def test_a_claim_by_a_node_without_the_label_is_found() -> None:
    node = {"id": "n1", "name": "n1", "labels": '{"zone":"a"}', "workers": 1}

    assert "I-11" in broken(evidence(*GOOD, tasks=[task(spec='{"labels":{"zone":"b"}}')], nodes=[node]))


def test_more_programs_than_workers_are_found() -> None:
    node = {"id": "n1", "name": "n1", "labels": "{}", "workers": 1}
    runs = [Entry(at, "program", "n1", 1, {"pid": pid, "label": "t"}) for pid, at in ((1, 1.0), (2, 2.0))]

    assert "I-11" in broken(evidence(*GOOD, nodes=[node], history=[CREATED, *runs]))


def end(at: int, reap_at: int, seen_at: float = 100.0) -> Row:
    return {"task": "t", "fence": 1, "node": "n1", "boot": "b", "at": at, "reap_at": reap_at, "seen_at": seen_at}


def test_a_claim_taken_away_before_its_lease_ended_is_found() -> None:
    story = [GOOD[0], fact(2, "claimed", 1, boot="b"), GOOD[2], fact(4, "orphaned", 1, status="pending")]
    up = Entry(0.0, "coordinator", "coordinator", 1, {})

    early = evidence(*story, history=[CREATED, up], witness=[end(at=5 * SECOND, reap_at=6 * SECOND)])
    hasty = evidence(*story, history=[CREATED, up], witness=[end(7 * SECOND, 6 * SECOND, seen_at=1.0)])

    assert "I-07 nobody else" in broken(early)
    assert "I-07 nobody else" in broken(hasty)


def test_a_renewal_nobody_asked_for_is_found() -> None:
    assert "I-03 renew" in broken(evidence(*GOOD, renewals=[{"task": "t", "fence": 1, "times": 1}]))


def test_a_report_nobody_made_is_found() -> None:
    assert "I-03 report" in broken(evidence(*GOOD, witness=[end(3 * SECOND, 9 * SECOND)]))


def test_a_start_nobody_told_of_is_found() -> None:
    early = {"task": "t", "fence": 1, "seen_at": 1.0}

    assert "I-03 report" in broken(evidence(*GOOD, begun=[early]))


def test_output_without_a_claim_or_with_a_gap_is_found() -> None:
    gap = {"attempt": "att1", "stream": "stdout", "start": 7, "size": 1}

    assert "I-03 output" in broken(evidence(*GOOD, strays=[{"attempt": "att1", "seen_at": 1.0}]))
    assert "I-03 output" in broken(evidence(*GOOD, logs=[gap]))


def test_every_checker_says_what_it_checks() -> None:
    assert all(checker.__doc__ for checker in CHECKERS.values())
