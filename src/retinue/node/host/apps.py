"""What a host process runs: the functions that its apps register when they are imported."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from retinue.agent import function
from retinue.errors import ConfigInvalid, RetinueError
from retinue.node.runners import wire

SCRIPT = "__retinue_main__"  # not `__main__`, so that a script's own work is not begun again


def load(apps: Sequence[str], path: Sequence[str]) -> wire.Ready:
    """Import the apps, in order, and say which functions they have.

    Raises:
        ConfigInvalid: one does not import (its traceback is on stderr), or has a function that cannot be a task.
    """
    sys.path[:] = [*path]
    function.loading(True)
    for number, app in enumerate(apps):
        try:
            if app.endswith(".py"):
                _load_script(Path(app), SCRIPT if number == 0 else f"{SCRIPT}{number}")
            else:
                importlib.import_module(app)
        except BaseException as problem:  # an app may call sys.exit() while it is imported
            traceback.print_exc()
            sentence = problem.message if isinstance(problem, RetinueError) else f"{type(problem).__name__}: {problem}"
            raise ConfigInvalid(f"The app {app} cannot be loaded: {sentence}") from problem
    function.loading(False)
    for known in function.registered():
        try:
            known.check()
        except RetinueError as problem:
            raise ConfigInvalid(f"The app {known.app} cannot be loaded: {problem.message}") from problem
    return wire.Ready({known.name: known.is_async for known in function.registered()})


def _load_script(script: Path, name: str) -> None:
    """Import a file as multiprocessing's spawn does; its functions keep the names they have where it is the program."""
    if str(script.parent) not in sys.path:
        sys.path.insert(0, str(script.parent))
    function.alias(name, str(script))
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
