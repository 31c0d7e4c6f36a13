"""Claims: made in the commit that makes them possible, and how many commits a task costs."""

from retinue.client.frames import Credit, Done, DoneAck, Report
from service.rig import OK, TIMING, Fleet, settle


async def test_a_submit_that_meets_a_free_worker_is_claimed_in_the_same_commit(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    before = fleet.commits

    task = await fleet.submit()
    await settle()

    assert [given.hold.task for given in hand.given()] == [task]
    assert fleet.commits == before + 1
    assert await fleet.events(task) == ["task.created", "task.claimed"]


async def test_many_submits_at_once_are_claimed_in_their_own_commit(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=5, workers=5)
    before = fleet.commits

    made = [fleet.spawn(fleet.submit()) for _ in range(5)]
    await settle()

    assert sorted(given.hold.task for given in hand.given()) == sorted(task.result() for task in made)
    assert fleet.commits == before + 1


async def test_a_submit_that_meets_no_free_worker_costs_one_commit_and_no_claim(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=0)
    before = fleet.commits

    task = await fleet.submit()
    await settle()

    assert fleet.commits == before + 1
    assert await fleet.events(task) == ["task.created"]


async def test_a_result_and_the_claim_of_the_next_task_share_a_commit(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=1)
    _, second = [await fleet.submit() for _ in range(2)]
    await settle()
    (running,) = hand.given()
    await hand.starts(running)
    before = fleet.commits

    await hand.says(Done([Report(running.hold, running.attempt, OK)]), Credit(1, 1))

    assert hand.heard(DoneAck) == [DoneAck([running.attempt])]
    assert [given.hold.task for given in hand.given()] == [second]
    assert fleet.commits == before + 1


async def test_a_small_last_output_its_result_and_the_next_claim_share_a_commit(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1)
    first, second = [await fleet.submit() for _ in range(2)]
    await settle()
    attempt = (await fleet.task(first)).attempts[0].id
    before = fleet.commits

    lab.live[0].writes(b"the end\n")
    lab.live[0].exits()
    await settle()

    # The second program's `started` cannot ride in the commit that claims it.
    assert (await fleet.status(first), await fleet.status(second)) == ("completed", "running")
    assert fleet.kept(attempt) == 8
    assert fleet.commits == before + 2


async def test_a_task_costs_three_commits_from_submit_to_end_on_an_idle_fleet(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1)
    before = fleet.commits

    task = await fleet.submit()
    await settle()
    lab.live[0].exits()
    await settle()

    assert await fleet.events(task) == ["task.created", "task.claimed", "task.started", "task.completed"]
    assert fleet.commits == before + 3


async def test_a_claim_whose_answer_was_lost_waits_again_and_costs_a_once_task_nothing(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=0)
    task = await fleet.submit(on_node_loss="fail")
    await settle()
    fleet.store.lose_answers = 1

    await hand.says(Credit(1, 0))
    lost = (hand.given(), await fleet.status(task))
    await fleet.passes(TIMING.sweep * 2)

    assert lost == ([], "claimed")
    assert [given.hold.task for given in hand.given()] == [task]
    assert await fleet.attempts(task) == ["claimed"]
    assert await fleet.events(task) == ["task.created", "task.claimed", "task.released", "task.claimed"]
