"""`voiced stream`: play a file to a daemon at the speed of speech and print what comes back."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from voiced.daemon import wire
from voiced.daemon.commands.pipes import ends_with_its_reader
from voiced.daemon.commands.talk import FRAME_BYTES, Tally, Target, Timeline, talk


def stream(
    file: Path,
    *,
    url: str,
    language: str | None = None,
    partials: bool = True,
    as_json: bool = False,
    token: str | None = None,
    authority: Path | None = None,
) -> int:
    """Stream a file in real time; return 0, or 1 when a segment failed.

    Raises:
        MediaError: The file cannot be decoded.
        ServerUnreachable: Nobody listens at `url`, or it is no voiced server.
        StreamEndedEarly: The server refused the stream or closed it.
    """
    pcm = _read_pcm(file)
    start = wire.Start(
        v=1, audio=wire.AudioParams(), language=language, partials=partials, resume=True
    )
    frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]

    with ends_with_its_reader():

        def show(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> None:
            line = (
                to_json(message, received_ms, lag_ms)
                if as_json
                else to_text(message, received_ms, lag_ms)
            )
            print(line, flush=True)

        tally, timeline = asyncio.run(talk(Target(url, token, authority), start, frames, show))
        summary = _summary(tally, timeline)
        print(json.dumps({"type": "summary", **summary}) if as_json else _summary_line(summary))
    return 1 if tally.failed else 0


def to_text(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> str:
    """Write one event for people: when it came, how long after its audio, what it says."""
    at = f"{received_ms / 1000:8.2f} s"
    after = "" if lag_ms is None else f"  +{lag_ms:.0f} ms"
    match message:
        case wire.Ready():
            return f"{at}  ready  stream {message.stream}, {message.bundle}"
        case wire.SpeechStarted():
            return f"{at}  speech started  #{message.segment} at {message.start_ms / 1000:.2f} s"
        case wire.Partial():
            stable = message.text[: message.stable_chars]
            rest = message.text[message.stable_chars :]
            return f"{at}  partial  #{message.segment}.{message.revision}{after}  {stable}|{rest}"
        case wire.SpeechEnded():
            end = f"at {message.end_ms / 1000:.2f} s ({message.reason})"
            return f"{at}  speech ended  #{message.segment} {end}"
        case wire.Final():
            span = f"{message.start_ms / 1000:.2f}-{message.end_ms / 1000:.2f} s"
            return (
                f"{at}  final  #{message.segment}{after} (server {message.latency_ms} ms)  {span}  "
                f"{message.language} {message.confidence:.2f}  {message.text}"
            )
        case wire.Failed():
            return f"{at}  failed  #{message.segment}  {message.code}: {message.message}"
        case wire.AudioGap():
            span = f"{message.start_ms / 1000:.2f}-{message.end_ms / 1000:.2f} s"
            return f"{at}  audio lost  {span}"
        case wire.Ended():
            lost = f", {message.lost_ms} ms lost" if message.lost_ms else ""
            return (
                f"{at}  ended  {message.audio_ms / 1000:.2f} s, {message.segments} segments{lost}"
            )
        case _:
            return f"{at}  {wire.encode(message).decode()}"


def to_json(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> str:
    """Write the message as it came, with `received_ms` and, where it has one, `lag_ms`."""
    body = json.loads(wire.encode(message)) | {"received_ms": round(received_ms, 1)}
    if lag_ms is not None:
        body["lag_ms"] = round(lag_ms, 1)
    return json.dumps(body, ensure_ascii=False)


def _summary(tally: Tally, timeline: Timeline) -> dict[str, float | int | None]:
    late_ms = timeline.late_ms()
    return {
        "audio_s": round(tally.ended.audio_ms / 1000, 2) if tally.ended else None,
        "finals": tally.finals,
        "failed": tally.failed,
        "lag_p50_ms": _percentile(tally.lags_ms, 50),
        "lag_p95_ms": _percentile(tally.lags_ms, 95),
        "late_p50_ms": _percentile(late_ms, 50),
        "late_max_ms": round(max(late_ms), 1) if late_ms else None,
    }


def _summary_line(summary: dict[str, float | int | None]) -> str:
    return (
        f"{summary['audio_s']} s of audio, {summary['finals']} finals, {summary['failed']} failed; "
        f"audio sent -> final p50 {summary['lag_p50_ms']} ms, p95 {summary['lag_p95_ms']} ms; "
        f"frames sent late p50 {summary['late_p50_ms']} ms, max {summary['late_max_ms']} ms"
    )


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 1)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)


def _read_pcm(file: Path) -> bytes:
    """Decode to 16-bit PCM before the clock starts, so that decoding delays nothing."""
    from voiced.audio.pcm import float_to_int16
    from voiced.audio.sources.media import decode_file

    return b"".join(float_to_int16(block).astype("<i2").tobytes() for block in decode_file(file))
