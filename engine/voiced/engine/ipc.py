"""Messages between the engine's host and its worker process: msgpack, one message per frame.

host → worker: Submit, Promote, Cancel, Stop. worker → host: Hello, Progress, Ready, Result,
Failure, Heartbeat, Stopped. Both ends are of one installation and share one machine, so there is no
negotiation: another `PROTOCOL` is an error. Sizes are bounded, times are relative (a deadline
travels as the time left, so the two clocks need not agree).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from voiced.audio.frames import RATE_HZ, Segment
from voiced.engine import errors
from voiced.engine.errors import BundleError, EngineBusy, EngineError, NoGearError
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineLoad,
    Gear,
    Hotword,
    Request,
    RequestKind,
    Transcript,
)

T = TypeVar("T")

PROTOCOL = 3
MAX_SEGMENT_SAMPLES = 600 * RATE_HZ
"""Longest segment that crosses: far above any gear, far below what would hurt."""
MAX_HOTWORDS = 2_000
"""Of one request."""
MAX_MESSAGE_BYTES = 2 * MAX_SEGMENT_SAMPLES + MAX_HOTWORDS * 300 + 65_536
_MAX_TEXT = 4_096

Text = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
Count = Annotated[int, msgspec.Meta(ge=0)]
JobId = Count


class IpcError(ValueError):
    """Bytes that are not a message of this protocol."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker reads as one JSON line from its standard input."""

    config: EngineConfig
    endpoint: str
    """ZeroMQ endpoint that the host listens on."""
    log_level: int


# ---- host -> worker ----------------------------------------------------------------------------


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """Recognise one segment."""

    job: JobId
    segment: int
    stream: str
    start_sample: int
    kind: RequestKind
    revision: int
    pcm: Annotated[bytes, msgspec.Meta(max_length=2 * MAX_SEGMENT_SAMPLES)]
    """int16[n] at 16 kHz in the machine's byte order."""
    language: str | None = None
    time_left_ns: int | None = None
    """Until the deadline; negative when it has passed; None waits for ever."""
    hotwords: Annotated[tuple[Hotword, ...], msgspec.Meta(max_length=MAX_HOTWORDS)] = ()


class Promote(msgspec.Struct, tag="promote", frozen=True):
    """An eager job is the segment's final from now on."""

    job: JobId
    time_left_ns: int | None = None
    """Until its new deadline; None waits for ever."""


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Nobody wants the answer any more; a job that runs already is not stopped."""

    segment: int
    job: JobId | None = None
    """None: all jobs of the segment."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Answer what was accepted, then end."""


# ---- worker -> host ----------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First message: the process runs and loads the model next."""

    pid: int
    protocol: int = msgspec.field(default_factory=lambda: PROTOCOL)


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """What loading and warming are at, for people."""

    text: Text


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Loaded and warmed."""

    info: EngineInfo


class Result(msgspec.Struct, tag="result", frozen=True):
    """A job is answered."""

    job: JobId
    transcript: Transcript


class Failure(msgspec.Struct, tag="failure", frozen=True):
    """A job, or without a job the start of the worker, ended in an error."""

    job: JobId | None
    code: str
    text: Text
    facts: tuple[Any, ...] = ()
    """What the error's constructor needs where that is not the text."""


class Heartbeat(msgspec.Struct, tag="heartbeat", frozen=True):
    """Sent by a thread of its own, so it tells of a hung call instead of hanging with it."""

    running: tuple[JobId, ...]
    """Jobs of the engine call that runs now."""
    running_for_ns: Count
    """How long that call has lasted; 0 when none runs."""
    load: EngineLoad
    rss_bytes: Count
    peak_rss_bytes: Count


class Stopped(msgspec.Struct, tag="stopped", frozen=True):
    """The last message."""


FromHost = Submit | Promote | Cancel | Stop
FromWorker = Hello | Progress | Ready | Result | Failure | Heartbeat | Stopped


def _plain(value: object) -> object:
    if isinstance(value, np.generic):  # a confidence that came straight out of an array
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot cross to another process")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_launch: msgspec.json.Decoder[Launch] = msgspec.json.Decoder(Launch)


