"""The simulator's own kernel: time, chance, machines, network, store, programs; played with a toy client and server."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from retinue.client.frames import Assign, Ping
from retinue.errors import LinkClosed, OutcomeUnknown, Unavailable
from retinue.node.processes import Launch
from retinue.storage.schema import READ_META, WRITE_META
from retinue.testing.sim import run
from retinue.testing.sim.chance import Chance, fork
from retinue.testing.sim.engine import Database, DiskTrouble
from retinue.testing.sim.faults import Faults
from retinue.testing.sim.host import Incarnation
from retinue.testing.sim.loop import OUTSIDE, WORLD, Deadlock, EscapedSimulation, Runaway, SimLoop
from retinue.testing.sim.mutants import MUTANTS, Mutant, patched, sql
from retinue.testing.sim.net import SimLink
from retinue.testing.sim.processes import command
from retinue.testing.sim.world import Settings, World
from sim import toy

CALM = Settings(profile="calm")
TOY = "sim.toy:play"

Body = Callable[[Incarnation], Awaitable[None]]


WORLDS: list[World] = []


@pytest.fixture(autouse=True)
def _end_worlds() -> Iterator[None]:
    yield
    while WORLDS:
        world = WORLDS.pop()
        if world.loop.steps:
            world.end()


def a_world(seed: int = 1, settings: Settings = CALM) -> World:
    WORLDS.append(World(seed, settings))
    return WORLDS[-1]


def idle(world: World) -> Callable[[Incarnation], Awaitable[None]]:
    async def program(own: Incarnation) -> None:
        await own.never()

    return program


async def until(world: World, at: float) -> None:
    """Let the world's time pass."""
    future = world.loop.create_future()
    world.loop.at(at, WORLD, future.set_result, None)
    await future


class TestLoop:
    def test_time_jumps_to_the_next_timer(self) -> None:
        loop = SimLoop()

        loop.run_until_complete(asyncio.sleep(3600))

        assert loop.time() == 3600
        assert loop.steps < 10

    def test_timers_of_the_same_moment_run_in_the_order_they_were_set(self) -> None:
        loop = SimLoop()
        seen: list[int] = []

        for number in range(5):
            loop.after(1.0, WORLD, seen.append, number)
        loop.run_until_complete(asyncio.sleep(2))

        assert seen == [0, 1, 2, 3, 4]

    def test_nothing_left_to_happen_is_a_deadlock(self) -> None:
        loop = SimLoop()

        with pytest.raises(Deadlock):
            loop.run_until_complete(loop.create_future())

    def test_spinning_is_a_runaway(self) -> None:
        loop = SimLoop(steps=1000)

        async def spin() -> None:
            while True:  # noqa: ASYNC110 - it spins on purpose
                await asyncio.sleep(0)

        with pytest.raises(Runaway):
            loop.run_until_complete(spin())

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_the_outside_cannot_be_reached_past_the_ports(self, name: str) -> None:
        loop = SimLoop()

        with pytest.raises(EscapedSimulation):
            getattr(loop, name)(None, print)

    def test_the_private_names_it_stands_on_are_there_in_this_python(self) -> None:
        import inspect

        once = inspect.getsource(asyncio.BaseEventLoop._run_once)
        bare = asyncio.BaseEventLoop()

        assert "self._selector.select(timeout)" in once
        assert "self._process_events(event_list)" in once
        assert "self._ready.popleft()" in once
        assert bare._scheduled == []
        assert len(bare._ready) == 0
        bare.close()

    def test_an_exception_nobody_took_is_a_failure_of_the_seed(self) -> None:
        world = a_world()

        async def broken(own: Incarnation) -> None:
            own.start(fails())
            await own.never()

        async def fails() -> None:
            raise ValueError("planted")

        world.add("host", broken).start()
        world.run(until(world, 1.0))
        world.end()

        assert len(world.failures) == 1
        assert "planted" in world.failures[0]

    def test_shuffling_changes_the_order_of_ready_tasks_and_is_the_same_again(self) -> None:
        def order(seed: int | None) -> list[int]:
            loop = SimLoop(shuffle=None if seed is None else fork(seed, "loop"))
            seen: list[int] = []

            async def one(number: int) -> None:
                await asyncio.sleep(0)
                seen.append(number)

            async def all_of_them() -> None:
                await asyncio.gather(*[one(number) for number in range(20)])

            loop.run_until_complete(all_of_them())
            return seen

        assert order(None) == list(range(20))
        assert order(1) == order(1)
        assert order(1) != order(None)


