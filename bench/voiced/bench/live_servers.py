"""The servers of `voiced bench peers --live`: how each is started and spoken to.

| server | weights | who ends an utterance |
|---|---|---|
| wyoming-faster-whisper | our bundle's, int8 | the client: here at the true end + our hang-over |
| moonshine-voice | its own tiny-en (English only), 8 bit | the library's detector |

moonshine-voice is a library; the server around it is ours (`moonshine_server.py`). Servers that
need torch (WhisperLive, RealtimeSTT, WhisperLiveKit: 6 to 8 GB installed) have no adapter here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from voiced.audio.frames import RATE_HZ, samples_to_ms
from voiced.bench.dialogue import Placed
from voiced.bench.errors import PeerUnavailable
from voiced.bench.live_peers import Heard, Line
from voiced.daemon import wire

START_TIMEOUT_S = 120.0
_PRE_ROLL = RATE_HZ // 2
"""Sound that a client sends before the speech it has heard."""

# ---- wyoming-faster-whisper --------------------------------------------------------------------


_SOUND = {"rate": RATE_HZ, "width": 2, "channels": 1}


def event_bytes(kind: str, data: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Write an event of the Wyoming protocol: a line of JSON, its data, its payload."""
    body = json.dumps(dict(data)).encode() if data else b""
    head = {"type": kind, "data_length": len(body), "payload_length": len(payload)}
    return json.dumps(head).encode() + b"\n" + body + payload


