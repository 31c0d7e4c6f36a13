"""Runs seeds: one, or thousands in several processes; makes a failing one small, and says what was covered."""

import gc
import importlib
import logging
import platform
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing import get_context
from types import FrameType
from typing import Any, Final

from retinue.clock import SystemClock
from retinue.testing.sim.bugs import planted
from retinue.testing.sim.check import Evidence, violations
from retinue.testing.sim.loop import Deadlock, EscapedSimulation, Runaway
from retinue.testing.sim.world import Settings, World

Scenario = Callable[[World], Coroutine[Any, Any, Evidence]]

FLEET: Final = "retinue.testing.sim.fleet:play"
PYTHON: Final = platform.python_version()
PATIENCE: Final = 60.0  # real seconds a seed may take; a spin without an await shows in no step count
CHUNK: Final = 20  # seeds a process is given at a time


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    problems: list[str]  # violated invariants, unhandled errors, a hang; empty: it passed
    faults: list[tuple[float, str, str]] = field(default_factory=list)
    last: list[str] = field(default_factory=list)  # the end of the story, only of a failed seed
    digest: str = ""
    steps: int = 0
    simulated: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)  # how often each kind of single fault could have happened

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self.problems


def scenario_of(name: str) -> Scenario:
    """A scenario by its name, `module:function`."""
    module, _, attribute = name.partition(":")
    found: Scenario = getattr(importlib.import_module(module), attribute)
    return found


def run_seed(seed: int, settings: Settings, scenario: str = FLEET, mutant: str | None = None) -> Outcome:
    """Play one seed to its end and check it."""
    with planted(mutant), _quiet() as logged, _alarm(), _no_collection():
        world = World(seed, settings)
        evidence: Evidence | None = None
        problems: list[str] = []
        try:
            evidence = world.run(scenario_of(scenario)(world))
        except (Deadlock, Runaway, EscapedSimulation) as hang:
            problems.append(f"{type(hang).__name__}: {hang}")
        if evidence is not None:
            problems += violations(evidence)
        steps = world.loop.steps
        world.end()
        problems += world.failures
        outcome = Outcome(seed, problems, world.chance.happened, [], _digest(world), steps, world.loop.time())
        outcome.labels = world.labels
        outcome.points = {dice.name: dice.throws for dice in world.chance.all_dice}
        if problems:
            outcome.last = _story(world, evidence, logged)
        return outcome


def _digest(world: World) -> str:
    text = f"{world.history.digest()} {world.chance.happened} {sorted(world.labels.items())}"
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _story(world: World, evidence: Evidence | None, logged: list[str], lines: int = 50) -> list[str]:
    told = [f"{at:9.3f} s  fault    {text}" for at, _, text in world.chance.happened]
    told += [
        f"{entry.at:9.3f} s  {entry.kind:<8} {entry.who}/{entry.number} {entry.what}" for entry in world.history.entries
    ]
    told = sorted(told)[-lines:]
    if evidence is not None:
        facts = [fact for team in evidence.events.values() for fact in team]
        told += [f"event {f.position:>6} {f.type:<15} {f.subject} {f.node or '-'} {f.data}" for f in facts[-lines:]]
    return told + logged[-10:]


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep errors that the program logs for the story; print nothing."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(f"log: {record.getMessage()} {record.exc_info or ''}")  # type: ignore[method-assign]
    logger = logging.getLogger("retinue")
    before = (logger.level, logger.propagate, logger.handlers)
    logger.setLevel(logging.ERROR)
    logger.propagate, logger.handlers = False, [handler]
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None  # coroutines that died with their machine
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # its machine died first
            yield logged
    finally:
        logger.level, logger.propagate, logger.handlers = before
        logger.setLevel(before[0])
        sys.unraisablehook = hook


@contextmanager
def _alarm() -> Iterator[None]:
    """End a seed that spins without ever giving the loop a step."""

    def ring(number: int, frame: FrameType | None) -> None:
        place = f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame else "nowhere"
        raise Runaway(f"a seed takes more than {PATIENCE:.0f} real seconds, in {place}")

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except (ValueError, AttributeError):  # not the main thread, or no such signal here
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage once at the end of a seed: faster, and at the same moment each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(slots=True)
class Report:
    """What became of many seeds."""

    seeds: int = 0
    failed: list[Outcome] = field(default_factory=list)
    simulated: float = 0.0
    steps: int = 0
    took: float = 0.0
    busy: float = 0.0  # processor seconds of the seeds themselves
    reached: Counter[str] = field(default_factory=Counter)  # label -> in how many seeds

    def add(self, outcomes: Sequence[Outcome], busy: float = 0.0) -> None:
        """Count a chunk."""
        self.busy += busy
        for outcome in outcomes:
            self.seeds += 1
            self.simulated += outcome.simulated
            self.steps += outcome.steps
            self.reached.update(outcome.labels.keys())
            self.reached.update({f"fault {name.partition('#')[0].partition('@')[0]}" for _, name, _ in outcome.faults})
            if not outcome.ok:
                self.failed.append(outcome)

    @property
    def per_minute(self) -> float:
        """Seeds a minute, of all processes together."""
        return 60 * self.seeds / self.took if self.took else 0.0

    @property
    def per_core_minute(self) -> float:
        """Seeds a minute of one process that does nothing else."""
        return 60 * self.seeds / self.busy if self.busy else 0.0


