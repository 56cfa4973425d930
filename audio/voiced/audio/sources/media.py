"""Media files → blocks of float32 at 16 kHz mono, through FFmpeg's libraries (PyAV).

The decoder gives floats at the file's own rate; channels are mixed by their mean and soxr
brings the rate to 16 kHz, as on a stream. (FFmpeg's own mixdown to mono adds 3 dB on float
output, and its resampler would make a file sound unlike the same audio sent over a socket.)

The sample index is the file's own time, so that subtitles fit a video: where the container says
that sound begins late or pauses (a browser's recording, packets that cannot be decoded), silence
fills the place.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.audio.errors import MediaError
from voiced.audio.frames import RATE_HZ
from voiced.audio.resample import StreamResampler

logger = logging.getLogger(__name__)

Samples = npt.NDArray[np.float32]

_GAP_S = 0.1
"""Timestamps that jump less than this are rounding of the container (Matroska: 1 ms) and codec
delays, not lost sound."""
_MAX_GAP_S = 3600.0
"""A longer jump is a broken timestamp."""
_SHORT_S = 0.5
"""A file that ends this much before the length in its header was cut off."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file says about its first audio stream, before anything is decoded."""

    container: str
    codec: str
    rate_hz: int
    channels: int
    duration_s: float | None
    """None when the header does not tell."""


def probe(path: str | PathLike[str]) -> MediaInfo:
    """Read a file's header.

    Raises:
        MediaError: It cannot be read, is empty, is no media file or has no audio.
    """
    with _opened(path) as (container, stream):
        return MediaInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            rate_hz=stream.rate,
            channels=stream.channels,
            duration_s=_announced_s(container, stream),
        )


def decode_file(
    path: str | PathLike[str], *, on_damage: Callable[[str], None] | None = None
) -> Iterator[Samples]:
    """Decode the first audio stream of a file, block by block.

    Args:
        path: WAV, FLAC, MP3, Opus, OGG, M4A, WebM, or a video: whatever FFmpeg reads.
        on_damage: Called at most once, after the last block, when a part of the file could not
            be decoded or the end is missing; the text says what. Without it a warning is logged.

    Yields:
        float32[n] at 16 kHz in [-1, 1], n at least 1 and as the codec gives it; a filled place
        in blocks of at most a second.

    Raises:
        MediaError: The file cannot be opened, or nothing at all could be decoded.
    """
    with _opened(path) as (container, stream):
        decoder = _Decoder(container, stream)
        samples = 0
        for block in decoder.blocks():
            samples += len(block)
            yield block
        damage = decoder.damage or _cut_wav(Path(path))
        if not samples:
            raise MediaError(path, damage or "holds no audio")
        announced_s = _announced_s(container, stream)
        if not damage and announced_s and announced_s - samples / RATE_HZ > _SHORT_S:
            damage = f"the header announces {announced_s:.1f} s"
    if damage:
        text = f"{path}: damaged or cut off: {damage}; decoded {samples / RATE_HZ:.1f} s"
        if on_damage is None:
            logger.warning("%s", text)
        else:
            on_damage(text)


def read_all(
    path: str | PathLike[str], *, on_damage: Callable[[str], None] | None = None
) -> Samples:
    """Decode a whole file to float32[n] at 16 kHz; arguments and errors as `decode_file`."""
    return np.concatenate(list(decode_file(path, on_damage=on_damage)))


