"""The functions that the tests of host processes call: good ones, and every kind of bad one."""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from retinue.agent.function import current, task


@dataclass
class Point:
    x: int
    y: int


@task
def add(a: int, b: int) -> int:
    return a + b


@task
async def add_soon(a: int, b: int) -> int:
    await asyncio.sleep(0.1)
    return a + b


@task
def nothing() -> None: ...


@task
async def nothing_async() -> None: ...


@task
def mirror(at: Point) -> Point:
    return Point(at.y, at.x)


@task
def wrong_result() -> int:
    return "three"  # type: ignore[return-value]


@task
def unencodable_result() -> object:
    return object()


@task
def speak(text: str) -> None:
    print(text)
    print(text.upper(), file=sys.stderr)
    os.write(1, b"raw\n")
    subprocess.run(["echo", "child"], check=True)


@task
async def speak_async(text: str, turns: int) -> None:
    for turn in range(turns):
        print(text, turn)
        await asyncio.sleep(0)
    await asyncio.to_thread(print, text, "thread")
    os.write(1, b"raw\n")


@task
def variable(name: str) -> str:
    return os.environ.get(name, "")


@task
def context() -> list[str]:
    now = current()
    now.progress(10, stage="first")
    for percent in range(11, 100):
        now.progress(percent, stage="then")
    return [now.task, now.attempt, str(now.fence), now.idempotency_key]


@task
async def context_async() -> list[str]:
    now = current()
    now.progress(10, stage="first")
    for percent in range(11, 100):
        now.progress(percent, stage="then")
    return [now.task, now.attempt, str(now.fence), now.idempotency_key]


@task
def raises() -> None:
    raise ValueError("no such thing")


@task
async def raises_async() -> None:
    raise ValueError("no such thing")


@task
def exits() -> None:
    sys.exit(3)


@task
async def exits_async() -> None:
    sys.exit(3)


@task
def dies() -> None:
    os._exit(3)


@task
async def dies_async() -> None:
    os._exit(3)


@task
def segfaults() -> None:
    ctypes.string_at(0)


@task
def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def spins() -> None:
    while True:
        pass


@task
def computes_in_c() -> None:
    sum(range(10**15))  # lets no other thread run


@task
async def blocks() -> None:
    time.sleep(3600)  # noqa: ASYNC251 - that is the fault


@task
def sleeps() -> None:
    print("asleep", os.getpid())
    time.sleep(3600)


@task
async def sleeps_async() -> None:
    background = asyncio.create_task(asyncio.sleep(3600))
    try:
        print("asleep")
        await asyncio.sleep(3600)
    finally:
        print("woken")
        assert not background.done() or background.cancelled()


@task
async def will_not_stop() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("no")


@task
def floods() -> None:
    line = "x" * 999
    while True:
        print(line)


@task
async def floods_async() -> None:
    line = "x" * 999
    while True:
        print(line)
        await asyncio.sleep(0)


@task
def allocates() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(2**20))


@task
def recurses(depth: int) -> int:
    return recurses(depth + 1) + 1


@task
def forks() -> int:
    return os.fork()


@task
def leaves_a_child() -> int:
    return subprocess.Popen(["sleep", "3600"]).pid


@task
def leaves_a_daemon() -> int:
    return subprocess.Popen(["sleep", "3600"], start_new_session=True).pid