async def read_event(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Read an event: `type`, `data`, `payload`; None at the end of the connection."""
    line = await reader.readline()
    if not line:
        return None
    head = json.loads(line)
    data = dict(head.get("data") or {})
    if length := head.get("data_length"):
        data |= json.loads(await reader.readexactly(length))
    payload = await reader.readexactly(head.get("payload_length") or 0)
    return {"type": head["type"], "data": data, "payload": payload}


@dataclass(slots=True)
class _Turn:
    """One utterance on its own connection, as Home Assistant sends it."""

    number: int
    begin: int
    """Samples of the stream."""
    end: int
    answered: asyncio.Future[str]
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    at_s: float = 0.0

    @property
    def reader(self) -> asyncio.StreamReader:
        """What the server says."""
        assert self.connection is not None
        return self.connection[0]

    async def write(
        self, kind: str, data: Mapping[str, Any] | None = None, payload: bytes = b""
    ) -> None:
        """Send one event."""
        assert self.connection is not None
        writer = self.connection[1]
        writer.write(event_bytes(kind, data or {}, payload))
        await writer.drain()

    def close(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection[1].close()


class WyomingLine:
    """A client that knows where speech is, and ends each utterance after the hang-over.

    That is the best endpointing that there can be; it costs the server nothing.
    """

    def __init__(self, port: int, language: str, hang_over: int) -> None:
        self._port, self._language, self._hang_over = port, language, hang_over
        self._position = 0
        self._waiting: list[_Turn] = []
        self._open: _Turn | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._heard: asyncio.Queue[_Turn | Heard | None] = asyncio.Queue()

    def say(self, placed: Placed) -> None:
        """Note where the client will hear speech."""
        begin = max(placed.speech_start - _PRE_ROLL, placed.start)
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _Turn(placed.number + 1, begin, placed.speech_end + self._hang_over, answered)
        )

    async def send(self, block: bytes) -> None:
        """Send the block where it belongs to an utterance."""
        end = self._position + len(block) // 2
        if self._open is None and self._waiting and self._waiting[0].begin < end:
            self._open = await self._start(self._waiting.pop(0))
        if (turn := self._open) is not None:
            await turn.write("audio-chunk", _SOUND, block)
            if turn.end <= end:
                await turn.write("audio-stop")
                self._ended(turn)
        self._position = end

    async def finish(self) -> None:
        """End what is open."""
        if self._open is not None:
            await self._open.write("audio-stop")
            self._ended(self._open)
        self._heard.put_nowait(None)

    async def heard(self) -> AsyncIterator[Heard]:
        """Yield in the order of the utterances, with the times of arrival."""
        while (item := await self._heard.get()) is not None:
            if not isinstance(item, _Turn):
                yield item
                continue
            text = await item.answered
            yield _final(item.number, item.begin, item.end, text, self._language), item.at_s

    async def close(self) -> None:
        """Leave no task behind."""
        for task in self._readers:
            task.cancel()
        if self._readers:
            await asyncio.wait(self._readers)
        if self._open is not None:
            self._open.close()

    async def _start(self, turn: _Turn) -> _Turn:
        turn.connection = await asyncio.open_connection("127.0.0.1", self._port)
        await turn.write("transcribe", {"language": self._language})
        await turn.write("audio-start", _SOUND)
        self._put(_started(turn.number, turn.begin))
        return turn

    def _ended(self, turn: _Turn) -> None:
        self._put(_ended(turn.number, turn.begin, turn.end))
        self._heard.put_nowait(turn)
        self._open = None
        task = asyncio.create_task(self._read(turn))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _read(self, turn: _Turn) -> None:
        text = ""
        try:
            while (event := await read_event(turn.reader)) is not None:
                if event["type"] == "transcript":
                    text = str(event["data"]["text"])
                    break
        except OSError:
            pass  # no text: the utterance is lost
        finally:
            turn.at_s = time.monotonic()
            if not turn.answered.done():
                turn.answered.set_result(text)
            turn.close()

    def _put(self, message: wire.ServerMessage) -> None:
        self._heard.put_nowait((message, time.monotonic()))


@dataclass(frozen=True, slots=True)
class WyomingFasterWhisper:
    """wyoming-faster-whisper, the server of Home Assistant, with our weights in int8."""

    folder: Path
    """CTranslate2 folder: `systems.ct2_folder`."""
    threads: int
    beam: int
    hang_over_ms: float
    name: str = "wyoming-faster-whisper"
    wait: str = "the client, at the true end + our hang-over"
    languages: frozenset[str] | None = None

    @contextlib.contextmanager
    def serve(self) -> Iterator[tuple[int, int]]:
        """Run it on a free port."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="voiced-peer-") as folder:
            command = [
                str(Path(sys.executable).with_name("wyoming-faster-whisper")),
                *("--uri", f"tcp://127.0.0.1:{port}", "--data-dir", folder),
                *("--model", str(self.folder), "--language", "en", "--device", "cpu"),
                *("--compute-type", "int8", "--cpu-threads", str(self.threads)),
                *("--beam-size", str(self.beam), "--stt-library", "faster-whisper"),
                "--local-files-only",
            ]
            with server(command, port, Path(folder, "log")) as pid:
                yield pid, port

    @contextlib.asynccontextmanager
    async def line(self, port: int, language: str) -> AsyncIterator[Line]:
        """Open one stream; each utterance gets a connection."""
        line = WyomingLine(port, language, round(self.hang_over_ms / 1000 * RATE_HZ))
        try:
            yield line
        finally:
            await line.close()


# ---- moonshine-voice ---------------------------------------------------------------------------


class MoonshineLine:
    """A connection to `moonshine_server.py`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, placed: Placed) -> None:
        """The library finds speech itself."""

    async def send(self, block: bytes) -> None:
        """Send a length and the block."""
        self._writer.write(len(block).to_bytes(4, "little") + block)
        await self._writer.drain()

    async def finish(self) -> None:
        """A length of 0 ends the stream."""
        self._writer.write(bytes(4))
        await self._writer.drain()

    async def heard(self) -> AsyncIterator[Heard]:
        """Yield what the server writes."""
        known: set[int] = set()
        while line := await self._reader.readline():
            at_s = time.monotonic()
            for message in moonshine_messages(json.loads(line), known):
                yield message, at_s


@dataclass(frozen=True, slots=True)
class Moonshine:
    """moonshine-voice with the weights of its wheel, behind a small server of ours."""

    name: str = "moonshine-voice tiny-en"
    wait: str = "its own detector"
    languages: frozenset[str] | None = field(default_factory=lambda: frozenset({"en"}))

    @contextlib.contextmanager
    def serve(self) -> Iterator[tuple[int, int]]:
        """Run it on a free port."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="voiced-peer-") as folder:
            command = [sys.executable, "-m", "voiced.bench.moonshine_server", str(port)]
            with server(command, port, Path(folder, "log")) as pid:
                yield pid, port

    @contextlib.asynccontextmanager
    async def line(self, port: int, language: str) -> AsyncIterator[Line]:
        """Open one stream."""
        del language
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield MoonshineLine(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def moonshine_messages(event: dict[str, Any], known: set[int]) -> list[wire.ServerMessage]:
    """Turn one line of the server into messages of our protocol.

    Args:
        event: `line`, `start_ms`, `end_ms`, `text`, `is_complete`.
        known: Lines announced so far; added to.
    """
    number, start, end = event["line"], ms_to_samples(event["start_ms"]), event["end_ms"]
    messages: list[wire.ServerMessage] = []
    if number not in known:
        known.add(number)
        messages.append(_started(number, start))
    if event["is_complete"]:
        messages.append(_ended(number, start, ms_to_samples(end)))
        messages.append(_final(number, start, ms_to_samples(end), event["text"], "en"))
    elif event["text"]:
        messages.append(
            wire.Partial(
                stream="peer",
                segment=number,
                revision=1,
                text=event["text"],
                start_ms=event["start_ms"],
                end_ms=end,
                language="en",
            )
        )
    return messages


# ---- servers -----------------------------------------------------------------------------------


def require(module: str, package: str) -> None:
    """Check that a peer is installed.

    Raises:
        PeerUnavailable: It is not.
    """
    if find_spec(module) is None:
        raise PeerUnavailable(
            f"{package} is not installed; install the dependency group `peers-live`: "
            "see bench/README.md"
        )


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """Run a server until the end of the block; gives its process once it listens.

    Raises:
        PeerUnavailable: It did not listen in time, or ended; with its last lines.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
                state = "did not listen" if process.poll() is None else f"ended: {process.poll()}"
                raise PeerUnavailable(
                    "\n".join([f"{Path(command[0]).name} {state}", *(f"  | {t}" for t in tail)])
                )
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def ms_to_samples(ms: int) -> int:
    """Return samples at 16 kHz."""
    return ms * RATE_HZ // 1000


def _started(number: int, start: int) -> wire.SpeechStarted:
    return wire.SpeechStarted(stream="peer", segment=number, start_ms=samples_to_ms(start))


def _ended(number: int, start: int, end: int) -> wire.SpeechEnded:
    return wire.SpeechEnded(
        stream="peer",
        segment=number,
        start_ms=samples_to_ms(start),
        end_ms=samples_to_ms(end),
        reason="silence",
    )


def _final(number: int, start: int, end: int, text: str, language: str) -> wire.Final:
    return wire.Final(
        stream="peer",
        segment=number,
        revision=1,
        text=text,
        language=language,
        confidence=1.0,
        start_ms=samples_to_ms(start),
        end_ms=samples_to_ms(end),
        latency_ms=0,
    )
