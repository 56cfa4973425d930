"""What a WebSocket's bytes become when audio is taken out of them: the same, in the same order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from voiced.daemon.audio_reader import AudioReader

MOST = 300
"""Largest message that the protocol of these tests takes."""


@dataclass
class Reading:
    """A connection after its upgrade, and somebody who takes blocks while nothing else waits."""

    refuses: frozenset[int] = frozenset()
    """Numbers of the blocks that are refused, counted as they are offered."""
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    """How each message came, and what it held, in order."""
    offered: int = 0

    def __post_init__(self) -> None:
        self.protocol = ServerProtocol(max_size=MOST)
        self.reader = AudioReader(self.protocol)
        self.protocol.state = State.OPEN
        self.protocol.parser = super(ServerProtocol, self.protocol).parse()
        next(self.protocol.parser)
        self.reader.take = self.take

    def take(self, block: bytes) -> bool:
        self.offered += 1
        if self.offered in self.refuses:
            return False
        self.heard.append(("taken", block))
        return True

    def receive(self, data: bytes) -> None:
        """As a connection: what the library has read is handed on, then blocks may be taken."""
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            self.reader.take = None
            self.heard.append((event.opcode.name, bytes(event.data)))
        self.reader.take = self.take

    @property
    def data(self) -> list[bytes]:
        return [data for _, data in self.heard]


def binary(data: bytes, *, fin: bool = True) -> Frame:
    return Frame(Opcode.BINARY, data, fin)


def bytes_of(frames: Iterable[Frame], *, mask: bool = True) -> bytes:
    return b"".join(frame.serialize(mask=mask) for frame in frames)


payloads = st.binary(max_size=MOST)
messages = st.one_of(
    payloads.map(lambda data: [binary(data)]),
    st.binary(max_size=9).map(lambda data: [Frame(Opcode.TEXT, data.hex().encode())]),
    st.binary(max_size=9).map(lambda data: [Frame(Opcode.PING, data)]),
    st.tuples(st.binary(max_size=99), st.binary(max_size=99)).map(
        lambda parts: [binary(parts[0], fin=False), Frame(Opcode.CONT, parts[1])]
    ),
)


@given(
    groups=st.lists(messages, max_size=8),
    cuts=st.lists(st.integers(0, 2_000), max_size=8),
    refuses=st.frozensets(st.integers(1, 8)),
)
def test_everything_comes_once_and_in_order_however_the_bytes_are_cut(
    groups: list[list[Frame]], cuts: list[int], refuses: frozenset[int]
) -> None:
    frames = [frame for group in groups for frame in group]
    data, reading = bytes_of(frames), Reading(refuses)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in pairwise(places):
        reading.receive(data[begin:end])
    assert reading.data == [frame.data for frame in frames]
    assert reading.protocol.parser_exc is None


def test_blocks_are_taken_and_the_library_never_sees_them() -> None:
    reading = Reading()
    blocks = [b"", b"a" * 125, b"b" * 126, b"c" * MOST]
    reading.receive(bytes_of(map(binary, blocks)))
    assert reading.heard == [("taken", block) for block in blocks]


def test_a_refused_block_is_a_message_and_those_behind_it_wait() -> None:
    reading = Reading(frozenset({2}))
    reading.receive(bytes_of(map(binary, [b"a", b"b", b"c"])))
    assert reading.heard == [("taken", b"a"), ("BINARY", b"b"), ("BINARY", b"c")]


def test_audio_does_not_pass_what_was_sent_before_it() -> None:
    reading = Reading()
    reading.receive(bytes_of([binary(b"a"), Frame(Opcode.TEXT, b"flush"), binary(b"b")]))
    assert reading.heard == [("taken", b"a"), ("TEXT", b"flush"), ("BINARY", b"b")]


def test_nothing_is_taken_while_nobody_may() -> None:
    reading = Reading()
    reading.reader.take = None
    reading.receive(bytes_of([binary(b"a")]))
    assert reading.heard == [("BINARY", b"a")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes_of([binary(b"a")], mask=False), CloseCode.PROTOCOL_ERROR),
        (bytes_of([binary(b"a" * 126)], mask=False), CloseCode.PROTOCOL_ERROR),
        (bytes_of([binary(b"a", fin=False), binary(b"b")]), CloseCode.PROTOCOL_ERROR),
        (b"\xc2" + bytes_of([binary(b"a")])[1:], CloseCode.PROTOCOL_ERROR),
        (bytes_of([binary(b"a" * (MOST + 1))]), CloseCode.MESSAGE_TOO_BIG),
        (bytes_of([binary(b"a" * 70_000)]), CloseCode.MESSAGE_TOO_BIG),
    ],
    ids=["unmasked", "unmasked_126", "in_a_fragment", "reserved", "too_big", "far_too_big"],
)
def test_what_breaks_the_protocol_is_refused_as_ever(data: bytes, code: CloseCode) -> None:
    reading = Reading()
    reading.receive(data)
    assert reading.protocol.close_sent is not None
    assert reading.protocol.close_sent.code == code
    assert not [kind for kind, _ in reading.heard if kind == "taken"]