class TestChance:
    def test_a_draw_for_one_purpose_does_not_move_another_one(self) -> None:
        one, other = fork(7, "net"), fork(7, "net")
        fork(7, "load").random()

        assert [one.random() for _ in range(3)] == [other.random() for _ in range(3)]
        assert fork(7, "net").random() != fork(7, "load").random()
        assert fork(8, "net").random() != fork(7, "net").random()

    def test_a_masked_fault_does_not_happen_and_the_others_stay(self) -> None:
        free = Chance(3)
        dice = free.dice("frame-lost", 0.3)
        hits = [number for number in range(1, 101) if dice()]
        masked = Chance(3, mask=frozenset({f"frame-lost#{hits[2]}"}))
        again = masked.dice("frame-lost", 0.3)

        left = [number for number in range(1, 101) if again()]

        assert left == [hit for hit in hits if hit != hits[2]]
        assert [name for _, name, _ in masked.happened] == [f"frame-lost#{hit}" for hit in left]

    def test_planned_faults_can_be_masked_one_by_one(self) -> None:
        def plan(settings: Settings) -> list[str]:
            world = a_world(2, settings)
            faults = Faults(world, "coordinator", ["n1", "n2"], lasts=120, lease=9)
            return [fault.name for fault in faults.plan()]

        everything = plan(Settings(profile="P1"))
        masked = plan(Settings(profile="P1", mask=frozenset({everything[3]})))

        assert masked == everything[:3] + everything[4:]

    def test_a_seed_does_without_some_kinds_of_fault_and_never_takes_those_of_other_profiles(self) -> None:
        offs = [a_world(seed, Settings(profile="P1")).chance.off for seed in range(30)]

        assert all("block" in off for off in offs)
        assert len({off & {"node-kill", "coordinator-kill", "node-gone"} for off in offs}) > 3


class TestHost:
    def test_a_crash_runs_no_cleanup_in_the_world_outside(self) -> None:
        world = a_world()
        effects: list[str] = []

        async def program(own: Incarnation) -> None:
            try:
                await own.clock.sleep(100)
            finally:
                await own.call()
                effects.append("cleaned up")

        host = world.add("host", program)
        host.start()
        world.loop.at(1.0, WORLD, lambda _: host.crash(power_cut=True))
        world.run(until(world, 200))
        world.end()

        assert effects == []
        assert not host.up
        assert world.failures == []

    def test_a_killed_machine_comes_back_as_another_incarnation(self) -> None:
        world = a_world()
        begun: list[int] = []

        async def program(own: Incarnation) -> None:
            begun.append(own.number)
            await own.never()

        host = world.add("host", program)
        host.start()
        world.loop.at(1.0, WORLD, lambda _: world.kill(host, 5.0, power_cut=False))
        world.run(until(world, 10))

        assert begun == [1, 2]

    def test_a_machine_that_is_gone_stays_away(self) -> None:
        world = a_world()
        host = world.add("host", idle(world))
        host.start()
        world.run(until(world, 1.0))

        host.gone = True
        host.crash(power_cut=True)
        host.start()

        assert not host.up

    def test_a_pause_holds_timers_until_it_ends(self) -> None:
        world = a_world()
        woken: list[float] = []

        async def program(own: Incarnation) -> None:
            await own.clock.sleep(2.0)
            woken.append(world.loop.time())
            await own.never()

        host = world.add("host", program)
        host.start()
        assert host.incarnation is not None
        own = host.incarnation
        world.loop.at(1.0, WORLD, lambda _: own.pause())
        world.loop.at(31.0, WORLD, lambda _: own.resume())
        world.run(until(world, 60))

        assert woken == [31.0]

    def test_a_timeout_fires_on_the_clock_of_its_machine(self) -> None:
        world = a_world()
        ended: list[float] = []

        async def program(own: Incarnation) -> None:
            try:
                async with own.clock.timeout(4.0):
                    await own.never()
            except TimeoutError:
                ended.append(world.loop.time())
            async with own.clock.timeout(4.0):
                ended.append(world.loop.time())
            await own.clock.sleep(100)

        host = world.add("host", program)
        host.machine.set_rate(2.0)
        host.start()
        world.run(until(world, 30))

        assert ended == [2.0, 2.0]

    def test_a_sleep_lasts_as_long_when_the_clock_slows_down_meanwhile(self) -> None:
        world = a_world()
        slept: list[tuple[float, float]] = []

        async def program(own: Incarnation) -> None:
            began = own.clock.monotonic()
            await own.clock.sleep(10.0)
            slept.append((world.loop.time(), own.clock.monotonic() - began))
            await own.never()

        host = world.add("host", program)
        host.start()
        world.loop.at(5.0, WORLD, lambda _: host.machine.set_rate(0.5))
        world.run(until(world, 60))

        assert slept == [(15.0, pytest.approx(10.0))]

    def test_a_wall_step_moves_the_wall_clock_alone(self) -> None:
        world = a_world()
        host = world.add("host", idle(world))
        host.start()
        world.run(until(world, 1.0))
        assert host.incarnation is not None
        clock = host.incarnation.clock
        wall, monotonic = clock.now(), clock.monotonic()

        host.machine.wall_offset += 300

        assert (clock.now() - wall).total_seconds() == 300
        assert clock.monotonic() == monotonic

    def test_a_process_that_ends_with_an_error_is_a_failure_and_is_started_again(self) -> None:
        world = a_world()

        async def program(own: Incarnation) -> None:
            if own.number == 1:
                raise ValueError("planted")
            await own.never()

        host = world.add("host", program)
        host.start()
        world.run(until(world, 5))

        assert host.incarnations == 2
        assert len(world.failures) == 1


