"""Server-sent events from bytes that are split anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import KvtrieError

LONGEST_EVENT_BYTES = 16 << 20
"""A server that sends more than this without ending an event would otherwise fill the client's memory."""
_BOM = b"\xef\xbb\xbf"


class MalformedStream(KvtrieError):
    """The bytes are no event stream."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    data: str
    """The text of its `data:` lines, joined by newlines."""
    name: str = "message"
    """The text of its last `event:` line."""


class EventParser:
    """Parses one response. A line ends with LF, CR or CRLF, and an event with an empty line."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._name = ""
        self._event_bytes = 0
        self._is_first_line = True
        self._ended_with_cr = False

    @property
    def is_inside_an_event(self) -> bool:
        """Whether bytes of an event have arrived that has not ended: the stream was cut there."""
        return bool(self._line or self._data)

    def feed(self, received: bytes) -> list[Event]:
        """The events that end within `received`, the next bytes of the response.

        Raises:
            MalformedStream: a line is not UTF-8, or an event is longer than `LONGEST_EVENT_BYTES`.
        """
        if not received:
            return []
        # 1. The LF of a CRLF whose CR was the last byte before these.
        if self._ended_with_cr:
            received = received.removeprefix(b"\n")
        events: list[Event] = []
        # 2. Whole lines. `splitlines` of bytes splits at LF, CR and CRLF only.
        for line in received.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            self._line += text
            self._event_bytes += len(text)
            if self._event_bytes > LONGEST_EVENT_BYTES:
                raise MalformedStream(f"an event has more than {LONGEST_EVENT_BYTES} bytes")
            if len(text) < len(line):
                whole = bytes(self._line)
                self._line.clear()
                event = self._line_ended(whole)
                if event is not None:
                    events.append(event)
        self._ended_with_cr = received.endswith(b"\r")
        return events

    def _line_ended(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        # 1. An empty line ends the event; without data there is none.
        if not line:
            event = Event("\n".join(self._data), self._name or "message") if self._data else None
            self._data, self._name, self._event_bytes = [], "", 0
            return event
        # 2. A comment begins with a colon. A field's value begins after one space at most.
        try:
            field, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise MalformedStream(f"a line is not UTF-8: {line[:40]!a}") from None
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif not field:
            # Comments keep a connection alive, any number of them.
            self._event_bytes -= len(line)
        return None
