"""The fleet of a service test."""

from collections.abc import AsyncIterator

import pytest

from service.rig import Fleet


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    await made.start()
    yield made
    await made.stop()