def two_machines(world: World, near: Body, far: Body) -> None:
    """Two machines with a link from one to the other; each body gets its end."""

    async def listens(own: Incarnation) -> None:
        world.net.serve(own, "link", lambda link: own.start(far(link)))
        await own.never()

    async def dials(own: Incarnation) -> None:
        await own.clock.sleep(0.1)
        await near(await world.net.dial(own, "far"))
        await own.never()

    world.add("far", listens).start()
    world.add("near", dials).start()


async def drain(link: SimLink, into: list[object]) -> None:
    try:
        while True:
            frame = await link.receive()
            into.append(frame.number if isinstance(frame, Assign) else frame)
    except LinkClosed:
        into.append(("closed", round(link.own.loop.time())))


def numbered(count: int) -> list[Assign]:
    return [Assign(number, []) for number in range(count)]


class TestNet:
    def a_conversation(self, world: World, seconds: float = 60.0) -> list[object]:
        """Ten frames, one a second, from near to far; what arrived."""
        arrived: list[object] = []

        async def near(link: SimLink) -> None:
            for frame in numbered(10):
                link.send(frame)
                await link.own.clock.sleep(1.0)

        two_machines(world, near, lambda link: drain(link, arrived))
        world.run(until(world, seconds))
        return arrived

    def test_frames_arrive_in_order_and_once_in_spite_of_repeats(self) -> None:
        world = a_world()
        world.net.repeated.probability = 1.0
        world.net.repeated._random = lambda: 0.0  # each frame

        arrived = self.a_conversation(world)

        assert arrived == list(range(10))

    def test_a_lost_frame_closes_the_link_when_the_gap_is_seen(self) -> None:
        world = a_world()
        draws = iter([0.9, 0.9, 0.0, *[0.9] * 100])
        world.net.lost.probability = 0.5
        world.net.lost._random = lambda: next(draws)

        arrived = self.a_conversation(world)

        assert arrived == [0, 1, ("closed", 3)]

    def test_what_was_sent_during_a_short_block_follows(self) -> None:
        world = a_world()
        world.loop.at(2.0, WORLD, lambda _: world.net.block("near", "far"))
        world.loop.at(5.0, WORLD, lambda _: world.net.unblock("near", "far"))

        arrived = self.a_conversation(world)

        assert arrived == list(range(10))

    def test_a_long_block_of_one_direction_ends_the_connection_on_both_sides(self) -> None:
        world = a_world()
        arrived: list[object] = []
        here: list[object] = []
        world.loop.at(2.0, WORLD, lambda _: world.net.block("near", "far"))

        two_machines(world, lambda link: drain(link, here), lambda link: drain(link, arrived))
        world.run(until(world, 60.0))

        assert [kind for kind, _ in here] == ["closed"]  # type: ignore[misc]
        assert [kind for kind, _ in arrived] == ["closed"]  # type: ignore[misc]

    def test_a_kill_closes_the_link_at_once_and_a_power_cut_only_by_silence(self) -> None:
        ends: list[float] = []
        for power_cut in (False, True):
            world = a_world()
            arrived: list[object] = []
            two_machines(world, lambda link: drain(link, []), lambda link, into=arrived: drain(link, into))
            world.loop.at(5.0, WORLD, lambda _, w=world, cut=power_cut: w.host("near").crash(power_cut=cut))
            world.run(until(world, 60.0))
            ends.append(arrived[-1][1])  # type: ignore[index]

        assert ends[0] == 5
        assert 9 <= ends[1] <= 54

    def test_nobody_listening_refuses_at_once(self) -> None:
        world = a_world()
        errors: list[float] = []

        async def dials(own: Incarnation) -> None:
            try:
                await world.net.dial(own, "far")
            except LinkClosed:
                errors.append(world.loop.time())
            await own.never()

        world.add("far", idle(world)).start()
        world.add("near", dials).start()
        world.run(until(world, 20.0))

        assert len(errors) == 1
        assert errors[0] < 0.1

    def test_frames_to_a_paused_machine_are_held(self) -> None:
        world = a_world()
        times: list[float] = []

        async def far(link: SimLink) -> None:
            while True:
                await link.receive()
                times.append(round(world.loop.time(), 1))

        async def near(link: SimLink) -> None:
            await link.own.clock.sleep(1.0)
            link.send(Ping())

        two_machines(world, near, far)
        world.loop.at(0.5, WORLD, lambda _: world.host("far").incarnation.pause())  # type: ignore[union-attr]
        world.loop.at(4.0, WORLD, lambda _: world.host("far").incarnation.resume())  # type: ignore[union-attr]
        world.run(until(world, 20.0))

        assert times == [4.0]

    def test_a_lost_answer_is_a_timeout(self) -> None:
        world = a_world()
        said: list[str] = []

        async def serves(own: Incarnation) -> None:
            world.net.serve(own, "api", said)
            await own.never()

        async def asks(own: Incarnation) -> None:
            async def question(server: list[str]) -> None:
                server.append("asked")
                world.net.block("far", "near")

            await own.clock.sleep(0.1)
            with pytest.raises(TimeoutError):
                await world.net.ask(own, "far", question, timeout=2.0)
            said.append("unknown")
            await own.never()

        world.add("far", serves).start()
        world.add("near", asks).start()
        world.run(until(world, 20.0))

        assert said == ["asked", "unknown"]


