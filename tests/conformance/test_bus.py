"""The bus suite on every bus."""

import pytest

from retinue.bus.memory import MemoryBus
from retinue.testing.conformance.bus import BusSuite


class TestMemoryBus(BusSuite):
    @pytest.fixture
    def bus(self) -> MemoryBus:
        return MemoryBus()
