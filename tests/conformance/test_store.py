"""Every engine keeps what `StoreSuite` and `GroupCommitSuite` ask."""

from retinue.testing.conformance import GroupCommitSuite, StoreSuite


class TestStore(StoreSuite):
    """On the fixture `engine`, which is every engine in turn."""


class TestGroupCommit(GroupCommitSuite):
    """On the fixture `engine`, which is every engine in turn."""
