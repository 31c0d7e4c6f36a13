"""Every engine keeps what `TaskSuite` and `EventSuite` ask."""

from retinue.testing.conformance import EventSuite, TaskSuite


class TestTasks(TaskSuite):
    """On the fixture `engine`, which is every engine in turn."""


class TestEvents(EventSuite):
    """On the fixture `engine`, which is every engine in turn."""
