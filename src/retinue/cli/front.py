"""What every verb stands on: the options they share, the configuration, a fleet to look at or to work with, output."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.config import Loaded
    from retinue.embedded import Embedded, EmbeddedSettings, Serve

T = TypeVar("T")
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every verb takes."""

    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    data_dir: str | None = None
    config: str | None = None
    debug: bool = False


class Front:
    """One call of a verb."""

    def __init__(self, common: Common) -> None:
        self.common = common
        self.json = common.as_json
        self.quiet = common.quiet
        self.flags: dict[str, tuple[str, Any]] = {}  # settings given as options of this verb
        level = LEVELS[min(common.verbose, 2)]
        logging.basicConfig(stream=sys.stderr, level=level, format="retinue: %(message)s")
        logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))

    # -- what is set -----------------------------------------------------------------------------------------------

    @cached_property
    def loaded(self) -> "Loaded":
        """The configuration with all its origins.

        Raises:
            ConfigInvalid: something in it is wrong; the sentence has file, line and key.
        """
        from platformdirs import user_config_path

        from retinue.config import Flag, load

        flags = {path: Flag(option, value) for path, (option, value) in self.flags.items()}
        if self.common.data_dir is not None:
            flags["data_dir"] = Flag("--data-dir", self.common.data_dir)
        only = Path(self.common.config) if self.common.config is not None else None
        user_file = user_config_path("retinue") / "config.yaml"
        return load(os.environ, folder=Path.cwd(), user_file=user_file, only=only, flags=flags)

    @property
    def data_dir(self) -> Path:
        """Where Retinue keeps its data."""
        from platformdirs import user_state_path

        named = self.loaded.config.data_dir
        return Path(named).expanduser().absolute() if named else user_state_path("retinue")

    def settings(self, serve: "Serve" = "nothing") -> "EmbeddedSettings":
        """What the configuration says to a coordinator and node inside this process."""
        from retinue.embedded import EmbeddedSettings
        from retinue.tasks.prune import Retention

        config = self.loaded.config
        keep = config.retention
        given: dict[str, Any] = {"labels": dict(config.coordination.labels), "serve": serve}
        if config.coordination.node_id is not None:
            given["node"] = config.coordination.node_id
        if config.coordination.max_workers is not None:
            given["workers"] = config.coordination.max_workers
        return EmbeddedSettings(
            data_dir=self.data_dir,
            store_url=config.store.url,
            retention=Retention(
                events=keep.events.total_seconds(),
                tasks=keep.tasks.total_seconds(),
                logs=keep.logs.total_seconds(),
            ),
            **given,
        )

    # -- a fleet ---------------------------------------------------------------------------------------------------

    def look(self, work: "Callable[[Fleet], Coroutine[Any, Any, T]]") -> T:
        """Do something that only reads. Nothing that waits is run, and whoever holds the data directory goes on."""

        import asyncio

        async def looking() -> T:
            from retinue.client.client import Fleet
            from retinue.embedded import LookingTransport

            transport = await LookingTransport.start(self.settings())
            if transport.note is not None:
                self.note(transport.note)
            async with Fleet(transport) as fleet:
                return await work(fleet)

        return asyncio.run(looking())

    def steer(self, work: "Callable[[Fleet], Coroutine[Any, Any, T]]") -> T:
        """Do something that changes records, as the one process that holds the data directory. Runs no task.

        Raises:
            DataDirHeld: another process does.
        """
        return self.serve("nothing", lambda embedded, fleet: work(fleet))

    def serve(self, serve: "Serve", work: "Callable[[Embedded, Fleet], Coroutine[Any, Any, T]]") -> T:
        """Do something beside a coordinator and node of our own. Interrupted, it is cancelled; everything that runs is
        ended before this returns, at once when it is interrupted again.

        Raises:
            DataDirHeld: another process holds the data directory. KeyboardInterrupt: it was interrupted.
        """

        import asyncio

        async def serving() -> T:
            from retinue.client.client import Fleet
            from retinue.embedded import Embedded

            interrupts = Interrupts()
            embedded = await Embedded.start(self.settings(serve))
            interrupts.hurry = embedded.processes.close
            try:
                async with Fleet(embedded.transport()) as fleet:
                    return await work(embedded, fleet)
            finally:
                if serve == "own":  # its tasks ended with their session; the programs may still be about to
                    await embedded.idle()
                await embedded.stop()

        try:
            return asyncio.run(serving())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    # -- output ----------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line for the person in front of it, on standard error."""
        if not self.quiet:
            from retinue.cli.text import plain

            try:
                print(f"retinue: {plain(text)}", file=sys.stderr, flush=True)
            except OSError:
                pass  # there is nobody to tell

    def document(self, document: Any) -> None:
        """One document for programs, on one line."""
        import msgspec

        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        sys.stdout.flush()

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        """Rows for people: as wide as the terminal, or as wide as needed when they go elsewhere."""
        from retinue.cli.text import table

        table(columns, rows)


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP of this process: the first cancels the running work, a further one hurries its end."""

    def __init__(self) -> None:
        import asyncio

        self.hurry: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.current_task()
        self._times = 0
        self._hurrying: asyncio.Task[None] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._interrupt)

    def _interrupt(self) -> None:
        self._times += 1
        if self._times == 1 and self._work is not None:
            self._work.cancel()
        elif self.hurry is not None and self._hurrying is None:
            self._hurrying = self._loop.create_task(self.hurry())
