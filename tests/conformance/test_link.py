"""The link suite on every link."""

import pytest

from retinue.client.link import QueueLink, queue_pair
from retinue.testing.conformance.link import LinkSuite


class TestQueueLink(LinkSuite):
    @pytest.fixture
    async def ends(self) -> tuple[QueueLink, QueueLink]:
        return queue_pair()
