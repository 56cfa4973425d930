"""Wire messages, version 1: one set for WebSocket text frames and ZeroMQ bodies.

JSON objects; times are integer milliseconds of stream time; every message has `type`, `v` and
`stream`. This module imports nothing of ours: plugins and clients may use it alone.
`docs/protocol.md` describes the same messages; `tests/daemon/test_wire.py` holds them together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

VERSION = 1

EncodingName = Literal["pcm_s16le", "pcm_s32le", "pcm_f32le", "mulaw", "alaw"]
VadName = Literal["cascade", "silero", "webrtc"]
# `\Z`, not `$`, which a line feed may follow: names stand in topics and log lines. Not `-` alone,
# which stands for no stream.
StreamName = Annotated[str, msgspec.Meta(pattern=r"^(?:[A-Za-z0-9._:-]{2,64}|[A-Za-z0-9._:])\Z")]
_MAX_STORED = (1 << 63) - 1
Stored = Annotated[int, msgspec.Meta(ge=-_MAX_STORED, le=_MAX_STORED)]
"""A number that the journal's database knows; JSON has larger ones."""
Language = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,3}\Z")]
HotwordText = Annotated[str, msgspec.Meta(min_length=1, max_length=72)]


class AudioParams(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`start.audio`: what the binary frames hold."""

    encoding: EncodingName = "pcm_s16le"
    rate_hz: Annotated[int, msgspec.Meta(ge=4_000, le=192_000)] = 16_000
    channels: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1


class VadParams(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """`start.vad`: endpointing of this stream; absent fields take the daemon's settings."""

    kind: VadName | None = None
    end_ms: Annotated[int, msgspec.Meta(ge=100, le=5_000)] | None = None
    end_min_ms: Annotated[int, msgspec.Meta(ge=100, le=5_000)] | None = None
    end_sentence_ms: Annotated[int, msgspec.Meta(ge=100, le=5_000)] | None = None
    end_max_ms: Annotated[int, msgspec.Meta(ge=100, le=5_000)] | None = None
    pad_ms: Annotated[int, msgspec.Meta(ge=0, le=2_000)] | None = None
    max_segment_s: Annotated[float, msgspec.Meta(ge=2, le=28)] | None = None


# ---- client -> server --------------------------------------------------------------------------


class Start(msgspec.Struct, tag_field="type", tag="start", forbid_unknown_fields=True, frozen=True):
    """First message on a connection."""

    v: Literal[1]
    audio: AudioParams
    stream: StreamName | None = None
    language: Language | None = None
    partials: bool = True
    eager: bool = False
    """`eager_final` and `resumed` are wanted."""
    vad: VadParams = VadParams()
    hotwords: Annotated[tuple[HotwordText, ...], msgspec.Meta(max_length=100)] = ()
    """Phrases that are likely to be said in this stream, beside those of `engine.hotwords`."""
    resume: bool = False


class Resume(
    msgspec.Struct, tag_field="type", tag="resume", forbid_unknown_fields=True, frozen=True
):
    """First message on a connection that carries on a stream whose last one was lost."""

    v: Literal[1]
    stream: StreamName
    token: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{16,64}\Z")]
    received: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    first_sample: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class Flush(msgspec.Struct, tag_field="type", tag="flush", forbid_unknown_fields=True, frozen=True):
    """Close the open segment now."""

    v: Literal[1] = 1


class Stop(msgspec.Struct, tag_field="type", tag="stop", forbid_unknown_fields=True, frozen=True):
    """Finish everything, then answer `ended`."""

    v: Literal[1] = 1


class Cancel(
    msgspec.Struct, tag_field="type", tag="cancel", forbid_unknown_fields=True, frozen=True
):
    """Throw the open segment away and end; segments already closed are still answered."""

    v: Literal[1] = 1


ClientMessage = Start | Resume | Flush | Stop | Cancel


# ---- server -> client, and on the bus ----------------------------------------------------------


class Message(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Fields that every outgoing message has. `v` is always sent."""

    stream: str
    v: int = msgspec.field(default_factory=lambda: VERSION)  # a factory is never omitted
    epoch: str | None = None
    """Bus only: start id of the publisher."""
    seq: int | None = None
    """Bus only: rises by one with every message of the epoch, whatever its topic."""
    wall_ms: int | None = None
    """Bus only: when it was published, Unix time."""
    number: int | None = None
    """To the client of a resumable stream only: rises by one with every message to it."""


class Ready(Message, tag_field="type", tag="ready", frozen=True, kw_only=True, omit_defaults=True):
    """The stream is accepted; send audio."""

    bundle: str
    rate_hz: int
    resume_token: str | None = None
    resume_ms: int | None = None
    next_sample: int | None = None


class SpeechStarted(
    Message, tag_field="type", tag="speech_started", frozen=True, kw_only=True, omit_defaults=True
):
    """A segment was opened."""

    segment: int
    start_ms: int


class Partial(
    Message, tag_field="type", tag="partial", frozen=True, kw_only=True, omit_defaults=True
):
    """The text so far; the first `stable_chars` characters never change."""

    segment: int
    revision: int
    text: str
    stable_chars: int = msgspec.field(default_factory=lambda: 0)
    start_ms: int
    end_ms: int
    language: str


class EagerFinal(
    Message, tag_field="type", tag="eager_final", frozen=True, kw_only=True, omit_defaults=True
):
    """Silence began: what the final will be if nothing more is said. Only where asked for."""

    segment: int
    revision: int
    text: str
    language: str
    confidence: float
    start_ms: int
    end_ms: int


class Resumed(
    Message, tag_field="type", tag="resumed", frozen=True, kw_only=True, omit_defaults=True
):
    """Speech goes on: the segment's `eager_final` is taken back. Only where asked for."""

    segment: int


class SpeechEnded(
    Message, tag_field="type", tag="speech_ended", frozen=True, kw_only=True, omit_defaults=True
):
    """A segment was closed; its `final` or `failed` follows."""

    segment: int
    start_ms: int
    end_ms: int
    reason: Literal["silence", "max_length", "gap", "flush", "end_of_stream"]


class WordInfo(msgspec.Struct, frozen=True):
    """One word of `final.words`."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float


class Alternative(msgspec.Struct, frozen=True):
    """One entry of `final.n_best`, best first."""

    text: str
    score: float


class Final(Message, tag_field="type", tag="final", frozen=True, kw_only=True, omit_defaults=True):
    """The last word on a segment. Empty text: no speech was found in it."""

    segment: int
    revision: int
    text: str
    language: str
    confidence: float
    start_ms: Stored
    end_ms: Stored
    latency_ms: Stored
    """From the arrival of the segment's last audio to publication."""
    words: tuple[WordInfo, ...] = ()
    n_best: tuple[Alternative, ...] = ()
    recovered: str | None = None
    """Epoch in which it was said: that run of the daemon ended before it could answer."""
    withheld: bool = False
    """Out of a journal that keeps no text: there was some, it was published, it is gone."""


class Failed(
    Message, tag_field="type", tag="failed", frozen=True, kw_only=True, omit_defaults=True
):
    """The segment has no text and never will; `code` says why."""

    segment: int
    code: str
    message: str
    recovered: str | None = None
    """As in `final`."""


class AudioGap(
    Message, tag_field="type", tag="audio_gap", frozen=True, kw_only=True, omit_defaults=True
):
    """Audio was lost here; sent when there is sound again, or the stream ends."""

    start_ms: int
    end_ms: int


class Ended(Message, tag_field="type", tag="ended", frozen=True, kw_only=True, omit_defaults=True):
    """The stream is over; nothing follows."""

    audio_ms: int
    segments: int
    lost_ms: int = msgspec.field(default_factory=lambda: 0)


class Error(Message, tag_field="type", tag="error", frozen=True, kw_only=True, omit_defaults=True):
    """Something about the connection is wrong; the connection closes after it."""

    code: str
    message: str
    retry_after_ms: int | None = None


class Intent(
    Message, tag_field="type", tag="intent", frozen=True, kw_only=True, omit_defaults=True
):
    """From a plugin: what the speaker wants."""

    segment: int
    name: str
    slots: dict[str, Any]
    text: str
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)]
    plugin: str | None = None


