"""The bus contract: topics of dotted tokens, patterns with `*` for one token and `>` for the rest."""

from collections.abc import Callable
from typing import Protocol

Handler = Callable[[str, bytes], None]


class Bus(Protocol):
    """Carries hints; may lose, repeat or reorder. Passes `retinue.testing.conformance.BusSuite`."""

    def publish(self, topic: str, payload: bytes = b"") -> None:
        """Send once and wait for nobody; a topic without subscribers is not an error."""

    def subscribe(self, pattern: str, handler: Handler) -> Callable[[], None]:
        """Call `handler(topic, payload)` in the loop's thread for what matches, until the returned function is called.

        A handler must not block and must not raise: it notes what to look at and returns.
        """


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is meant by a pattern."""
    parts, tokens = pattern.split("."), topic.split(".")
    for place, part in enumerate(parts):
        if part == ">":
            return len(tokens) > place
        if place >= len(tokens) or part not in ("*", tokens[place]):
            return False
    return len(parts) == len(tokens)