class _Decoder:
    """One pass over one audio stream."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container = container
        self._stream = stream
        # Only sound that begins later than the picture is late; sound alone begins at 0.
        self._origin_s = (container.start_time or 0) / 1_000_000
        self._converter: _ToMono | None = None
        self._position_s = 0.0
        self._bad_packets = 0
        self._broken_by: str | None = None

    @property
    def damage(self) -> str | None:
        """What could not be decoded so far."""
        parts = []
        if self._bad_packets:
            parts.append(f"{self._bad_packets} packets cannot be decoded")
        if self._broken_by:
            parts.append(self._broken_by)
        return ", ".join(parts) or None

    def blocks(self) -> Iterator[Samples]:
        import av

        for frame in self._frames():
            if frame.time is not None:
                gap_s = frame.time - self._origin_s - self._position_s
                if _GAP_S < gap_s < _MAX_GAP_S:
                    yield from self._flush()
                    self._position_s += gap_s
                    yield from _silence(round(gap_s * RATE_HZ))
            self._position_s += frame.samples / frame.sample_rate
            if self._converter is None or not self._converter.takes(frame):
                # Chained streams (web radio) may change rate and channels at a link.
                yield from self._flush()
                self._converter = _ToMono(frame)
            try:
                block = self._converter.convert(frame)
            except av.FFmpegError as error:  # more than 64 channels, for one
                count = frame.layout.nb_channels
                self._broken_by = f"{count} channels cannot be mixed: {error.strerror}"
                return
            if len(block):
                yield block
        yield from self._flush()

    def _flush(self) -> Iterator[Samples]:
        if self._converter is not None:
            block = self._converter.flush()
            self._converter = None
            if len(block):
                yield block

    def _frames(self) -> Iterator[Any]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self._broken_by = error.strerror
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self._bad_packets += 1  # as players do: the next packet is usually good


class _ToMono:
    """Frames of one rate and layout → 16 kHz mono."""

    def __init__(self, frame: Any) -> None:
        import av

        self._key = self._key_of(frame)
        # Packed: PyAV 18.1 reads beyond the planes of a planar frame of 8 channels or more.
        self._packed = av.AudioResampler(format="flt")
        self._rate = StreamResampler(frame.sample_rate)

    @staticmethod
    def _key_of(frame: Any) -> tuple[int, str, str]:
        return frame.sample_rate, frame.layout.name, frame.format.name

    def takes(self, frame: Any) -> bool:
        return self._key_of(frame) == self._key

    def convert(self, frame: Any) -> Samples:
        parts = [
            part.to_ndarray().reshape(-1, part.layout.nb_channels)
            for part in self._packed.resample(frame)
        ]
        if not parts:
            return np.empty(0, np.float32)
        channels = np.concatenate(parts)
        if not np.isfinite(channels).all():  # a file of floats may hold anything
            channels = np.where(np.isfinite(channels), channels, np.float32(0))
        np.clip(channels, -1e6, 1e6, out=channels)  # so that neither sum nor filter overflows
        mono: Samples = channels.mean(axis=1, dtype=np.float32)
        return self._rate.feed(mono).clip(-1.0, 1.0)

    def flush(self) -> Samples:
        return self._rate.finish().clip(-1.0, 1.0)


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[tuple[Any, Any]]:
    import av

    try:
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise MediaError(path, "the file is empty")
        # A name such as `concat:x|y` or a playlist inside must not reach beyond local files.
        # Titles in some old code page are none of our business; PyAV 19 never minds them.
        lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **lenient)
    except av.InvalidDataError as error:
        raise MediaError(path, "not a media file that FFmpeg knows, or its head is lost") from error
    except (av.FFmpegError, OSError) as error:
        raise MediaError(path, _lower(error.strerror or str(error))) from error
    with container:
        if not container.streams.audio:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
            raise MediaError(path, f"no audio stream, only {kinds}")
        yield container, container.streams.audio[0]


def _silence(samples: int) -> Iterator[Samples]:
    """Zeros in small blocks: an hour in one would be 230 MB."""
    for begin in range(0, samples, RATE_HZ):
        yield np.zeros(min(RATE_HZ, samples - begin), np.float32)


def _announced_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1_000_000)
    return None


def _cut_wav(path: Path) -> str | None:
    """Say how much of a WAV file is missing: FFmpeg takes the file's size for the truth."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    (size,) = struct.unpack("<I", head[4:8])
    missing = int(size) + 8 - path.stat().st_size
    if missing <= 1 or size >= 0x7FFFF000:  # writers to a pipe put the largest number there
        return None
    return f"the last {missing} bytes are missing"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
