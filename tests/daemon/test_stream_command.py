from __future__ import annotations

import asyncio
import json
import socket
import threading
import wave
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from voiced.audio.errors import MediaError
from voiced.daemon import wire
from voiced.daemon.commands.stream import stream, to_text
from voiced.daemon.commands.talk import (
    FRAME_BYTES,
    FRAME_MS,
    ServerUnreachable,
    StreamEndedEarly,
    Timeline,
)

FRAMES = 5
DEADLINE_S = 20.0

Script = Callable[[ServerConnection], Awaitable[None]]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file of `FRAMES` frames, the last one cut short."""
    path = tmp_path / "recording.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(b"\x01\x00" * (FRAMES * FRAME_BYTES // 2 - 10))
    return path


@contextmanager
def server(
    script: Script,
    process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
) -> Iterator[str]:
    """Run a WebSocket server that plays `script`, on a port of its own; give its address."""
    ready = threading.Event()
    done: list[BaseException] = []
    state: dict[str, object] = {}

    async def run() -> None:
        stop = asyncio.Event()
        state["loop"], state["stop"] = asyncio.get_running_loop(), stop

        async def handle(connection: ServerConnection) -> None:
            try:
                await asyncio.wait_for(script(connection), DEADLINE_S)
            except ConnectionClosed:
                pass
            except BaseException as error:
                done.append(error)
                raise

        async with serve(handle, "127.0.0.1", 0, process_request=process_request) as running:
            state["port"] = next(iter(running.sockets)).getsockname()[1]
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        yield f"ws://127.0.0.1:{state['port']}/v1/stream"
    finally:
        loop, stop = state["loop"], state["stop"]
        assert isinstance(loop, asyncio.AbstractEventLoop)
        assert isinstance(stop, asyncio.Event)
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
    assert not done, done


async def take_until_stop(connection: ServerConnection) -> tuple[wire.Start, list[bytes]]:
    """Play the server's side up to `stop`: the start message and the audio frames."""
    start = wire.decode_client(await connection.recv())
    assert isinstance(start, wire.Start)
    await tell(connection, wire.Ready(stream="s", bundle="fake@0", rate_hz=16_000))
    frames: list[bytes] = []
    async for message in connection:
        if isinstance(message, str):
            assert isinstance(wire.decode_client(message), wire.Stop)
            break
        frames.append(message)
    return start, frames


async def tell(connection: ServerConnection, message: wire.ServerMessage) -> None:
    await connection.send(wire.encode(message).decode())


def final(segment: int = 1, text: str = "hello") -> wire.Final:
    return wire.Final(
        stream="s",
        segment=segment,
        revision=2,
        text=text,
        language="en",
        confidence=0.9,
        start_ms=0,
        end_ms=FRAME_MS,
        latency_ms=7,
    )


ENDED = wire.Ended(stream="s", audio_ms=FRAMES * FRAME_MS, segments=1)


def test_a_file_is_sent_in_frames_and_every_event_is_printed(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[wire.Start, list[bytes]]] = []

    async def script(connection: ServerConnection) -> None:
        heard.append(await take_until_stop(connection))
        await tell(connection, wire.SpeechStarted(stream="s", segment=1, start_ms=0))
        partial = wire.Partial(
            stream="s",
            segment=1,
            revision=1,
            text="hello",
            stable_chars=2,
            start_ms=0,
            end_ms=FRAME_MS,
            language="en",
        )
        await tell(connection, partial)
        ended = wire.SpeechEnded(
            stream="s", segment=1, start_ms=0, end_ms=FRAME_MS, reason="end_of_stream"
        )
        await tell(connection, ended)
        await tell(connection, final())
        await tell(connection, ENDED)

    with server(script) as url:
        assert stream(recording, url=url, language="en") == 0

    ((start, frames),) = heard
    assert (start.language, start.partials) == ("en", True)
    assert [len(frame) for frame in frames] == [FRAME_BYTES] * (FRAMES - 1) + [FRAME_BYTES - 20]
    assert b"".join(frames) == b"\x01\x00" * (FRAMES * FRAME_BYTES // 2 - 10)
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split("  ")[1].strip() for line in (each.lstrip() for each in lines[:-1])]
    assert kinds == ["ready", "speech started", "partial", "speech ended", "final", "ended"]
    assert "he|llo" in lines[2]
    assert "(server 7 ms)" in lines[4]
    assert "1 finals, 0 failed" in lines[-1]


