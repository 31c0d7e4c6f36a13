"""A real node on links that break: what it says again, what it stops, what it never does twice."""

import pytest

from retinue.client.frames import (
    Credit,
    Done,
    Hello,
    Log,
    Renew,
    Started,
    WantInput,
)
from retinue.errors import NodeDuplicate
from service.rig import LEASE, LOG_FLUSH, SWEEP, Fleet, RealNode, settle

REDIAL = 6.0  # seconds within which a node has dialled again, as long as it has not failed often


async def running(fleet: Fleet, lab: RealNode, **fields: object) -> str:
    task = await fleet.submit(**fields)
    await settle()
    assert await fleet.status(task) == "running"
    return task


async def test_a_task_runs_from_submit_to_its_result(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)

    lab.live[0].writes(b"out\n")
    lab.live[0].writes(b"err\n", "stderr")
    lab.live[0].exits(3)
    await settle()

    ended = await fleet.task(task)
    attempt = ended.attempts[0].id
    assert (ended.status, ended.exit_code, ended.code) == ("failed", 3, "EXIT")
    assert (await fleet.output(attempt), await fleet.output(attempt, "stderr")) == (b"out\n", b"err\n")
    assert (fleet.kept(attempt), fleet.kept(attempt, "stderr")) == (4, 4)


async def test_a_broken_link_is_dialled_again_and_the_program_never_notices(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)

    lab.cable.close()
    await fleet.passes(REDIAL)
    lab.live[0].exits()
    await settle()

    assert (len(lab.cables), len(lab.programs)) == (2, 1)
    assert await fleet.attempts(task) == ["completed"]
    assert (await fleet.events(task)).count("task.started") == 1


async def test_a_coordinator_that_starts_anew_finds_its_nodes_again_and_loses_nothing(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)

    await fleet.restart()
    await fleet.passes(REDIAL)
    lab.live[0].exits()
    await settle()

    assert len(lab.programs) == 1
    assert await fleet.attempts(task) == ["completed"]


