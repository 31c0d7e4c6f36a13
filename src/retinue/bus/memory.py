"""The bus inside one process: a dictionary of subscribers."""

from collections.abc import Callable

from retinue.bus.bus import Handler, matches


class MemoryBus:
    """Delivers at once, in order, to the subscribers of this process."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[int, Handler]] = {}
        self._patterns: dict[int, tuple[str, Handler]] = {}
        self._next = 0

    def publish(self, topic: str, payload: bytes = b"") -> None:
        for handler in [*self._exact.get(topic, {}).values()]:
            handler(topic, payload)
        for pattern, handler in [*self._patterns.values()]:
            if matches(pattern, topic):
                handler(topic, payload)

    def subscribe(self, pattern: str, handler: Handler) -> Callable[[], None]:
        self._next += 1
        number = self._next
        if "*" in pattern or ">" in pattern:
            self._patterns[number] = (pattern, handler)
        else:
            self._exact.setdefault(pattern, {})[number] = handler

        def unsubscribe() -> None:
            self._patterns.pop(number, None)
            handlers = self._exact.get(pattern)
            if handlers is not None:
                handlers.pop(number, None)
                if not handlers:
                    del self._exact[pattern]

        return unsubscribe
