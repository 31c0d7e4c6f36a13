"""Ids: TypeIDs, a prefix that says what it is and a UUIDv7 that sorts by time (jetify-com/typeid, RFC 9562)."""

from random import Random  # noqa: TID251 - the type of the port; `SystemRandom` or a seeded one comes in
from typing import Final

from retinue.clock import Clock, micros

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = [high + low for high in ALPHABET for low in ALPHABET]
_VALUES: Final = {letter: value for value, letter in enumerate(ALPHABET)}

PREFIXES: Final = {
    "tea": "team",
    "nod": "node",
    "boot": "boot of a node or coordinator",
    "tsk": "task",
    "att": "attempt",
    "evt": "event",
    "ses": "session of a foreground client",
    "reg": "registration",
}


class Ids:
    """Makes ids from a clock and a source of chance, rising within one process."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self._last = 0

    def new(self, prefix: str) -> str:
        """A new id such as `tsk_01k0…`; later ones of this process sort after it."""
        self._last = max(self._last + 1, _uuid7(micros(self._clock.now()), self._random.getrandbits(62)))
        return f"{prefix}_{encode(self._last)}"


def _uuid7(at: int, chance: int) -> int:
    milliseconds, rest = divmod(at, 1000)
    # RFC 9562 method 3: the 12 bits behind the version hold the fraction of the millisecond.
    return milliseconds << 80 | 0x7 << 76 | (rest * 4096 // 1000) << 64 | 0b10 << 62 | chance


def encode(value: int) -> str:
    """128 bits as 26 letters of Crockford's base32."""
    pairs = _PAIRS
    return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` is written like an id of this kind; it may still name nothing."""
    head, _, tail = text.rpartition("_")
    return head == prefix and len(tail) == 26 and tail[0] <= "7" and all(letter in _VALUES for letter in tail)