async def test_a_result_made_while_cut_off_is_delivered_on_the_next_link(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    lab.cable.close()
    await settle()

    lab.live[0].writes(b"made alone\n")
    lab.live[0].exits()
    await settle()
    while_cut_off = await fleet.status(task)
    await fleet.passes(REDIAL)

    assert while_cut_off == "running"
    assert await fleet.attempts(task) == ["completed"]
    assert fleet.kept((await fleet.task(task)).attempts[0].id) == 11
    assert lab.node.executor.reports == []


async def test_a_result_is_said_again_until_it_is_acknowledged_and_is_accepted_once(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    fleet.store.away = True

    lab.live[0].exits()
    await fleet.passes(LEASE)
    while_away = len(lab.cable.said(Done))
    fleet.store.away = False
    await fleet.passes(LEASE)
    settled = len(lab.cable.said(Done))
    await fleet.passes(LEASE)

    assert while_away > 1
    assert len(lab.cable.said(Done)) == settled
    assert (await fleet.events(task)).count("task.completed") == 1
    assert await fleet.attempts(task) == ["completed"]


async def test_a_start_that_was_lost_with_its_link_is_said_again(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await fleet.submit()
    lab.cable.link.close()  # before the assignment is read, or its start is heard
    await fleet.passes(LEASE + SWEEP)
    assert await fleet.status(task) == "running"

    lab.cable.silent = True
    lab.cable.close()
    await fleet.passes(REDIAL)

    assert Started([lab.node.executor.holds[0]]) in lab.cable.said(Started)
    assert (await fleet.events(task)).count("task.started") == 1


async def test_a_start_and_a_result_that_were_both_lost_are_both_said_again(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.cable.mute = True  # it hears, and is not heard
    task = await fleet.submit()
    await settle()
    lab.live[0].exits()
    await settle()

    lab.cable.close()
    await fleet.passes(REDIAL)

    assert await fleet.events(task) == ["task.created", "task.claimed", "task.started", "task.completed"]


async def test_a_lost_hold_is_stopped_by_the_node(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    lab.cut_off = True
    lab.cable.close()
    await settle()

    await fleet.cancel(task)
    program = lab.live[0]
    lab.cut_off = False
    await fleet.passes(2 * REDIAL)

    assert (program.live, program.asked_to_end) == (False, True)
    assert lab.node.executor.attempts == {}
    assert await fleet.status(task) == "cancelled"


async def test_a_node_that_was_away_for_longer_than_its_lease_stops_what_others_run_now(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    lab.cut_off = True
    lab.cable.close()
    await fleet.passes(2 * LEASE + SWEEP)

    other = await fleet.node(name="other", boot="boot_other")
    lab.cut_off = False
    await fleet.passes(2 * REDIAL)
    mine, theirs = lab.programs[0], other.programs[0]
    theirs.exits()
    await settle()

    assert (mine.live, mine.asked_to_end) == (False, True)
    assert await fleet.attempts(task) == ["orphaned", "completed"]


async def test_a_result_that_comes_after_the_task_was_given_to_another_is_not_accepted(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    lab.cut_off = True
    lab.cable.close()
    await settle()
    lab.live[0].exits(0)
    await fleet.passes(2 * LEASE + SWEEP)

    other = await fleet.node(name="other", boot="boot_other")
    lab.cut_off = False
    await fleet.passes(2 * REDIAL)
    while_the_other_runs = await fleet.status(task)
    other.live[0].exits(5)
    await settle()

    assert while_the_other_runs == "running"
    assert ((await fleet.task(task)).exit_code, await fleet.attempts(task)) == (5, ["orphaned", "failed"])
    assert lab.node.executor.attempts == {}


async def test_a_cancel_reaches_the_node_and_the_whole_program_is_ended(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1)
    task = await running(fleet, lab)
    next_one = await fleet.submit()
    program = lab.live[0]

    await fleet.cancel(task)

    assert (program.asked_to_end, program.killed) == (True, True)
    assert lab.cable.said(Done) == []
    assert await fleet.status(next_one) == "running"


async def test_a_program_that_ignores_the_request_to_end_is_killed_and_only_then_its_worker_is_free(
    fleet: Fleet,
) -> None:
    lab = await fleet.node(workers=1)
    task = await running(fleet, lab)
    next_one = await fleet.submit()
    program = lab.live[0]
    program.deaf = True

    await fleet.cancel(task)
    while_it_ends = await fleet.status(next_one)
    await fleet.passes(6)

    assert while_it_ends == "pending"
    assert program.killed
    assert await fleet.status(next_one) == "running"


async def test_a_timeout_ends_the_program_and_says_so(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab, timeout_seconds=30)

    await fleet.passes(31)

    ended = await fleet.task(task)
    assert (ended.status, ended.code, ended.exit_code) == ("failed", "TIMEOUT", 124)
    assert lab.programs[0].killed


async def test_a_link_on_which_nothing_comes_back_is_given_up_before_its_claims_are_lost(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)

    lab.cable.silent = True
    dead = lab.cable
    await fleet.passes(LEASE - 1)
    given_up = lab.cable is not dead
    await fleet.passes(2 * LEASE)
    lab.live[0].exits()
    await settle()

    assert given_up
    assert len(lab.programs) == 1
    assert await fleet.attempts(task) == ["completed"]


async def test_a_hello_that_is_not_answered_is_given_up(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.born_silent = True
    lab.cable.close()
    await fleet.passes(REDIAL)
    lab.born_silent = False

    await fleet.passes(LEASE + REDIAL)

    assert lab.node.connected.is_set()


async def test_claims_live_on_while_a_node_renews_them(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)

    await fleet.passes(20 * LEASE)

    assert await fleet.attempts(task) == ["running"]
    assert len(lab.cable.said(Renew)) >= 60


async def test_stopping_ends_what_runs_and_hands_it_back_to_others(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1)
    task = await running(fleet, lab)
    program = lab.live[0]

    await lab.node.stop()
    await settle()
    other = await fleet.node(name="other", boot="boot_other")

    assert program.killed
    assert lab.cable.said(Credit)[-1].slots == 0
    assert (len(lab.programs), len(other.programs)) == (1, 1)
    assert await fleet.attempts(task) == ["orphaned", "running"]


async def test_a_second_process_of_a_node_ends_instead_of_dialling_for_ever(fleet: Fleet) -> None:
    await fleet.node(boot="boot_1")

    second = await fleet.node(boot="boot_2")

    with pytest.raises(NodeDuplicate):
        await second.life


async def test_a_node_that_is_refused_for_now_dials_again(fleet: Fleet) -> None:
    fleet.store.away = True
    lab = await fleet.node()
    refused = lab.node.connected.is_set()

    fleet.store.away = False
    await fleet.passes(REDIAL)

    assert not refused
    assert lab.node.connected.is_set()


async def test_a_node_dials_ever_more_slowly_up_to_a_limit(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.cut_off = True
    lab.cable.close()

    await fleet.passes(600)
    lab.cut_off = False
    tried = lab.dialled
    await fleet.passes(7.5)

    assert 600 / 7.5 <= tried <= 600 / 2.5 + 10
    assert lab.node.connected.is_set()


async def test_output_that_was_on_its_way_is_sent_again_from_what_was_acknowledged(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    attempt = (await fleet.task(task)).attempts[0].id
    lab.live[0].writes(b"kept ")
    await fleet.passes(LOG_FLUSH)
    lab.cable.mute = True
    lab.live[0].writes(b"unheard ")
    await settle()

    lab.cable.close()
    await fleet.passes(REDIAL)
    lab.live[0].writes(b"heard")
    lab.live[0].exits()
    await settle()

    assert await fleet.output(attempt) == b"kept unheard heard"
    assert [frame.offset for frame in lab.cable.said(Log)] == [5, 13]


async def test_a_program_waits_while_its_output_is_far_ahead_of_the_store(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab, output_limit_bytes=1 << 30)
    attempt = (await fleet.task(task)).attempts[0].id
    fleet.store.away = True
    data = b"x" * (6 << 20)

    lab.live[0].writes(data)
    await settle()
    sent = sum(len(frame.data) for frame in lab.cable.said(Log))
    fleet.store.away = False
    lab.live[0].exits()
    await fleet.passes(3)

    assert (4 << 20) <= sent < (5 << 20)
    assert await fleet.output(attempt) == data
    assert await fleet.status(task) == "completed"


async def test_two_streams_and_a_mebibyte_are_whole_when_the_task_is_over(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    attempt = (await fleet.task(task)).attempts[0].id
    out, err = bytes(range(256)) * 4096, b"err\n" * 50_000

    lab.live[0].writes(out)
    lab.live[0].writes(err, "stderr")
    lab.live[0].exits()
    await settle()

    assert await fleet.status(task) == "completed"
    assert (fleet.kept(attempt), fleet.kept(attempt, "stderr")) == (len(out), len(err))
    assert (await fleet.output(attempt), await fleet.output(attempt, "stderr")) == (out, err)


async def test_standard_input_reaches_the_program_across_a_broken_link(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab, stdin=True)
    await fleet.call("POST", f"/tasks/{task}/stdin", {"base64": b"first "})
    await settle()
    lab.cable.close()
    await settle()
    await fleet.call("POST", f"/tasks/{task}/stdin", {"base64": b"second", "end": True})

    await fleet.passes(REDIAL)

    program = lab.live[0]
    assert (program.stdin, program.stdin_ended) == (b"first second", True)
    assert len(lab.cable.said(WantInput)) >= 1


async def test_the_same_assignment_again_starts_nothing_again(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    (session,) = fleet.coordinator.dispatcher.sessions
    assignment = next(iter(lab.node.executor.attempts.values())).assignment

    session.assign([(assignment, assignment.spec.resources)])
    await settle()

    assert len(lab.programs) == 1
    assert await fleet.status(task) == "running"


async def test_claims_of_a_boot_that_never_arrived_are_free_at_its_next_hello(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.cable.deaf = True  # it is heard, and does not hear
    task = await fleet.submit()
    await settle()
    claimed = await fleet.status(task)

    lab.cable.close()
    await fleet.passes(REDIAL)

    assert claimed == "claimed"
    assert lab.cable.said(Hello)[0].holds == []
    assert await fleet.events(task) == [
        "task.created", "task.claimed", "task.released", "task.claimed", "task.started",
    ]  # fmt: skip


async def test_an_acknowledgement_that_was_lost_is_asked_for_again(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    lab.cable.deaf = True
    lab.live[0].exits()
    await settle()
    accepted = (await fleet.status(task), len(lab.node.executor.reports))

    lab.cable.close()
    await fleet.passes(REDIAL)

    assert accepted == ("completed", 1)
    assert lab.node.executor.reports == []
    assert (await fleet.events(task)).count("task.completed") == 1


async def test_a_runner_that_breaks_is_told_as_a_failure(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.breaks = RuntimeError("a bug")

    task = await fleet.submit()
    await settle()

    assert ((await fleet.task(task)).code, await fleet.attempts(task)) == ("HOST_LOST", ["failed"])
    assert lab.node.executor.free == 2


async def test_while_the_store_is_away_links_stay_and_nothing_is_orphaned_afterwards(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab)
    fleet.store.away = True

    await fleet.passes(10 * LEASE)
    fleet.store.away = False
    await fleet.passes(3 * LEASE)

    assert len(lab.cables) == 1
    assert await fleet.attempts(task) == ["running"]


async def test_a_program_that_waits_for_acknowledgements_goes_on_when_they_were_lost_with_a_link(fleet: Fleet) -> None:
    lab = await fleet.node()
    task = await running(fleet, lab, output_limit_bytes=1 << 30)
    attempt = (await fleet.task(task)).attempts[0].id
    data = b"x" * (6 << 20)
    lab.cable.deaf = True
    lab.live[0].writes(data)
    lab.live[0].exits()
    await fleet.passes(3)
    kept = fleet.kept(attempt)

    lab.cable.close()
    await fleet.passes(REDIAL)

    assert (4 << 20) < kept < len(data)
    assert await fleet.output(attempt) == data
    assert await fleet.status(task) == "completed"


async def test_a_task_of_a_kind_that_the_node_does_not_run_fails_and_keeps_no_worker(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1, capabilities=("function:app.f",))

    task = await fleet.submit(command=None, function="app.f")
    await settle()

    assert ((await fleet.task(task)).code, lab.node.executor.free) == ("POLICY", 1)
