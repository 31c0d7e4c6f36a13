"""The host of `def` functions: one call at a time, in the main thread, so what is printed meanwhile is that call's."""

import os
import sys
import threading  # noqa: TID251 - a host process is outside of what is simulated
import time  # noqa: TID251 - a host process is outside of what is simulated
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from socket import socket  # noqa: TID251 - a host process is outside of what is simulated
from typing import Any

from retinue.agent import function
from retinue.node.host import guard, outcome
from retinue.node.runners import wire
from retinue.tasks.model import Progress

PROGRESS_SECONDS = 0.1


class Alone:
    """Serves calls one by one. A second thread says each second that it is alive."""

    def __init__(self, control: socket) -> None:
        self._control = control
        self._sending = threading.RLock()  # a finalizer may tell while this thread tells
        self._pid = os.getpid()
        self._call = 0  # the one that runs, or 0
        self._told_at = 0.0
        self._untold: Progress | None = None

    def serve(self, ready: wire.Ready) -> None:
        """Serve until the node ends."""
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the interpreter's own
        self._send(ready)
        guard.each_beat(self._beat)
        frames = wire.Frames(wire.TO_HOST)
        try:
            while data := self._control.recv(wire.BATCH):
                for message in frames.feed(data):
                    if isinstance(message, wire.Call):
                        self._serve(message)
        finally:
            guard.end()

    def _serve(self, call: wire.Call) -> None:
        self._call = call.call
        self._told_at = 0.0
        said = self._run(call)
        if os.getpid() != self._pid:
            os._exit(1)  # a child that the function forked and let return
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (ValueError, OSError):
                pass  # the function closed it
        with self._sending:
            self._tell_now()
            self._call = 0
            self._write(said)
        if isinstance(said, wire.Raised) and said.last:
            guard.end()

    def _run(self, call: wire.Call) -> wire.Message:
        try:
            prepared = outcome.prepare(call)
            if isinstance(prepared, wire.Raised):
                return prepared
            known, arguments = prepared
            function.running.set(function.Context(call.task, call.attempt, call.fence, call.env, self._tell))
            with _environment(call.env):
                value = known.function(*arguments)
            return outcome.returned(call.call, known, value)
        except MemoryError as problem:
            return outcome.raised(call.call, problem, last=True)
        except BaseException as problem:  # noqa: BLE001 - sys.exit() in a function ends the call, not the host
            return outcome.raised(call.call, problem)

    def _tell(self, progress: Progress) -> None:
        with self._sending:
            self._untold = progress
            now = time.monotonic()
            if now - self._told_at >= PROGRESS_SECONDS:
                self._told_at = now
                self._tell_now()

    def _tell_now(self) -> None:
        if self._untold is not None and self._call:
            self._write(wire.Told(self._call, self._untold))
        self._untold = None

    def _beat(self) -> None:
        with self._sending:
            if self._call:
                self._write(wire.Pong())
                self._tell_now()

    def _send(self, message: wire.Message) -> None:
        with self._sending:
            self._write(message)

    def _write(self, message: wire.Message) -> None:
        self._control.sendall(wire.frame([wire.encode(message)]))


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """The task's variables on top of the host's, for as long as it runs."""
    earlier: dict[str, Any] = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