def encode(message: FromHost | FromWorker) -> bytes:
    """Write one message."""
    return _encoder.encode(message)


def decode_from_host(data: bytes) -> FromHost:
    """Read what the host sent.

    Raises:
        IpcError: Not a message of this protocol.
    """
    return _decode(_from_host.decode, data)


def decode_from_worker(data: bytes) -> FromWorker:
    """Read what a worker sent.

    Raises:
        IpcError: Not a message of this protocol.
    """
    return _decode(_from_worker.decode, data)


def encode_launch(launch: Launch) -> bytes:
    """Write the line that starts a worker, its end included."""
    return msgspec.json.encode(launch) + b"\n"


def decode_launch(line: bytes) -> Launch:
    """Read the line that starts a worker.

    Raises:
        IpcError: Not such a line.
    """
    return _decode(_launch.decode, line)


def _decode(decode: Callable[[bytes], T], data: bytes) -> T:
    if len(data) > MAX_MESSAGE_BYTES:
        raise IpcError(f"message of {len(data)} bytes, expected at most {MAX_MESSAGE_BYTES}")
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IpcError(str(error)) from error


# ---- values in and out of messages -------------------------------------------------------------


def time_left_of(deadline_ns: int | None, now_ns: int) -> int | None:
    """Make a deadline relative, so that it can cross to another clock."""
    return None if deadline_ns is None else deadline_ns - now_ns


def deadline_of(time_left_ns: int | None, now_ns: int) -> int | None:
    """Make a time that crossed a deadline on this clock."""
    return None if time_left_ns is None else now_ns + time_left_ns


def submit_of(job: int, request: Request, now_ns: int) -> Submit:
    """Pack a request; `now_ns` is the sender's monotonic time."""
    segment = request.segment
    return Submit(
        job=job,
        segment=segment.id,
        stream=segment.stream,
        start_sample=segment.start_sample,
        kind=request.kind,
        revision=request.revision,
        pcm=segment.pcm.tobytes(),
        language=segment.language,
        time_left_ns=time_left_of(request.deadline_ns, now_ns),
        hotwords=request.hotwords,
    )


def request_of(message: Submit, now_ns: int) -> Request:
    """Unpack a request; `now_ns` is the receiver's monotonic time.

    Raises:
        IpcError: The audio is not whole samples.
    """
    if len(message.pcm) % 2:
        raise IpcError(f"pcm of {len(message.pcm)} bytes, expected whole int16 samples")
    return Request(
        segment=Segment(
            id=message.segment,
            stream=message.stream,
            start_sample=message.start_sample,
            pcm=np.frombuffer(message.pcm, dtype=np.int16),
            language=message.language,
        ),
        kind=message.kind,
        revision=message.revision,
        deadline_ns=deadline_of(message.time_left_ns, now_ns),
        hotwords=message.hotwords,
    )


def failure_of(job: int | None, error: EngineError) -> Failure:
    """Pack an error with its facts, so that the host raises the same class."""
    facts: tuple[Any, ...] = ()
    if isinstance(error, BundleError):
        facts = (str(error.path), error.found, error.expected, error.next_step)
    elif isinstance(error, NoGearError):
        facts = (error.batch, error.frames, [[gear.frames, gear.batch] for gear in error.gears])
    elif isinstance(error, EngineBusy):
        facts = (error.retry_after_ms,)
    return Failure(job, error.code, str(error)[:_MAX_TEXT], facts)


def error_of(message: Failure) -> EngineError:
    """Unpack an error; a code that nobody knows gives an EngineError with that code."""
    kind, facts = _BY_CODE.get(message.code), message.facts
    if kind is BundleError:
        path, found, expected, next_step = facts
        return BundleError(Path(path), found=found, expected=expected, next_step=next_step)
    if kind is NoGearError:
        batch, frames, gears = facts
        return NoGearError(batch, frames, tuple(Gear(*gear) for gear in gears))
    if kind is EngineBusy:
        return EngineBusy(*facts)
    if kind is not None:
        return kind(message.text)
    error = EngineError(message.text)
    error.code = message.code
    return error


_BY_CODE: dict[str, type[EngineError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EngineError)
}