class TestEngine:
    def written(self, trouble: DiskTrouble) -> tuple[World, list[object]]:
        """One write of a process that tries again when it is started again; what it was told."""
        world = a_world()
        world.database = Database(Chance(1), trouble, world._crash_point)
        told: list[object] = []

        async def program(own: Incarnation) -> None:
            engine = world.database.open(own)
            found = await engine.read(lambda connection: connection.rows(READ_META, "key"))
            told.append((own.number, [row[0] for row in found]))
            if own.number == 1:
                try:
                    await engine.write(lambda transaction: transaction.run(WRITE_META, "key", "value"))
                    told.append("ok")
                except Unavailable as error:
                    told.append(type(error))
            await own.never()

        world.add("coordinator", program).start()
        world.run(until(world, 30))
        return world, told

    def test_a_crash_before_the_commit_leaves_nothing(self) -> None:
        _, told = self.written(DiskTrouble(crash_before=1.0))

        assert told == [(1, []), (2, [])]

    def test_a_crash_after_the_commit_leaves_the_row_and_no_answer(self) -> None:
        _, told = self.written(DiskTrouble(crash_after=1.0))

        assert told == [(1, []), (2, ["value"])]

    def test_an_unknown_outcome_may_have_happened_or_not(self) -> None:
        lost, told_lost = self.written(DiskTrouble(unknown_before=1.0))
        kept, told_kept = self.written(DiskTrouble(unknown_after=1.0))

        assert told_lost == told_kept == [(1, []), OutcomeUnknown]
        assert lost.database.rows("SELECT value FROM meta WHERE key = 'key'") == []
        assert kept.database.rows("SELECT value FROM meta WHERE key = 'key'") == [{"value": "value"}]

    def test_the_lease_clock_does_not_go_back_when_the_wall_does(self) -> None:
        world = a_world()
        marks: list[int] = []

        async def program(own: Incarnation) -> None:
            engine = world.database.open(own)
            for _ in range(5):
                await own.clock.sleep(2.0)
                await engine.write(lambda transaction: transaction.run(WRITE_META, "key", "value"))
                marks.append(world.database.store.now())  # type: ignore[union-attr]
            await own.never()

        host = world.add("coordinator", program)
        host.start()

        def strike(_: object) -> None:
            host.machine.wall_offset -= 86400
            world.kill(host, 0.5, power_cut=True)

        world.loop.at(11.0, WORLD, strike)
        world.run(until(world, 30))

        assert len(marks) == 10
        assert marks == sorted(marks)


