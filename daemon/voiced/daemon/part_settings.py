"""What each part of the daemon is told, made from the settings."""

from __future__ import annotations

from pathlib import Path

from voiced.audio.front import FrontSettings
from voiced.daemon.endpoint import EndpointPolicy
from voiced.daemon.engine_settings import engine_options
from voiced.daemon.options import ServerOptions
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.settings import Settings, VadSettings
from voiced.engine import store
from voiced.engine.types import FAKE_MODEL, EngineConfig


def engine_config(settings: Settings) -> EngineConfig:
    """What the engine's worker is started with.

    Options of the fake model may follow its name: `fake:delay_ms=80,once=FILE`.

    Raises:
        BundleError: The model is not here.
    """
    engine = settings.engine
    name, _, fake_options = engine.model.partition(":")
    is_fake = name == FAKE_MODEL
    return EngineConfig(
        bundle_dir=FAKE_MODEL if is_fake else str(store.resolve(engine.model)),
        backend=engine.backend,
        threads=engine.threads,
        languages=engine.languages,
        beam=engine.beam,
        n_best=engine.n_best,
        max_batch=engine.max_batch,
        max_queued_finals=engine.max_queued_finals,
        hang_timeout_s=engine.hang_timeout_s,
        max_segment_s=settings.vad.max_segment_s,
        options=dict(each.split("=", 1) for each in fake_options.split(",") if "=" in each)
        if is_fake
        else engine_options(engine, engine.backend),
    )


def front_defaults(vad: VadSettings) -> FrontSettings:
    """Endpointing of streams that ask for none."""
    return FrontSettings(
        end_ms=vad.end_ms,
        pad_ms=vad.pad_ms,
        min_speech_ms=vad.min_speech_ms,
        max_segment_s=vad.max_segment_s,
        grown_ms=vad.partial_hop_ms,
        first_grown_ms=vad.first_partial_ms,
        eager_ms=vad.eager_ms,
    )


def session_settings(settings: Settings) -> SessionSettings:
    """How streams are carried that ask for nothing else."""
    return SessionSettings(
        language=settings.engine.language,
        max_backlog_s=settings.limits.max_backlog_s,
        final_timeout_s=settings.limits.final_timeout_s,
        partial_timeout_s=settings.limits.partial_timeout_s,
        publishes_eager=settings.bus.eager,
        endpoint=EndpointPolicy(
            end_ms=settings.vad.end_ms,
            min_ms=settings.vad.end_min_ms,
            sentence_ms=settings.vad.end_sentence_ms,
            max_ms=settings.vad.end_max_ms,
        ),
        include_text=settings.logging.include_text,
        hotwords_score=settings.engine.hotwords_score,
    )


def server_options(settings: Settings) -> ServerOptions:
    """Where the server listens and what it takes."""
    server = settings.server
    return ServerOptions(
        host=server.host,
        port=server.port,
        unix_socket=None if server.unix_socket is None else Path(server.unix_socket),
        unix_socket_mode=int(server.unix_socket_mode, 8),
        max_message_bytes=server.max_message_bytes,
        start_timeout_s=server.start_timeout_s,
        idle_timeout_s=server.idle_timeout_s,
        allowed_origins=server.allowed_origins,
        open_timeout_s=server.handshake_timeout_s,
        keepalive_s=server.keepalive_s,
        resume_s=settings.limits.resume_s,
        max_connections_per_address=settings.limits.client.connections,
        # Health checks, and clients on their way in and out, beside the streams.
        max_connections=server.max_streams + 64,
    )
