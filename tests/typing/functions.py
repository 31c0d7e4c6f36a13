"""What a type checker sees of functions that are tasks."""

from collections.abc import Awaitable, Callable
from typing import assert_type

from retinue.agent.function import task
from retinue.client.client import Fleet


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(name="typing.later")
async def later(seconds: float) -> str:
    return str(seconds)


def a_registered_function_stays_what_it_was() -> None:
    assert_type(add(1, b=2), int)
    called: Callable[[float], Awaitable[str]] = later

    assert called is later


async def run_gives_what_the_function_returns(fleet: Fleet) -> None:
    assert_type(await fleet.run(add, 2, 3), int)
    assert_type(await fleet.run(add, 2), int)
    assert_type(await fleet.run(later, 0.5), str)
    await fleet.run(add, "2")  # type: ignore[call-overload]
    await fleet.run(add)  # type: ignore[call-overload]