class TestPrograms:
    def played(self, kind: str, crash_at: float | None = None, stop: str = "") -> tuple[World, list[object]]:
        world = a_world()
        told: list[object] = []

        async def program(own: Incarnation) -> None:
            if own.number > 1:
                await own.never()
            running = await world.outside.of(own).start(Launch(command(kind, 2.0, "t"), {}, Path("t")))
            if stop == "terminate":
                running.terminate()
            elif stop == "kill":
                await running.kill()
            while (piece := await running.read()) is not None:
                told.append(piece[1][:8])
            told.append(await running.wait())
            await own.never()

        host = world.add("node", program)
        host.start()
        if crash_at is not None:
            world.loop.at(crash_at, WORLD, lambda _: world.kill(host, 1.0, power_cut=False))
        world.run(until(world, 30))
        return world, told

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("run", [b"t begins", b"t ends\n", 0]),
            ("fail", [b"t begins", 3]),
            ("quiet", [0]),
            ("die", [-9]),
            ("hang", []),
        ],
    )
    def test_they_do_what_their_script_says(self, kind: str, said: list[object]) -> None:
        _, told = self.played(kind)

        assert told == said

    def test_term_ends_one_that_hangs_and_only_kill_a_deaf_one(self) -> None:
        assert self.played("hang", stop="terminate")[1] == [-15]
        assert self.played("deaf", stop="terminate")[1] == []
        assert self.played("deaf", stop="kill")[1] == [-9]

    def test_they_die_with_their_node_and_each_start_stays_on_record(self) -> None:
        world, told = self.played("run", crash_at=1.0)

        assert told == [b"t begins"]
        assert [(entry.kind, entry.who) for entry in world.history.of("program", "program-ended")] == [
            ("program", "node"),
            ("program-ended", "node"),
        ]
        assert world.outside.live == {}


class TestRuns:
    def test_the_same_seed_is_the_same_run(self) -> None:
        first = [run.run_seed(seed, Settings(), TOY).digest for seed in range(5)]
        again = [run.run_seed(seed, Settings(), TOY).digest for seed in range(5)]

        assert first == again
        assert len(set(first)) == 5

    @pytest.mark.slow
    def test_the_same_seed_is_the_same_run_in_another_process_with_other_hashes(self) -> None:
        script = (
            "from retinue.testing.sim import run; from retinue.testing.sim.world import Settings;"
            f"print([run.run_seed(seed, Settings(), {TOY!r}).digest for seed in range(5)])"
        )
        path = os.pathsep.join(["src", str(Path(__file__).parents[1])])

        printed = {
            subprocess.run(
                [sys.executable, "-c", script],
                env={"PYTHONPATH": path, "PYTHONHASHSEED": salt},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for salt in ("1", "2")
        }

        assert len(printed) == 1

    def test_the_toy_keeps_what_it_acknowledged(self) -> None:
        report = run.run_seeds(1, 20, Settings(), scenario=TOY)

        assert [(outcome.seed, outcome.problems) for outcome in report.failed] == []
        assert report.reached["pong"] == 20
        assert report.reached["fault node-kill"] > 5

    def test_a_planted_bug_is_found_and_made_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(
            MUTANTS,
            "toy",
            Mutant("toy", "-", (), lambda: patched(toy.Server, "acknowledge_first", True)),
        )

        report = run.run_seeds(1, 100, Settings(), scenario=TOY, mutant="toy", until_failed=True)
        settings, outcome = run.shrink(report.failed[0].seed, Settings(), scenario=TOY, mutant="toy", runs=60)

        assert outcome.problems[0].startswith("lost: ")
        assert len(outcome.faults) < len(report.failed[0].faults) / 4
        assert settings.nodes == 1
        assert run.run_seed(outcome.seed, Settings(), TOY).ok

    def test_a_hang_is_a_failure_with_the_place_where_it_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def spin(world: World) -> None:
            while True:  # noqa: ASYNC110 - it spins on purpose
                await asyncio.sleep(0)

        monkeypatch.setattr(toy, "spin", spin, raising=False)

        outcome = run.run_seed(1, Settings(steps=5000), "sim.toy:spin")

        assert outcome.problems[0].startswith("Runaway: ")

    @pytest.mark.slow
    def test_two_processes_play_what_one_does(self) -> None:
        alone = run.run_seeds(1, 40, Settings(), scenario=TOY)
        together = run.run_seeds(1, 40, Settings(), scenario=TOY, jobs=2)

        assert (together.seeds, together.reached) == (alone.seeds, alone.reached)


class TestMutants:
    def test_a_statement_is_changed_for_a_while_only(self) -> None:
        before = READ_META.sqlite

        with sql((READ_META, "key = ?", "(key = ? OR true)")):
            during = READ_META.sqlite

        assert during == before.replace("key = ?", "(key = ? OR true)")
        assert READ_META.sqlite == before

    def test_a_mutant_that_no_longer_fits_the_code_says_so(self) -> None:
        with pytest.raises(LookupError), sql((READ_META, "no such text", "")):
            pass