def _chunk(seeds: Sequence[int], settings: Settings, scenario: str, mutant: str | None) -> tuple[list[Outcome], float]:
    clock = SystemClock()
    began = clock.monotonic()
    return [run_seed(seed, settings, scenario, mutant) for seed in seeds], clock.monotonic() - began


def _prepare() -> None:
    """In a new process: what is loaded now lives for ever, so no collection has to look at it again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()


def run_seeds(
    first: int,
    count: int,
    settings: Settings,
    *,
    scenario: str = FLEET,
    mutant: str | None = None,
    jobs: int = 1,
    budget: float = float("inf"),
    until_failed: bool = False,
    told: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Run `count` seeds from `first` on, in chunks, until the budget of real seconds is used up.

    `told` hears of each finished chunk. With `until_failed` the first failure ends it.
    """
    clock = SystemClock()
    began = clock.monotonic()
    report = Report()
    size = 1 if until_failed and jobs <= 1 else CHUNK
    chunks = iter([range(at, min(at + size, first + count)) for at in range(first, first + count, size)])

    def done() -> bool:
        return clock.monotonic() - began > budget or (until_failed and bool(report.failed))

    if jobs <= 1:
        for chunk in chunks:
            report.add(*_chunk(chunk, settings, scenario, mutant))
            report.took = clock.monotonic() - began
            told(report)
            if done():
                break
        return report
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        waiting: set[Future[tuple[list[Outcome], float]]] = set()
        while True:
            while len(waiting) < jobs + 1 and not done() and (following := next(chunks, None)):
                waiting.add(pool.submit(_chunk, following, settings, scenario, mutant))
            if not waiting:
                break
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for finished in ready:
                report.add(*finished.result())
            report.took = clock.monotonic() - began
            told(report)
    report.failed.sort(key=lambda outcome: outcome.seed)
    return report


POINTS: Final = (
    *("crash-at-call", "crash-at-frame", "crash-before-commit", "crash-after-commit"),
    *("commit-lost", "answer-lost", "frame-lost"),
)
SMALL: Final = Settings(profile="calm", nodes=2, tasks=3, faults_for=20.0, calm_for=45.0)


def sweep(
    seed: int = 1, settings: Settings = SMALL, *, scenario: str = FLEET, kinds: Sequence[str] = POINTS
) -> Iterator[Outcome]:
    """Every place of a small run where something can be lost, one run each: a crash at each call of a port, each frame
    and around each commit; each frame and the answer of each commit lost. The first is the run without any."""
    calm = run_seed(seed, settings, scenario)
    yield calm
    for name, times in calm.points.items():
        if name.partition("@")[0] in kinds and not name.endswith("@client"):
            for number in range(1, times + 1):
                yield run_seed(seed, settings.without(force=frozenset({f"{name}#{number}"})), scenario)


def shrink(
    seed: int, settings: Settings, *, scenario: str = FLEET, mutant: str | None = None, runs: int = 300
) -> tuple[Settings, Outcome]:
    """The smallest run found that still breaks the same thing: fewer kinds of fault, fewer faults, tasks and nodes."""
    smallest = run_seed(seed, settings, scenario, mutant)
    broken = _names(smallest)
    left = runs

    def still(candidate: Settings) -> bool:
        nonlocal smallest, settings, left
        if left <= 0:
            return False
        left -= 1
        outcome = run_seed(seed, candidate, scenario, mutant)
        if not _names(outcome) & broken:
            return False
        smallest, settings = outcome, candidate
        return True

    for kind in sorted({name.partition("#")[0].partition("@")[0] for _, name, _ in smallest.faults}):
        still(settings.without(off=settings.off | {kind}))
    size = max(1, len(smallest.faults) // 2)
    while left > 0:
        names = [name for _, name, _ in smallest.faults]
        parts = [names[at : at + size] for at in range(0, len(names), size)]
        if not any(still(settings.without(mask=settings.mask | set(part))) for part in parts):
            if size == 1:
                break
            size //= 2
    for fewer in (1, 2, 3, 5, 10):
        if fewer < settings.tasks and still(settings.without(tasks=fewer)):
            break
    for fewer in (1, 2):
        if fewer < settings.nodes and still(settings.without(nodes=fewer)):
            break
    return settings, smallest


def _names(outcome: Outcome) -> set[str]:
    """What broke, without the ids: the invariant's number, or the kind of failure."""
    return {problem.partition(":")[0] for problem in outcome.problems}
