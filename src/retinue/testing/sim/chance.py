"""Chance from a seed: one generator a purpose, and dice whose every hit has a name by which it can be switched off."""

from collections.abc import Callable
from hashlib import blake2b
from random import Random  # noqa: TID251 - this is where the seeded ones are made


def fork(seed: int, label: str) -> Random:
    """The generator of one purpose: a draw added for another purpose does not move this one's."""
    digest = blake2b(f"{seed}/{label}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest))  # noqa: S311 - the point is to have the same again


class Chance:
    """All chance of one run. `off` names fault kinds that do not happen, `mask` single ones such as `frame-lost#17`,
    `force` single ones that happen whatever is drawn."""

    def __init__(
        self,
        seed: int,
        *,
        off: frozenset[str] = frozenset(),
        mask: frozenset[str] = frozenset(),
        force: frozenset[str] = frozenset(),
    ) -> None:
        self.seed = seed
        self.off = off
        self.mask = mask
        self.force = force
        self.calm = False  # true once everything is healed: no dice hits any more
        self.happened: list[tuple[float, str, str]] = []  # when, its name for the mask, its description
        self.all_dice: list[Dice] = []
        self.now: Callable[[], float] = float

    def fork(self, label: str) -> Random:
        """The generator of one purpose."""
        return fork(self.seed, label)

    def dice(self, kind: str, probability: float, label: str = "") -> "Dice":
        """Dice for one kind of fault; with a label, one of several, such as one a machine."""
        made = Dice(self, kind, 0.0 if kind in self.off else probability, label)
        self.all_dice.append(made)
        return made

    def note(self, name: str, text: str = "") -> bool:
        """Whether a fault that was drawn may happen; then it stands in the list of what did."""
        if self.calm or name in self.mask:
            return False
        self.happened.append((self.now(), name, text or name))
        return True


class Dice:
    """Decides again and again whether one kind of fault happens now."""

    __slots__ = ("_chance", "_forced", "_random", "kind", "name", "probability", "throws")

    def __init__(self, chance: Chance, kind: str, probability: float, label: str) -> None:
        self.kind = kind
        self.probability = probability
        self.throws = 0
        self._chance = chance
        self.name = f"{kind}@{label}" if label else kind
        self._random = chance.fork(f"dice/{self.name}").random if probability > 0 else None
        self._forced = any(name.partition("#")[0] == self.name for name in chance.force)

    def __call__(self) -> bool:
        """One throw. Each has its number, so masking one does not move the next."""
        self.throws += 1
        drawn = self._random is not None and self._random() < self.probability
        if not drawn and not (self._forced and f"{self.name}#{self.throws}" in self._chance.force):
            return False
        return self._chance.note(f"{self.name}#{self.throws}")
