"""The one list of settings: a model for each section, with defaults, bounds and units.

`docs/configuration.md` shows the same list and a test compares the two. A section may have sections
of its own (`[engine.mindspore_lite]`). Where values come from: `config.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from voiced.daemon.engine_settings import EngineSettings, LanguageCode
from voiced.daemon.journal_settings import JournalSettings
from voiced.daemon.section import Section
from voiced.daemon.security_settings import ClientLimits, CurveSettings, TlsSettings, TotalLimits

Endpoint = Annotated[str, Field(pattern=r"^(tcp://[^\s:]+:(\d+|\*)|ipc://\S+)$")]


class ServerSettings(Section):
    """The HTTP and WebSocket port."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8765, ge=0, le=65_535, description="TCP port; 0 lets the system choose."
    )
    unix_socket: str | None = Field(
        default=None,
        pattern=r"^/\S+$",
        description="Path of a Unix socket to listen on as well; absent: none.",
    )
    unix_socket_mode: str = Field(
        default="0660",
        pattern=r"^0?[0-7]{3}$",
        description="Its permissions, octal.",
    )
    max_streams: int = Field(
        default=64, ge=1, le=10_000, description="Streams at once; the next one is refused."
    )
    max_message_bytes: int = Field(
        default=262_144, ge=1_024, le=16_777_216, description="Largest WebSocket message accepted."
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Web pages (Origin headers) that may connect besides those of loopback hosts; "
        '"*" allows every page. Clients that send no Origin are always allowed.',
    )
    start_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="A connection without `start` is closed after this long.",
    )
    idle_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="A stream without audio is closed after this long.",
    )
    handshake_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="For TLS and the HTTP request to be complete.",
    )
    keepalive_s: float = Field(
        default=20.0,
        ge=3,
        le=3_600,
        description="A peer that cannot be reached for about this long is cut.",
    )
    tokens: str | None = Field(
        default=None,
        min_length=1,
        description="File of bearer tokens, written by `voiced keys token add`; where it is set, "
        "every client needs one. Read again when it changes.",
    )
    status_text: bool = Field(
        default=False,
        description="Whether `voiced status` may show what people say.",
    )
    insecure: bool = Field(
        default=False,
        description="Whether addresses beyond this machine may be listened on without TLS, "
        "tokens or CURVE.",
    )
    tls: TlsSettings = TlsSettings()


class BusSettings(Section):
    """The ZeroMQ bus."""

    endpoint: Endpoint = Field(
        default="tcp://127.0.0.1:8766", description="Where messages are published (PUB, bound)."
    )
    ingest: Endpoint = Field(
        default="tcp://127.0.0.1:8767", description="Where plugins hand in messages (PULL, bound)."
    )
    replay: Endpoint = Field(
        default="tcp://127.0.0.1:8768",
        description="Where subscribers ask for what they missed (ROUTER, bound while a journal is "
        "kept).",
    )
    eager: bool = Field(
        default=False,
        description="Whether `eager_final` and `resumed` are published: texts before it is certain "
        "that the segment ends.",
    )
    curve: CurveSettings = CurveSettings()


class VadSettings(Section):
    """Where speech begins and ends; a stream may choose its own in `start.vad`."""

    kind: Literal["cascade", "silero", "webrtc"] = Field(
        default="cascade",
        description="Detector: webrtc wakes silero (cascade), or one of them alone.",
    )
    end_ms: int = Field(default=600, ge=100, le=5_000, description="Silence that ends a segment.")
    end_min_ms: int = Field(
        default=300,
        ge=100,
        le=5_000,
        description="The same where an intent was found in the text already.",
    )
    end_sentence_ms: int = Field(
        default=600,
        ge=100,
        le=5_000,
        description="The same where the text ends in a full stop.",
    )
    end_max_ms: int = Field(
        default=900,
        ge=100,
        le=5_000,
        description="The same where the text ends in a hesitation.",
    )
    eager_ms: int = Field(
        default=200,
        ge=0,
        le=5_000,
        description="Silence after which the final is begun, before the end is certain; 0: never.",
    )
    pad_ms: int = Field(
        default=500, ge=0, le=2_000, description="Audio kept on both sides of the speech."
    )
    min_speech_ms: int = Field(
        default=200, ge=0, le=1_000, description="Segments with less speech than this are dropped."
    )
    max_segment_s: float = Field(
        default=16.0, ge=2, le=28, description="Longer speech is cut at its quietest point."
    )
    partial_hop_ms: int = Field(
        default=400, ge=100, le=10_000, description="Speech between two partial results."
    )
    first_partial_ms: int = Field(
        default=300, ge=100, le=10_000, description="Speech before the first partial result."
    )


class MicrophoneSettings(Section):
    """A local sound device as a stream like any other."""

    enabled: bool = Field(default=False, description="Whether the daemon opens the device.")
    device: str | None = Field(
        default=None,
        description="Part of the device's name, or its number; absent: the default device.",
    )
    rate_hz: int | None = Field(
        default=None,
        ge=4_000,
        le=192_000,
        description="Sample rate to open it with; absent: 16 kHz, or the device's own.",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Channels to open it with, mixed to mono; absent: 1, or all it has.",
    )
    language: LanguageCode | None = Field(
        default=None, description="Language spoken at this device; absent: `engine.language`."
    )
    stream: str = Field(
        default="microphone",
        pattern=r"^(?:[A-Za-z0-9._:-]{2,64}|[A-Za-z0-9._:])$",
        description="Name of its stream.",
    )


class LimitsSettings(Section):
    """Deadlines of the whole daemon."""

    drain_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="After SIGTERM: time to finish and publish what was heard.",
    )
    max_backlog_s: float = Field(
        default=30.0,
        ge=1,
        le=3_600,
        description="Speech of one stream closed but not answered above which its source is "
        "slowed.",
    )
    final_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3_600,
        description="A final later than this after its segment's end fails with `deadline`.",
    )
    partial_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="A partial that waited longer is not made."
    )
    busy_age_s: float = Field(
        default=3.0,
        gt=0,
        le=3_600,
        description="New streams are refused while a final has been waiting longer than this.",
    )
    resume_s: float = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="How long a resumable stream waits for a client whose connection was lost.",
    )
    ready_timeout_s: float = Field(
        default=120.0, gt=0, le=3_600, description="The engine must be warmed within this time."
    )
    client: ClientLimits = ClientLimits()
    total: TotalLimits = TotalLimits()


class TracingSettings(Section):
    """OpenTelemetry traces of segments; needs the extra `voiced[otel]`."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Where traces go (OTLP over HTTP), e.g. `http://127.0.0.1:4318/v1/traces`; "
        "absent: none are made.",
    )


class LoggingSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level written."
    )
    include_text: bool = Field(
        default=False, description="Whether debug lines may contain what people said."
    )


class Settings(Section):
    """Everything that can be configured."""

    server: ServerSettings = ServerSettings()
    bus: BusSettings = BusSettings()
    engine: EngineSettings = EngineSettings()
    vad: VadSettings = VadSettings()
    microphone: MicrophoneSettings = MicrophoneSettings()
    journal: JournalSettings = JournalSettings()
    limits: LimitsSettings = LimitsSettings()
    tracing: TracingSettings = TracingSettings()
    logging: LoggingSettings = LoggingSettings()
