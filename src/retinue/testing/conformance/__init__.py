"""One suite per seam: inherit it, give it the fixture it names, and run it with pytest on your own implementation."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in ("events", "group", "store", "tasks")))

from retinue.testing.conformance.events import EventSuite  # noqa: E402 - after the line that makes asserts speak
from retinue.testing.conformance.group import GroupCommitSuite  # noqa: E402
from retinue.testing.conformance.store import StoreSuite  # noqa: E402
from retinue.testing.conformance.tasks import TaskSuite  # noqa: E402

__all__ = ["EventSuite", "GroupCommitSuite", "StoreSuite", "TaskSuite"]