class Heartbeat(
    Message, tag_field="type", tag="heartbeat", frozen=True, kw_only=True, omit_defaults=True
):
    """Bus only, topic `heartbeat/-`: `seq` is the last one used; a heartbeat uses none."""


ServerMessage = (
    Ready
    | SpeechStarted
    | Partial
    | EagerFinal
    | Resumed
    | SpeechEnded
    | Final
    | Failed
    | AudioGap
    | Ended
    | Error
    | Intent
    | Heartbeat
)

# ---- replay: a subscriber asks, the daemon answers out of its journal --------------------------


LastWord = Final | Failed


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place on the bus: that of the message with these numbers."""

    epoch: str
    seq: Annotated[int, msgspec.Meta(ge=0, le=_MAX_STORED)]


class Replay(
    msgspec.Struct, tag_field="type", tag="replay", frozen=True, kw_only=True, omit_defaults=True,
    forbid_unknown_fields=True,
):  # fmt: skip
    """Ask for the last words behind a position, oldest first; without one: for all."""

    v: Literal[1]
    id: int
    """Chosen by the asker; the answer carries it."""
    after: Position | None = None
    """The last message that the asker has."""
    until: Position | None = None
    """The last message of interest; absent: whatever is there."""
    since_ms: Stored | None = None
    """Unix time, instead of `after`."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 200


