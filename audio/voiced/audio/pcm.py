"""Encodings of the wire ↔ float32 samples. Pure."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import Encoding, StreamFormat

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]

_INT16_SCALE = np.float32(1 / 32768)
_WIRE_DTYPES: dict[Encoding, np.dtype[Any]] = {
    Encoding.S16: np.dtype("<i2"),
    Encoding.S32: np.dtype("<i4"),
    Encoding.F32: np.dtype("<f4"),
    Encoding.MULAW: np.dtype("u1"),
    Encoding.ALAW: np.dtype("u1"),
}


def frame_bytes(fmt: StreamFormat) -> int:
    """Bytes of one sample of all channels."""
    return _WIRE_DTYPES[fmt.encoding].itemsize * fmt.channels


@cache
def _mulaw_table() -> Float32:
    """All 256 codes of G.711 μ-law (ITU-T G.711, table 2a/2b) as 16-bit values / 32768."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32) * _INT16_SCALE


@cache
def _alaw_table() -> Float32:
    """All 256 codes of G.711 A-law (ITU-T G.711, table 1a/1b) as 16-bit values / 32768."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    chord = (code & 0x70) >> 4
    step = ((code & 0x0F) << 4) + 8
    magnitude = np.where(chord == 0, step, (step + 0x100) << np.maximum(chord - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.float32) * _INT16_SCALE


def _decode(raw: npt.NDArray[Any], encoding: Encoding) -> Float32:
    samples: Float32
    if encoding is Encoding.S16:
        samples = np.multiply(raw, _INT16_SCALE, dtype=np.float32)
    elif encoding is Encoding.S32:
        samples = np.multiply(raw, 2.0**-31, dtype=np.float64).astype(np.float32)
    elif encoding is Encoding.F32:
        samples = raw.astype(np.float32)
        samples[~np.isfinite(samples)] = 0.0
        np.clip(samples, -1.0, 1.0, out=samples)
    else:
        samples = np.take(_mulaw_table() if encoding is Encoding.MULAW else _alaw_table(), raw)
    return samples


class PcmReader:
    """Turns one stream's bytes into mono samples, whatever the block sizes.

    Bytes that do not complete a sample of all channels wait for the next call. One thread.
    """

    def __init__(self, fmt: StreamFormat) -> None:
        self._fmt = fmt
        self._dtype = _WIRE_DTYPES[fmt.encoding]
        self._frame_bytes = frame_bytes(fmt)
        self._pending = b""

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete sample, held for the next call."""
        return len(self._pending)

    def discard_pending(self) -> None:
        """Forget the incomplete sample: what follows does not continue it."""
        self._pending = b""

    def feed(self, data: bytes | bytearray | memoryview) -> Float32:
        """Decode a block.

        Returns:
            float32[n] in [-1, 1], owned by the caller: the mean of the channels. NaN and infinite
            values read as 0, louder than full scale is clipped.
        """
        block: bytes | bytearray | memoryview = data
        if self._pending:
            block = self._pending + bytes(data)
        elif isinstance(data, memoryview):
            block = data.cast("B")
        count, rest = divmod(len(block), self._frame_bytes)
        self._pending = bytes(block[len(block) - rest :])
        raw = np.frombuffer(block, self._dtype, count=count * self._fmt.channels)
        samples = _decode(raw, self._fmt.encoding)
        if self._fmt.channels == 1:
            return samples
        # A sum of strided views: numpy's mean over a short last axis takes ten times as long.
        mono: Float32 = samples[:: self._fmt.channels].copy()
        for channel in range(1, self._fmt.channels):
            mono += samples[channel :: self._fmt.channels]
        mono *= np.float32(1 / self._fmt.channels)
        return mono


def float_to_int16(samples: Float32) -> Int16:
    """Convert float32[n] in [-1, 1] to int16[n]: the exact inverse of reading s16."""
    scaled = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    # Only +1.0 lies outside of int16; the saturation is the one value that cannot come back.
    np.minimum(scaled, np.float32(32767), out=scaled)
    return scaled.astype(np.int16)
