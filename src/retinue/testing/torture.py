"""`retinue torture`: the whole fleet's real code through thousands of bad days, each replayable from its seed."""

from dataclasses import asdict
from typing import Annotated, Any, Final

import msgspec
import typer

PROFILES: Final = "P1 crashes, P2 network, P3 time, P4 disk, P5 all of them, calm none"


def command(
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds to run; 1,000 unless --seed is given.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replay this seed; with --seeds, begin with it.")] = None,
    profile: Annotated[str, typer.Option(help=f"Which faults: {PROFILES}.")] = "P5",
    jobs: Annotated[int, typer.Option(help="Processes that run at once.", min=1)] = 2,
    budget: Annotated[float, typer.Option(help="Start nothing new after this many real seconds.")] = 0.0,
    mutants: Annotated[bool, typer.Option("--mutants", help="Plant known bugs; each must be caught.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="With --mutants: only these. Repeatable.")] = None,
    smaller: Annotated[
        bool, typer.Option("--shrink", help="Make the first failing seed as small as possible.")
    ] = False,
    off: Annotated[list[str] | None, typer.Option(help="Leave a kind of fault out. Repeatable.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="Leave a single fault out, such as node-kill#3. Repeatable.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes of the fleet.", min=1)] = 3,
    tasks: Annotated[int, typer.Option(help="Tasks of the fleet.", min=1)] = 20,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say how far it is, and what was reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    scenario: Annotated[str, typer.Option(help="What is played: module:function.", hidden=True)] = "",
) -> None:
    """Simulate whole fleets under crashes, partitions, clock jumps and bad disks, and check every guarantee.

    The real code runs in one thread under virtual time; the same seed plays the same run on every machine with the
    same Python version. Exit status 1 when a guarantee was broken, with the seed and how to replay it.

    Examples:

        retinue torture --seeds 1000

        retinue torture --seed 4711 --verbose

        retinue torture --seeds 10000 --profile P1 --budget 60

        retinue torture --mutants
    """
    from retinue.testing.sim import run
    from retinue.testing.sim.faults import PROFILES as KNOWN
    from retinue.testing.sim.world import Settings

    if profile not in KNOWN:
        raise typer.BadParameter(f"{profile}: one of {', '.join(KNOWN)}", param_hint="--profile")
    settings = Settings(profile=profile, nodes=nodes, tasks=tasks, off=frozenset(off or ()), mask=frozenset(mask or ()))
    played = scenario or run.FLEET
    count = seeds or (1000 if seed is None else 1)
    if mutants:
        raise typer.Exit(_mutants(seed or 1, count, settings, played, jobs, only or [], as_json=as_json))
    first = 1 if seed is None else seed

    def told(report: run.Report) -> None:
        if verbose and not as_json:
            _say(
                f"{report.seeds}/{count} seeds, {len(report.failed)} failed, {report.per_minute:.0f} seeds/min",
                err=True,
            )

    report = run.run_seeds(
        first, count, settings, scenario=played, jobs=min(jobs, count), budget=budget or float("inf"), told=told
    )
    if as_json:
        _say(msgspec.json.encode(_document(report, settings)).decode())
    else:
        _print(report, settings, verbose=verbose)
    if report.failed:
        if not as_json:
            _print_failure(report.failed[0], settings, smaller=smaller, scenario=played)
        raise typer.Exit(1)


def _say(text: str, *, err: bool = False) -> None:
    typer.echo(text, err=err)


def _print(report: Any, settings: Any, *, verbose: bool) -> None:
    hours = report.simulated / 3600
    verdict = "every guarantee held" if not report.failed else f"{len(report.failed)} seeds broke a guarantee"
    _say(
        f"{report.seeds} seeds of {settings.profile}: {verdict}. {hours:.1f} simulated hours in {report.took:.1f} s:"
        f" {report.per_minute:.0f} seeds/min, {report.per_core_minute:.0f} a core."
    )
    if verbose:
        for label, times in sorted(report.reached.items()):
            _say(f"  {times:>7}  {label}")


def _print_failure(outcome: Any, settings: Any, *, smaller: bool, scenario: str) -> None:
    from retinue.testing.sim import run

    if smaller:
        _say(f"seed {outcome.seed}: making it smaller …", err=True)
        settings, outcome = run.shrink(outcome.seed, settings, scenario=scenario)
    _say(f"\nSeed {outcome.seed} (Python {run.PYTHON}):")
    for problem in outcome.problems:
        _say(f"  {problem}")
    _say(f"\nFaults ({len(outcome.faults)}):")
    for at, _, text in outcome.faults:
        _say(f"  {at:9.3f} s  {text}")
    _say("\nThe end of the story:")
    for line in outcome.last:
        _say(f"  {line}")
    _say(f"\nReplay it with:\n  {replay(outcome.seed, settings)}")


def replay(seed: int, settings: Any) -> str:
    """The command line that plays exactly this run again."""
    words = [f"retinue torture --seed {seed} --profile {settings.profile}"]
    words += [f"--nodes {settings.nodes}"] if settings.nodes != 3 else []
    words += [f"--tasks {settings.tasks}"] if settings.tasks != 20 else []
    words += [f"--off {kind}" for kind in sorted(settings.off)]
    words += [f"--mask {name}" for name in sorted(settings.mask)]
    return " ".join(words)


def _document(report: Any, settings: Any) -> dict[str, Any]:
    return {
        "seeds": report.seeds,
        "profile": settings.profile,
        "simulated_seconds": report.simulated,
        "seconds": report.took,
        "seeds_per_minute": report.per_minute,
        "seeds_per_core_minute": report.per_core_minute,
        "reached": dict(sorted(report.reached.items())),
        "failed": [asdict(outcome) | {"replay": replay(outcome.seed, settings)} for outcome in report.failed],
    }


def _mutants(first: int, seeds: int, settings: Any, scenario: str, jobs: int, only: list[str], *, as_json: bool) -> int:
    """Run each planted bug until it is caught; 1 when one survives."""
    from retinue.testing.sim import run
    from retinue.testing.sim.bugs import known

    run.scenario_of(scenario)  # its module may register mutants of its own
    rows = []
    for name, bug in known().items():
        if only and name not in only:
            continue
        report = run.run_seeds(
            first,
            seeds,
            settings.without(profile=bug.profile),
            scenario=scenario,
            mutant=name,
            jobs=jobs,
            until_failed=True,
        )
        caught = report.failed[0] if report.failed else None
        rows.append(
            {
                "mutant": name,
                "number": bug.number,
                "invariants": list(bug.invariants),
                "caught_by": caught.seed if caught else None,
                "caught": len(report.failed),
                "seeds": report.seeds,
                "as": sorted({problem.partition(":")[0] for problem in caught.problems}) if caught else [],
            }
        )
        if not as_json:
            by = ", ".join(sorted({problem.partition(":")[0] for problem in caught.problems})) if caught else ""
            verdict = f"caught by seed {caught.seed} as {by}" if caught else f"SURVIVED {report.seeds} seeds"
            _say(f"{bug.number:<5} {name:<34} {verdict}")
    if as_json:
        _say(msgspec.json.encode(rows).decode())
    return int(any(row["caught_by"] is None for row in rows))