def test_json_output_is_the_messages_and_a_summary(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(connection: ServerConnection) -> None:
        start, _ = await take_until_stop(connection)
        assert not start.partials
        await tell(connection, final(text="你好"))
        await tell(connection, ENDED)

    with server(script) as url:
        assert stream(recording, url=url, partials=False, as_json=True) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["type"] for row in rows] == ["ready", "final", "ended", "summary"]
    assert rows[1]["text"] == "你好"
    assert rows[1]["lag_ms"] >= 0
    assert rows[1]["received_ms"] >= rows[1]["lag_ms"]
    assert (rows[3]["finals"], rows[3]["audio_s"]) == (1, FRAMES * FRAME_MS / 1000)


def test_a_failed_segment_makes_the_command_fail(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(connection: ServerConnection) -> None:
        await take_until_stop(connection)
        await tell(connection, wire.Failed(stream="s", segment=1, code="deadline", message="late"))
        await tell(connection, ENDED)

    with server(script) as url:
        assert stream(recording, url=url) == 1
    assert "deadline: late" in capsys.readouterr().out


def test_a_refused_stream_is_reported_with_the_servers_reason(recording: Path) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.recv()
        refusal = wire.Error(stream="s", code="busy", message="no room", retry_after_ms=500)
        await tell(connection, refusal)

    with (
        server(script) as url,
        pytest.raises(StreamEndedEarly, match="busy: no room; try again in 500 ms"),
    ):
        stream(recording, url=url)


def test_a_server_that_leaves_in_the_middle_is_reported(recording: Path) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.recv()
        await tell(connection, wire.Ready(stream="s", bundle="fake@0", rate_hz=16_000))
        await connection.recv()
        await connection.close(1011, "out of luck")

    with (
        server(script) as url,
        pytest.raises(StreamEndedEarly, match="before `ended`: 1011 out of luck"),
    ):
        stream(recording, url=url)


def test_a_server_of_another_protocol_is_reported(recording: Path) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"welcome"}')

    with server(script) as url, pytest.raises(StreamEndedEarly, match="no message of protocol 1"):
        stream(recording, url=url)


def test_a_refusal_over_http_is_reported_with_its_status(recording: Path) -> None:
    async def script(connection: ServerConnection) -> None:
        raise AssertionError("the connection was to be refused")

    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(503, "shutting down\n")

    with (
        server(script, refuse) as url,
        pytest.raises(StreamEndedEarly, match="HTTP 503 shutting down"),
    ):
        stream(recording, url=url)


def test_nobody_at_the_address_is_reported_with_the_next_step(recording: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: connecting is refused
        taken.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/v1/stream"
        with pytest.raises(ServerUnreachable, match="start the daemon with `voiced run`"):
            stream(recording, url=url)


def test_an_address_that_is_none_is_reported(recording: Path) -> None:
    with pytest.raises(ServerUnreachable, match="not a ws:// or wss:// address"):
        stream(recording, url="http://127.0.0.1:1/")


def test_a_file_that_is_none_is_reported_before_connecting(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="missing"):
        stream(tmp_path / "missing.wav", url="ws://127.0.0.1:1/")


def test_a_late_frame_does_not_move_the_schedule() -> None:
    timeline = Timeline(start_ns=1_000_000)
    assert timeline.due_ns(0) == 1_000_000 + FRAME_MS * 1_000_000
    timeline.sent(timeline.due_ns(0) + 90_000_000)
    timeline.sent(timeline.due_ns(1) + 2_000_000)
    assert timeline.late_ms() == [90, 2]
    assert timeline.due_ns(2) == 1_000_000 + 3 * FRAME_MS * 1_000_000


def test_the_lag_counts_from_the_frame_that_held_the_last_sample() -> None:
    timeline = Timeline(start_ns=0, sent_ns=[40_000_000, 85_000_000])
    assert timeline.lag_ms(FRAME_MS, 100_000_000) == 60
    assert timeline.lag_ms(FRAME_MS + 1, 100_000_000) == 15
    assert timeline.lag_ms(10_000, 100_000_000) == 15
    assert timeline.lag_ms(0, 100_000_000) == 60
    assert Timeline(start_ns=0).lag_ms(5, 9) == 0


def test_messages_of_other_kinds_are_shown_as_they_are() -> None:
    intent = wire.Intent(
        stream="s", segment=1, name="open_window", slots={}, text="open", confidence=1.0
    )
    assert '"name":"open_window"' in to_text(intent, 10.0, None)
    lost = wire.Ended(stream="s", audio_ms=1000, segments=0, lost_ms=20)
    assert "20 ms lost" in to_text(lost, 10.0, None)