class Page(
    msgspec.Struct, tag_field="type", tag="page", frozen=True, kw_only=True, omit_defaults=True
):
    """Answer to `replay`: the next last words, as they were on the bus."""

    v: int = msgspec.field(default_factory=lambda: VERSION)
    id: int
    messages: tuple[LastWord, ...]
    more: bool
    """Ask again, `after` the last of these."""
    complete: bool
    """False: the journal cannot vouch that it holds all that was published in the range."""


class Refused(
    msgspec.Struct, tag_field="type", tag="refused", frozen=True, kw_only=True, omit_defaults=True
):
    """Answer to a `replay` that cannot be served."""

    v: int = msgspec.field(default_factory=lambda: VERSION)
    id: int
    code: str
    message: str


ReplayAnswer = Page | Refused

_SHOWN_CHARS = 200

_encoder = msgspec.json.Encoder()
_client_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_server_decoder: msgspec.json.Decoder[ServerMessage] = msgspec.json.Decoder(ServerMessage)
_last_word_decoder: msgspec.json.Decoder[LastWord] = msgspec.json.Decoder(LastWord)
_replay_decoder: msgspec.json.Decoder[Replay] = msgspec.json.Decoder(Replay)
_answer_decoder: msgspec.json.Decoder[ReplayAnswer] = msgspec.json.Decoder(ReplayAnswer)


class WireError(ValueError):
    """Bytes that are not a message of this protocol; the text says what was expected."""

    code = "bad_message"


def shown(error: Exception) -> str:
    """Text of a decoding error for logs and answers: it may quote what the peer sent."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def encode(message: ServerMessage | ClientMessage | Replay | ReplayAnswer) -> bytes:
    """Write one message as UTF-8 JSON."""
    return _encoder.encode(message)


def decode_client(data: bytes | str) -> ClientMessage:
    """Read what a client sent.

    Raises:
        WireError: Not JSON, unknown type, unknown field, or a value out of range.
    """
    try:
        return _client_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def decode_server(data: bytes | str) -> ServerMessage:
    """Read what a server published; unknown fields are ignored, so that newer servers work.

    Raises:
        WireError: Not JSON, unknown type, or a value of the wrong type.
    """
    try:
        return _server_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def decode_last_word(data: bytes) -> LastWord:
    """Read what a journal has kept.

    Raises:
        WireError: Not a `final` or `failed`.
    """
    try:
        return _last_word_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def decode_replay(data: bytes) -> Replay:
    """Read what a subscriber asks for.

    Raises:
        WireError: Not a `replay`.
    """
    try:
        return _replay_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def decode_answer(data: bytes) -> ReplayAnswer:
    """Read the answer to a `replay`.

    Raises:
        WireError: Not JSON, unknown type, or a value of the wrong type.
    """
    try:
        return _answer_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def topic(message: ServerMessage) -> bytes:
    """First part of a bus message: `<type>/<stream>`."""
    tag = type(message).__struct_config__.tag
    return f"{tag}/{message.stream}".encode()
