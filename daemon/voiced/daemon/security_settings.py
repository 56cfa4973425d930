"""Settings of who may connect, and how much of the daemon one client may take."""

from __future__ import annotations

from pydantic import Field

from voiced.daemon.section import Section


class TlsSettings(Section):
    """TLS of the HTTP and WebSocket port; on where a certificate is set."""

    certificate: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file: the certificate, then those that lead to its root. "
        "Read again when it changes.",
    )
    key: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the private key; absent: in the certificate's file.",
    )


class CurveSettings(Section):
    """CURVE on the bus: encrypted, and open to known keys only."""

    key: str | None = Field(
        default=None,
        min_length=1,
        description="File with the daemon's own key, made by `voiced keys curve new`; "
        "CURVE is on where it is set.",
    )
    allowed: str | None = Field(
        default=None,
        min_length=1,
        description="File with the keys that may connect, written by `voiced keys curve allow`. "
        "Read again when it changes.",
    )
    client_key: str | None = Field(
        default=None,
        min_length=1,
        description="File with the key of `voiced listen` and `voiced plugins run`.",
    )
    server_key: str | None = Field(
        default=None,
        pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$",
        description="Public key of the daemon that these two connect to.",
    )


class ClientLimits(Section):
    """What one client may take: a token, else an address beyond this machine."""

    streams: int = Field(default=16, ge=1, le=10_000, description="Streams at once.")
    connections: int = Field(
        default=64, ge=1, le=10_000, description="TCP connections of one address at once."
    )
    requests_per_minute: float = Field(
        default=120.0,
        gt=0,
        le=1e6,
        description="HTTP requests and upgrades; more are answered with 429.",
    )
    messages_per_s: float = Field(
        default=1_000.0, gt=0, le=1e6, description="Messages; a faster client is slowed."
    )
    bytes_per_s: float = Field(
        default=4_000_000.0, gt=0, le=1e9, description="Bytes; a faster client is slowed."
    )
    audio_s_per_hour: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Seconds of audio; the stream that goes beyond is ended with `quota`. "
        "Absent: no limit.",
    )


class TotalLimits(Section):
    """What all clients may take together, those of this machine too."""

    messages_per_s: float | None = Field(
        default=None, gt=0, le=1e7, description="Messages; all are slowed. Absent: no limit."
    )
    bytes_per_s: float | None = Field(
        default=None, gt=0, le=1e10, description="Bytes; all are slowed. Absent: no limit."
    )
    audio_s_per_hour: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Seconds of audio; streams that go beyond are ended with `quota`. "
        "Absent: no limit.",
    )
