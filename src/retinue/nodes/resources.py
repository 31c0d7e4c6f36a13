"""Resources as a value: what an attempt takes of a node, or what a node has."""

import msgspec


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cores, MiB of memory, GPUs."""

    cpu: float = 0.0
    memory_mb: int = 0
    gpu: int = 0

    def fits(self, room: "Resources") -> bool:
        """Whether this much can be taken of `room`."""
        return self.cpu <= room.cpu and self.memory_mb <= room.memory_mb and self.gpu <= room.gpu

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.cpu + other.cpu, self.memory_mb + other.memory_mb, self.gpu + other.gpu)

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(self.cpu - other.cpu, self.memory_mb - other.memory_mb, self.gpu - other.gpu)
