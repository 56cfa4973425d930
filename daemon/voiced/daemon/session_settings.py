"""What a client and the daemon's settings want of one stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from voiced.daemon.endpoint import EndpointPolicy
from voiced.engine.types import Hotword


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How one stream is carried."""

    wants_partials: bool = True
    language: str | None = None
    """Pinned by the client, or by the daemon's settings; None lets the engine choose."""
    max_backlog_s: float = 30.0
    """Speech closed but not answered above which `feed` waits: the source is slowed."""
    final_timeout_s: float = 60.0
    """A final later than this after its segment's end fails with `deadline`."""
    partial_timeout_s: float = 2.0
    """A partial that waited longer is not worth making."""
    wants_eager: bool = False
    """The client is offered `eager_final`."""
    publishes_eager: bool = False
    """The bus is."""
    hotwords: tuple[Hotword, ...] = ()
    """The client's own."""
    hotwords_score: float = 2.0
    """Bonus of those that the client gave none."""
    endpoint: EndpointPolicy = field(default_factory=EndpointPolicy)
    include_text: bool = False
    """Log what people said, at DEBUG."""
