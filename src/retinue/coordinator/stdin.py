"""Standard input of foreground tasks: kept from the client until the attempt that reads it has it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from retinue.client.frames import Input, WantInput
from retinue.errors import Invalid, StaleClaim

AHEAD = 1 << 20  # bytes a client may be ahead of the program
PIECE = 32 * 1024
KEPT = 64 << 20  # bytes kept for the task's later attempts


@dataclass(slots=True)
class _Source:
    data: bytearray = field(default_factory=bytearray)
    begin: int = 0  # offset of data[0]
    end: bool = False
    sent: int = 0
    fence: int = 0  # of the latest attempt that asked
    want: WantInput | None = None
    deliver: Callable[[Input], None] | None = None
    room: Callable[[], None] | None = None


class StdinHub:
    """One source a task. A later attempt starts at the beginning again, as long as that is still kept."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}

    @property
    def tasks(self) -> set[str]:
        """Whose input is kept, or waited for."""
        return set(self._sources)

    def put(self, task: str, data: bytes, *, end: bool = False) -> None:
        """More input from the client."""
        source = self._sources.setdefault(task, _Source())
        source.data += data
        source.end = source.end or end
        self._send(source)

    def full(self, task: str) -> bool:
        """Whether the client should wait: the program is far behind."""
        source = self._sources.get(task)
        return source is not None and source.begin + len(source.data) - source.sent > AHEAD

    def on_room(self, task: str, room: Callable[[], None]) -> None:
        """Call `room` whenever the program took some."""
        self._sources.setdefault(task, _Source()).room = room

    def want(self, frame: WantInput, deliver: Callable[[Input], None]) -> None:
        """An attempt asks for input from an offset on; it is sent as it comes, up to the credit.

        Raises:
            Invalid: what it asks for is not kept any more. StaleClaim: a later attempt reads it.
        """
        source = self._sources.setdefault(frame.hold.task, _Source())
        if frame.hold.fence < source.fence:
            raise StaleClaim(task=frame.hold.task, fence=frame.hold.fence)
        source.fence = frame.hold.fence
        if frame.offset < source.begin:
            raise Invalid.field("stdin", "the input of an earlier attempt was too long to be kept for another one")
        source.want, source.deliver, source.sent = frame, deliver, frame.offset
        self._send(source)

    def drop(self, task: str) -> None:
        """The task is over."""
        source = self._sources.pop(task, None)
        if source is not None and source.room is not None:
            source.room()

    def _send(self, source: _Source) -> None:
        want = source.want
        if want is None or source.deliver is None:
            return
        upto = min(source.begin + len(source.data), want.offset + want.credit)
        while source.sent < upto:
            piece = bytes(source.data[source.sent - source.begin : min(source.sent + PIECE, upto) - source.begin])
            source.deliver(Input(want.attempt, source.sent, piece))
            source.sent += len(piece)
        if source.end and source.sent == source.begin + len(source.data):
            source.deliver(Input(want.attempt, source.sent, b"", end=True))
            source.want = None
        extra = len(source.data) - KEPT
        if extra > 0:
            gone = min(extra, source.sent - source.begin)
            del source.data[:gone]
            source.begin += gone
        if source.room is not None:
            source.room()
