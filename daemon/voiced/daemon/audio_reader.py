"""Blocks of audio out of a WebSocket's bytes, without a message, a future and a task for each.

A stream is thousands of short binary messages. The library makes a frame of each in some twenty
calls, and another dozen bring it to whoever waits in `recv`: more than the block itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from websockets.server import ServerProtocol
from websockets.streams import StreamReader

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library was installed without its C part
    from websockets.utils import apply_mask

_WHOLE_BINARY = 0x82
"""First byte of a binary message in one frame, without extensions (RFC 6455, section 5.2)."""
_MASKED = 0x80
_SHORT = 126
"""Lengths up to here are in the second byte; this one says that two bytes with it follow."""
_MASK_BYTES = 4

Take = Callable[[bytes], bool]


class AudioReader(StreamReader):
    """What the library's parser reads from: it gets only what `take` does not take."""

    def __init__(self, protocol: ServerProtocol) -> None:
        """Put itself between `protocol`, which has read nothing yet, and its bytes."""
        super().__init__()
        self._protocol = protocol
        self.take: Take | None = None
        """Takes a block on the spot, or refuses it. To be set while somebody waits in `recv`, and
        only then; whoever sees a message come reads None here from then on: nothing passes it."""
        protocol.reader = self
        protocol.parser = protocol.parse()
        next(protocol.parser)

    def at_eof(self) -> Generator[None, None, bool]:
        """Wait for a frame; False: there is one. This is what the parser asks between two."""
        while True:
            while self.take is not None and self._take_block(self.take):
                pass
            if self.buffer or self.eof:
                return not self.buffer
            yield

    def _take_block(self, take: Take) -> bool:
        """Have a block taken if a whole one is next; anything else is the library's."""
        buffer, protocol = self.buffer, self._protocol
        if len(buffer) < 2 or buffer[0] != _WHOLE_BINARY:
            return False
        if protocol.events or protocol.current_size is not None:  # of a message before this one
            return False
        size, begin = buffer[1] - _MASKED, 2
        if size == _SHORT:
            size, begin = int.from_bytes(buffer[2:4], "big"), 4
        elif size > _SHORT:
            return False
        begin += _MASK_BYTES
        end = begin + size
        most = protocol.max_message_size
        if size < 0 or len(buffer) < end or (most is not None and size > most):
            return False
        if not take(apply_mask(buffer[begin:end], buffer[begin - _MASK_BYTES : begin])):
            return False
        del buffer[:end]
        return True
