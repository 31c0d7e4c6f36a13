"""Starts a host process, `python -m retinue.node.host --app M ...`; the node is at the other end of two descriptors."""

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from socket import socket  # noqa: TID251 - a host process is outside of what is simulated
from typing import TYPE_CHECKING

from retinue.errors import ConfigInvalid
from retinue.node.host import apps, guard
from retinue.node.host.alone import Alone
from retinue.node.runners import wire

if TYPE_CHECKING:
    from retinue.node.host.together import Together


def main(argv: Sequence[str] | None = None) -> None:
    """Load the apps, tell the node which functions they have, serve calls until the node ends."""
    parser = argparse.ArgumentParser("python -m retinue.node.host", description="Started by a node, not by people.")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the socket to the node")
    parser.add_argument("--life", type=int, required=True, help="descriptor of a pipe that ends when the node does")
    parser.add_argument("--together", action="store_true", help="for async functions; otherwise one call at a time")
    parser.add_argument("--app", action="append", default=[], help="a module, or the path of a script")
    parser.add_argument("--path", action="append", default=[], help="where modules are looked for, in order")
    options = parser.parse_args(argv)
    guard.stand(options.life)
    # A crash, or the node before it ends a stuck host, has the stack written to stderr.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=False)
    control = socket(fileno=options.control)
    control.set_inheritable(False)
    host = _host(control, options.together)
    try:
        ready = apps.load(options.app, options.path)
    except ConfigInvalid as problem:
        control.sendall(wire.frame([wire.encode(wire.Unready(problem.message))]))
        sys.stderr.flush()
        os._exit(1)  # whatever threads the app has started
    host.serve(ready)


def _host(control: socket, together: bool) -> "Alone | Together":
    if not together:
        return Alone(control)
    from retinue.node.host.together import Together  # asyncio only where it is needed

    return Together(control)


if __name__ == "__main__":
    main()
