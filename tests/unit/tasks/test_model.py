"""Tasks as values: ranks age, fences grow, backoffs have bounds, queues are the same in every process."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.errors import Invalid, NotSupported, RetinueError
from retinue.nodes.model import Offer
from retinue.nodes.resources import Resources
from retinue.tasks.model import (
    EVENTS,
    FENCE_BITS,
    HELD,
    MOVES,
    TERMINAL,
    WAITING,
    Ending,
    Priority,
    Queue,
    TaskSpec,
    TaskStatus,
    backoff,
    check,
    claim_token,
    loss_policy,
    next_fence,
    queue_of,
    rank,
    storable,
    waiting_because,
)

T_MAX = 10 * 60 * 1_000_000  # microseconds: INVARIANTS I-12
times = st.integers(0, 1 << 60)
priorities = st.sampled_from(list(Priority))
fences = st.integers(0, (1 << 62) - 2)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
resources = st.builds(
    Resources, cpu=st.floats(0, 64) | st.integers(0, 64), memory_mb=st.integers(0, 1 << 20), gpu=st.integers(0, 8)
)
specs = st.builds(
    TaskSpec,
    command=st.just(["true"]),
    labels=st.dictionaries(names, names, max_size=3),
    requires=st.lists(names, max_size=3),
    node=st.none() | names,
    resources=resources,
)
encode, decode = msgspec.json.encode, msgspec.json.Decoder(TaskSpec).decode


def spec(**fields: Any) -> TaskSpec:
    return TaskSpec(**({"command": ["true"]} | fields))


def offer(**fields: Any) -> Offer:
    return Offer(**({"node": "nod_1", "name": "a", "team": "ours", "boot": "b", "workers": 1} | fields))


# -- rank --------------------------------------------------------------------------------------------------------------


@given(times, priorities, times, priorities)
def test_nobody_is_overtaken_by_one_that_is_ready_more_than_ten_minutes_later(
    first: int, low: Priority, later: int, high: Priority
) -> None:
    if later > first + T_MAX:
        assert rank(first, low) < rank(later, high)


@given(times, priorities)
def test_of_tasks_that_are_ready_together_the_more_urgent_goes_first(at: int, priority: Priority) -> None:
    order = [rank(at, each) for each in (Priority.CRITICAL, Priority.HIGH, Priority.MEDIUM, Priority.LOW)]

    assert order == sorted(set(order))
    assert rank(at, priority) < rank(at + 1, priority)


# -- fences, tokens ----------------------------------------------------------------------------------------------------


@given(fences, st.integers(0, 1 << 20))
def test_fences_grow_and_carry_the_epoch_in_their_high_bits(fence: int, epoch: int) -> None:
    following = next_fence(fence, epoch)

    assert following > fence
    assert following >> FENCE_BITS >= epoch


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_a_later_epoch_issues_no_fence_of_an_earlier_one(epochs: list[int]) -> None:
    fence, given_out = 0, []
    for epoch in sorted(epochs):
        fence = next_fence(fence, epoch)
        given_out.append((epoch, fence))

    assert [fence >> FENCE_BITS for _, fence in given_out] == [epoch for epoch, _ in given_out]
    assert len({fence for _, fence in given_out}) == len(given_out)


@given(st.binary(min_size=16, max_size=32), names, fences, names)
def test_a_claim_token_is_the_same_for_the_same_claim_only(key: bytes, task: str, fence: int, boot: str) -> None:
    token = claim_token(key, task, fence, boot)

    assert token == claim_token(key, task, fence, boot)
    assert len(token) == 32
    others = [(key + b"x", task, fence, boot), (key, task + "x", fence, boot), (key, task, fence + 1, boot)]
    assert token not in [claim_token(*other) for other in [*others, (key, task, fence, boot + "x")]]


# -- backoff, losses ---------------------------------------------------------------------------------------------------


@given(st.floats(0, 86400), st.integers(1, 100), st.floats(0, 1))
def test_a_backoff_doubles_up_to_an_hour_and_is_spread_by_a_quarter(base: float, failures: int, chance: float) -> None:
    wait = backoff(base, failures, chance)
    least = timedelta(seconds=min(3600.0, base * 2 ** min(failures - 1, 30)))

    assert least <= wait <= least * 1.25 + timedelta(microseconds=1)
    assert backoff(base, failures + 1, 0) >= backoff(base, failures, 0)


@pytest.mark.parametrize(
    ("text", "requeue", "seconds"),
    [("requeue", True, 0), ("fail", False, 0), ("wait:30", True, 30), ("wait:1.5s", True, 1.5)],
)
def test_a_loss_policy_is_read(text: str, requeue: bool, seconds: float) -> None:
    policy = loss_policy(text)

    assert (policy.requeue, policy.patience) == (requeue, timedelta(seconds=seconds))


@pytest.mark.parametrize("text", ["", "wait", "wait:", "wait:0", "wait:-1", "wait:nan", "wait:inf", "wait:9e9", "stop"])
def test_another_loss_policy_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        loss_policy(text)


# -- what can be taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"command": None}, Invalid),
        ({"command": []}, Invalid),
        ({"command": [""]}, Invalid),
        ({"function": "f"}, Invalid),
        ({"command": ["a\0b"]}, Invalid),
        ({"env": {"A=B": "c"}}, Invalid),
        ({"env": {"": "c"}}, Invalid),
        ({"description": "\udc80"}, Invalid),
        ({"max_attempts": 0}, Invalid),
        ({"timeout_seconds": 0}, Invalid),
        ({"timeout_seconds": float("nan")}, Invalid),
        ({"backoff_seconds": -1.0}, Invalid),
        ({"output_limit_bytes": 0}, Invalid),
        ({"resources": Resources(cpu=-1)}, Invalid),
        ({"resources": Resources(cpu=float("nan"))}, Invalid),
        ({"resources": Resources(cpu=float("inf"))}, Invalid),
        ({"deadline": datetime(2026, 1, 1)}, Invalid),
        ({"after": ["tsk_1", "tsk_1"]}, Invalid),
        ({"on_node_loss": "pray"}, Invalid),
        ({"pty": True}, NotSupported),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], error: type[RetinueError]) -> None:
    with pytest.raises(error) as refused:
        check(spec(**fields))

    assert refused.value.details


@given(specs)
def test_what_is_taken_comes_back_from_the_store_as_it_was(wanted: TaskSpec) -> None:
    assert decode(encode(check(wanted))) == wanted


@given(st.text(max_size=50), st.integers(1, 60))
def test_any_text_can_be_made_storable(text: str, most: int) -> None:
    kept = storable(text, most)

    assert "\0" not in kept
    assert len(kept) <= most + 1
    assert kept.encode().decode() == kept


# -- queues ------------------------------------------------------------------------------------------------------------


@given(specs)
def test_a_queue_is_the_same_for_the_same_requirements_however_they_are_written(wanted: TaskSpec) -> None:
    queue = queue_of("ours", wanted)
    again = msgspec.structs.replace(
        wanted,
        name="another",
        labels=dict(reversed(wanted.labels.items())),
        requires=[*reversed(wanted.requires), *wanted.requires],
    )

    assert queue_of("ours", again) == queue
    assert queue_of("ours", decode(encode(wanted))) == queue
    assert queue_of("theirs", wanted).id != queue.id


@given(specs, specs)
def test_different_requirements_are_different_queues(first: TaskSpec, second: TaskSpec) -> None:
    def wanted(each: TaskSpec) -> tuple[Any, ...]:
        return (each.labels, set(each.requires), each.node, each.resources)

    same = queue_of("ours", first).id == queue_of("ours", second).id

    assert same == (wanted(first) == wanted(second))


@pytest.mark.slow
def test_a_queue_is_the_same_in_every_process() -> None:
    program = (
        "from retinue.tasks.model import TaskSpec, queue_of; from retinue.nodes.resources import Resources;"
        "print(queue_of('ours', TaskSpec(command=['true'], labels={'a': '1', 'b': '2', 'c': '3'},"
        " requires=['x', 'y', 'z'], resources=Resources(cpu=1, gpu=2))).id)"
    )
    ids = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "4711")
    }

    assert len(ids) == 1


@pytest.mark.parametrize(
    ("fields", "of_node", "served"),
    [
        ({}, {}, True),
        ({}, {"team": "theirs"}, False),
        ({"labels": {"os": "linux"}}, {"labels": {"os": "linux", "disk": "big"}}, True),
        ({"labels": {"os": "linux"}}, {"labels": {"os": "mac"}}, False),
        ({"labels": {"os": "linux"}}, {}, False),
        ({"requires": ["tool:git"]}, {"capabilities": frozenset({"tool:git:2.39"})}, True),
        ({"requires": ["tool:git"]}, {"capabilities": frozenset({"tool:github"})}, False),
        ({"requires": ["tool:git:2.39"]}, {"capabilities": frozenset({"tool:git"})}, False),
        ({"command": None, "function": "f"}, {"capabilities": frozenset({"function:f"})}, True),
        ({"command": None, "function": "f"}, {"capabilities": frozenset({"function:g"})}, False),
        ({"node": "a"}, {}, True),
        ({"node": "nod_1"}, {}, True),
        ({"node": "b"}, {}, False),
        ({"resources": Resources(cpu=2)}, {"resources": Resources(cpu=2)}, True),
        ({"resources": Resources(cpu=2)}, {"resources": Resources(cpu=1, gpu=9)}, False),
        ({}, {"capabilities": frozenset({"client:ses_1"})}, False),
        ({"requires": ["client:ses_1"]}, {"capabilities": frozenset({"client:ses_1"})}, True),
    ],
)
def test_a_node_serves_what_all_of_it_fits(fields: dict[str, Any], of_node: dict[str, Any], served: bool) -> None:
    assert queue_of("ours", spec(**fields)).served_by(offer(**of_node)) is served


# -- why a task waits --------------------------------------------------------------------------------------------------


def because(status: TaskStatus, fields: dict[str, Any] | None = None, **more: Any) -> tuple[str, str] | None:
    """The code and the sentence."""
    said: dict[str, Any] = {
        "offers": [offer()], "unfinished": [], "ready_at": None, "backing_off": False, "busy": 0,
    } | more  # fmt: skip
    offers = said.pop("offers")
    reason = waiting_because(status, queue_of("ours", spec(**(fields or {}))), offers, **said)
    return None if reason is None else (reason.code, reason.sentence)


def test_every_waiting_task_has_a_reason_and_no_other_has_one() -> None:
    assert {status for status in TaskStatus if because(status) is not None} == WAITING


def test_a_blocked_task_names_its_parents() -> None:
    assert because(TaskStatus.BLOCKED, unfinished=["tsk_1"]) == ("PARENTS", "It runs after tsk_1.")
    assert because(TaskStatus.BLOCKED, unfinished=["1", "2", "3", "4", "5"]) == (
        "PARENTS", "It runs after 1, 2, 3 and 2 more.",
    )  # fmt: skip


def test_a_scheduled_task_names_its_time() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    assert because(TaskStatus.SCHEDULED, ready_at=at) == (
        "NOT_BEFORE", "It is scheduled for 2026-01-01T00:00:00+00:00.",
    )  # fmt: skip
    assert (because(TaskStatus.SCHEDULED, ready_at=at, backing_off=True) or ("",))[0] == "BACKOFF"


@pytest.mark.parametrize(
    ("fields", "more", "code", "part"),
    [
        ({}, {"offers": []}, "NO_NODE", "node"),
        ({"node": "b"}, {}, "NO_MATCHING_NODE", "node b is not connected"),
        ({"labels": {"os": "x"}}, {}, "NO_MATCHING_NODE", "none has the label os=x"),
        ({"requires": ["tool:git"]}, {}, "NO_MATCHING_NODE", "none has the capability tool:git"),
        ({"resources": Resources(cpu=2)}, {}, "NO_MATCHING_NODE", "none has 2 cores"),
        ({"resources": Resources(memory_mb=5)}, {}, "NO_MATCHING_NODE", "none has 5 MiB"),
        ({"resources": Resources(gpu=1)}, {}, "NO_MATCHING_NODE", "none has 1 GPUs"),
        (
            {"labels": {"a": "1", "b": "2"}},
            {"offers": [offer(labels={"a": "1"}), offer(labels={"b": "2"})]},
            "NO_MATCHING_NODE",
            "no single one",
        ),
        ({}, {"busy": 1}, "NO_FREE_SLOT", "All 1 workers of the 1 nodes"),
        ({}, {}, "IN_LINE", "being handed out"),
    ],
)
def test_a_pending_task_says_what_is_missing(
    fields: dict[str, Any], more: dict[str, Any], code: str, part: str
) -> None:
    said = because(TaskStatus.PENDING, fields, **more)

    assert said is not None
    assert said[0] == code
    assert part in said[1]


# -- the moves ---------------------------------------------------------------------------------------------------------


def test_every_status_is_reached_and_every_end_is_an_end() -> None:
    asleep = {TaskStatus.INPUT_REQUIRED}  # a status of a part that is not built yet
    reached = {target for move in MOVES for target in move.targets}

    assert reached == set(TaskStatus) - asleep
    assert [move.event for move in MOVES if move.sources & TERMINAL] == ["task.retried"]
    assert len(EVENTS) == len(MOVES)
    assert not WAITING & HELD


@given(st.builds(Ending, ok=st.booleans(), exit_code=st.integers(0, 255), result=st.lists(fences) | names))
def test_a_report_is_recognized_when_it_is_sent_again(ending: Ending) -> None:
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(ending), type=Ending)

    assert again.digest() == ending.digest()
    assert msgspec.structs.replace(ending, error="another").digest() != ending.digest()


@given(specs)
def test_a_queue_knows_its_requirements(wanted: TaskSpec) -> None:
    queue = queue_of("ours", wanted)

    assert isinstance(queue, Queue)
    assert (queue.labels, set(queue.requires), queue.node) == (wanted.labels, set(wanted.requires), wanted.node)
