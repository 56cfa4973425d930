"""The TCP port: HTTP and WebSocket with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.server_rig import START, WORD, Rig, first, kinds, rest, send, serve, started
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from voiced.audio.errors import VadUnavailable
from voiced.audio.frames import AudioFrame, SegmentEvent
from voiced.audio.front import StreamFront
from voiced.audio.intake import Intake
from voiced.daemon.errors import AddressRefused, PortInUse, SocketInUse
from voiced.daemon.listening import bind_unix
from voiced.daemon.microphone import MicrophoneState, MicrophoneStatus
from voiced.daemon.options import ServerOptions
from voiced.daemon.routes import is_allowed_origin
from voiced.daemon.server import Server
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, length_as_text, silence, tone
from voiced.daemon.wire import (
    AudioParams,
    Ended,
    Error,
    Final,
    Flush,
    SpeechEnded,
    SpeechStarted,
    Start,
    Stop,
    VadParams,
)
from voiced.engine.types import Request, Transcript

TAKEN = "voiced_audio_bytes_total"

# ---- the stream --------------------------------------------------------------------------------


def test_a_word_sent_is_a_word_answered() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, WORD, Stop())
            messages = await rest(client)
        assert kinds(messages) == ["Ready", "SpeechStarted", "SpeechEnded", "Final", "Ended"]
        assert client.close_code == 1000
        assert messages == rig.bus

    serve(scenario)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "block"),
    [(16_000, 1, 999), (8_000, 1, 1_601), (48_000, 2, 3_333), (44_100, 1, 701), (16_000, 1, 10**6)],
)
def test_any_rate_channels_and_odd_blocks_give_the_same_place(
    rate_hz: int, channels: int, block: int
) -> None:
    def sound(make: Callable[..., bytes], seconds: float) -> bytes:
        return make(seconds, rate_hz=rate_hz, channels=channels)

    audio = sound(silence, 0.6) + sound(tone, 1.0) + sound(silence, 1.4)
    start = Start(
        v=1, audio=AudioParams(rate_hz=rate_hz, channels=channels), stream="mic", partials=False
    )

    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client, start)
            for offset in range(0, len(audio), block):
                await client.send(audio[offset : offset + block])
            await send(client, Stop())
            messages = await rest(client)
        (final,) = [message for message in messages if isinstance(message, Final)]
        assert abs(final.start_ms - 100) <= 40
        assert abs(final.end_ms - 2_100) <= 40
        end = messages[-1]
        assert isinstance(end, Ended)
        assert abs(end.audio_ms - 3_000) <= 1

    serve(scenario)


def test_half_a_sample_at_the_end_is_no_error() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, WORD + b"\x01", Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario)


def test_minutes_of_silence_sent_fast_are_taken_and_say_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            for _ in range(18):
                await client.send(silence(10))
            await send(client, Stop())
            messages = await rest(client)
        assert messages == [Ended(stream=messages[0].stream, audio_ms=180_000, segments=0)]

    serve(scenario)


def test_a_client_faster_than_real_time_loses_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, *[WORD] * 20, Stop())
            messages = await rest(client)
        assert len([message for message in messages if isinstance(message, Final)]) == 20

    serve(scenario)


def test_a_client_that_is_slowed_for_long_is_not_cut() -> None:
    """Measured: with the library's ping time-out it is, as its pongs wait behind its audio."""

    async def scenario(rig: Rig) -> None:
        rig.engine.gate.clear()
        async with rig.client() as client:
            await started(client)
            sending = asyncio.create_task(send(client, *[WORD] * 150, Stop()))
            await rig.on_bus(lambda message: isinstance(message, SpeechEnded))
            done, _ = await asyncio.wait({sending}, timeout=0.5)  # ten pings
            assert not done
            rig.engine.gate.set()
            messages = await rest(client)
            await sending
        assert len([message for message in messages if isinstance(message, Final)]) == 150
        assert isinstance(messages[-1], Ended)

    serve(scenario, session=SessionSettings(max_backlog_s=1.0), ping_interval_s=0.05, max_queue=1)


def test_flush_and_cancel_reach_the_stream() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, silence(0.6) + tone(0.8), Flush(), tone(0.8))
            await send(client, '{"type":"cancel"}')
            messages = await rest(client)
        (ended,) = [message for message in messages if isinstance(message, SpeechEnded)]
        assert ended.reason == "flush"
        texts = [message.text for message in messages if isinstance(message, Final)]
        assert len(texts) == 2
        assert texts.count("") == 1
        assert client.close_code == 1000

    serve(scenario)


def test_a_connection_dropped_mid_word_is_finalised_on_the_bus() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            await send(client, silence(0.6) + tone(1.0))
            assert isinstance(await first(client), SpeechStarted)
            client.transport.abort()
            final = await rig.on_bus(lambda message: isinstance(message, Final))
            await rig.on_bus(lambda message: isinstance(message, Ended))
        assert isinstance(final, Final)
        assert final.text

    serve(scenario)


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([b"\x00\x00"], "not_started"),
        ([Stop()], "not_started"),
        (["rubbish"], "bad_message"),
        (['{"type":"start","v":9,"audio":{}}'], "unsupported_version"),
        (['{"type":"start","v":1,"audio":{},"x":1}'], "bad_message"),
        (['{"type":"start","v":1,"audio":{"encoding":"opus"}}'], "bad_message"),
        ([START, START], "already_started"),
        ([START, '{"type":"louder"}'], "bad_message"),
        ([START, " " * 100_000], "too_large"),
        ([Start(v=1, audio=AudioParams(), language="fr")], "unknown_language"),
    ],
)
def test_a_violation_is_answered_with_its_code_and_the_connection_is_closed(
    messages: list[Any], code: str
) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, *messages)
            error = (await rest(client))[-1]
        assert isinstance(error, Error)
        assert error.code == code
        assert client.close_code == 1008
        assert rig.metrics.value("voiced_client_errors_total", code=code) == 1

    serve(scenario)


def test_a_violation_mid_word_still_ends_the_segment_on_the_bus() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, silence(0.6) + tone(1.0), "rubbish")
            assert kinds(await rest(client)) == ["Ready", "SpeechStarted", "Error"]
        await rig.on_bus(lambda message: isinstance(message, Ended))
        assert kinds(rig.bus)[-4:] == ["Error", "SpeechEnded", "Final", "Ended"]

    serve(scenario)


def test_text_that_is_no_utf8_closes_the_connection() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            await client.send(b"\xff\xfe", text=True)
            await rest(client)
        assert client.close_code == 1007

    serve(scenario)


def test_a_message_of_100_mb_is_refused_from_its_header() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            frame = Frame(Opcode.BINARY, b"").serialize(mask=True)
            length = (100_000_000).to_bytes(8, "big")
            client.transport.write(frame[:1] + b"\xff" + length + bytes(4) + bytes(1_000))
            await rest(client)
        assert client.close_code == 1009
        await rig.on_bus(lambda message: isinstance(message, Ended))
        assert rig.metrics.value("voiced_client_errors_total", code="too_large") == 1

    serve(scenario)


def test_a_client_that_never_starts_is_closed() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            (error,) = await rest(client)
        assert isinstance(error, Error)
        assert error.code == "idle"

    serve(scenario, start_timeout_s=0.05)


def test_a_client_that_never_sends_audio_is_closed() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            (error,) = await rest(client)
        assert isinstance(error, Error)
        assert error.code == "idle"
        await rig.on_bus(lambda message: isinstance(message, Ended))

    serve(scenario, idle_timeout_s=0.05)


@pytest.mark.parametrize("resume", [False, True])
def test_short_blocks_are_taken_as_they_come_and_wake_no_task(
    resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    feed = StreamSession.feed

    async def counted(session: StreamSession, data: bytes) -> None:
        read.append(data)
        await feed(session, data)

    monkeypatch.setattr(StreamSession, "feed", counted)
    blocks = [WORD[at : at + 641] for at in range(0, len(WORD), 641)]

    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client, Start(v=1, audio=AudioParams(), partials=False, resume=resume))
            sent = 0
            for block in blocks:
                await client.send(block)
                sent += len(block)
                # Of a resumable stream half a sample waits for the other.
                while rig.metrics.value(TAKEN) < sent - sent % 2:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await send(client, Stop())
            messages = await rest(client)
        (final,) = [message for message in messages if isinstance(message, Final)]
        assert (final.start_ms, final.end_ms) == (100, 2_100)
        assert len(read) < len(blocks) / 10, "some are read, to set the idle time-out anew"

    serve(scenario)


def test_blocks_that_are_taken_as_they_come_keep_the_client_from_being_idle() -> None:
    limit_s = 0.5

    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            clock = asyncio.get_running_loop().time
            end_s = clock() + 3 * limit_s
            sent = 0
            while clock() < end_s:
                await client.send(silence(0.02))
                sent += 640
                while rig.metrics.value(TAKEN) < sent:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await send(client, Stop())
            assert kinds(await rest(client)) == ["Ended"]

    serve(scenario, idle_timeout_s=limit_s)


def test_a_connection_without_a_request_is_closed() -> None:
    async def scenario(rig: Rig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        writer.write(b"GET /healthz HTT")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    serve(scenario, open_timeout_s=0.05)


def test_connections_above_the_limit_are_dropped() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario, max_connections=1)


def test_connections_that_say_nothing_keep_nobody_out() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            silent = [await asyncio.open_connection("127.0.0.1", rig.server.port) for _ in range(9)]
            for _ in range(3):
                assert (await rig.get("/healthz"))[0] == 200
            with contextlib.suppress(ConnectionResetError):
                assert await silent[0][0].read() == b""  # the oldest went
            for _, writer in silent:
                writer.close()
                with contextlib.suppress(ConnectionResetError):
                    await writer.wait_closed()
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario, max_connections=4)


def test_websockets_that_never_start_keep_nobody_out() -> None:
    async def scenario(rig: Rig) -> None:
        silent = [await rig.client() for _ in range(20)]  # more than streams and connections
        async with rig.client() as client:
            await started(client)
            assert (await rig.get("/healthz"))[0] == 200
            late = await rig.client()
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
        for each in silent[:12]:  # the oldest went
            await each.wait_closed()
        assert late.state is State.OPEN
        for each in (late, *silent):
            await each.close()
        assert rig.metrics.value("voiced_connections_cut_total", reason="total") >= 12

    serve(scenario, max_streams=2, max_connections=10)


def long_text(request: Request) -> Transcript:
    answer = length_as_text(request)
    return Transcript(
        segment=answer.segment,
        revision=answer.revision,
        text="x" * 200_000,
        is_final=True,
        language="en",
        confidence=1.0,
    )


def test_a_client_that_never_reads_is_closed_and_the_bus_has_its_finals() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as reader:
            await started(reader, Start(v=1, audio=AudioParams(), stream="reader", partials=False))
            # max_queue=1 and a small receive buffer: this client soon takes nothing more.
            deaf_socket = socket.create_connection(("127.0.0.1", rig.server.port))
            deaf_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf = await rig.client(sock=deaf_socket, max_queue=1, close_timeout=0.1)
            await send(deaf, Start(v=1, audio=AudioParams(), stream="deaf", partials=False))
            sending = asyncio.create_task(send(deaf, *[WORD] * 100))
            error = await rig.on_bus(lambda message: isinstance(message, Error))
            ended = await rig.on_bus(lambda message: isinstance(message, Ended))
            await asyncio.wait({sending})
            sending.exception()
            deaf.transport.abort()
            await deaf.wait_closed()
            await send(reader, WORD, Stop())
            messages = await rest(reader)
        assert isinstance(error, Error)
        assert (error.code, error.stream) == ("slow_client", "deaf")
        finals = [message for message in rig.bus if isinstance(message, Final)]
        assert isinstance(ended, Ended)
        assert len([final for final in finals if final.stream == "deaf"]) == ended.segments
        assert kinds(messages)[-2:] == ["Final", "Ended"]

    serve(
        scenario,
        engine=ScriptedEngine(answer=long_text),
        outbox_bytes=500_000,
        send_timeout_s=30.0,
        close_timeout_s=0.2,
    )


def test_a_client_that_pings_and_never_reads_is_cut() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as reader:
            await started(reader)
            deaf = await rig.client(ping_interval=None, close_timeout=0.1)
            deaf.transport.pause_reading()
            pings = Frame(Opcode.PING, b"p" * 125).serialize(mask=True) * 1_000
            while not deaf.transport.is_closing():  # until the other side resets the connection
                if deaf.transport.get_write_buffer_size() == 0:
                    deaf.transport.write(pings)
                await asyncio.sleep(0)
            await deaf.wait_closed()
            await send(reader, WORD, Stop())
            assert kinds(await rest(reader))[-2:] == ["Final", "Ended"]

    serve(scenario, outbox_bytes=100_000)


# ---- limits ------------------------------------------------------------------------------------


def test_two_streams_with_one_name_do_not_mix() -> None:
    start = Start(v=1, audio=AudioParams(), stream="desk", partials=False)

    async def scenario(rig: Rig) -> None:
        async with rig.client() as one, rig.client() as two:
            await started(one, start)
            await send(two, start)
            (error,) = await rest(two)
            assert isinstance(error, Error)
            assert error.code == "stream_in_use"
            assert two.close_code == 1013
            await send(one, WORD, Stop())
            assert kinds(await rest(one))[-2:] == ["Final", "Ended"]

    serve(scenario)


def test_a_full_daemon_answers_503_before_the_upgrade() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            with pytest.raises(InvalidStatus) as caught:
                await rig.client()
            response = caught.value.response
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            body = json.loads(response.body or b"")
            assert body["code"] == "busy"
            assert body["retry_after_ms"] == 1_000
            assert (await rig.get("/readyz"))[0] == 200

    serve(scenario, max_streams=1)


def test_a_daemon_whose_finals_wait_too_long_answers_503_and_stays_ready() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await started(client)
            async with rig.client() as early:  # upgraded before it got behind
                rig.engine.queued_finals, rig.engine.oldest_final_age_s = 3, 4.5
                with pytest.raises(InvalidStatus) as caught:
                    await rig.client()
                body = json.loads(caught.value.response.body or b"")
                assert caught.value.response.status_code == 503
                assert (body["code"], body["retry_after_ms"]) == ("busy", 4_500)
                await send(early, Start(v=1, audio=AudioParams()))
                (error,) = await rest(early)
                assert isinstance(error, Error)
                assert (error.code, error.retry_after_ms) == ("busy", 4_500)
                assert early.close_code == 1013
            assert (await rig.get("/readyz"))[0] == 200
            rig.engine.queued_finals, rig.engine.oldest_final_age_s = 0, 0.0
            async with rig.client() as late:
                await started(late)

    serve(scenario)


def test_a_stream_is_refused_while_the_engine_is_not_ready() -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.ready, rig.engine.reason = False, "warming"
        with pytest.raises(InvalidStatus) as caught:
            await rig.client()
        assert caught.value.response.status_code == 503
        status, _, body = await rig.get("/readyz")
        assert status == 503
        assert json.loads(body)["code"] == "not_ready"
        assert "warming" in json.loads(body)["reason"]
        assert (await rig.get("/healthz"))[0] == 200

    serve(scenario)


def test_a_detector_that_is_missing_refuses_the_stream_alone() -> None:
    def open_chain(name: str, start: Start) -> tuple[Intake, StreamFront]:
        if start.vad.kind == "silero":
            raise VadUnavailable("silero vad model not found")
        return LoudnessChains()(name, start)

    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, Start(v=1, audio=AudioParams(), vad=VadParams(kind="silero")))
            (error,) = await rest(client)
            assert isinstance(error, Error)
            assert (error.code, error.message) == ("vad_unavailable", "silero vad model not found")
        async with rig.client() as client:
            await started(client)

    serve(scenario, open_chain=open_chain)


@pytest.mark.parametrize("block", [640, len(WORD)], ids=["taken_as_it_comes", "read"])
def test_a_fault_of_ours_ends_its_stream_with_the_code_alone(block: int) -> None:
    class Broken(StreamFront):
        def feed(self, frame: AudioFrame) -> list[SegmentEvent]:
            raise KeyError("secret")

    def open_chain(name: str, start: Start) -> tuple[Intake, StreamFront]:
        intake, front = LoudnessChains()(name, start)
        if start.stream == "broken":
            front.__class__ = Broken
        return intake, front

    async def scenario(rig: Rig) -> None:
        async with rig.client() as good, rig.client() as bad:
            await started(good)
            await started(bad, Start(v=1, audio=AudioParams(), stream="broken"))
            await send(bad, WORD[:block])
            error = (await rest(bad))[-1]
            assert isinstance(error, Error)
            assert error.code == "internal"
            assert "secret" not in error.message
            assert bad.close_code == 1011
            await send(good, WORD, Stop())
            assert kinds(await rest(good))[-2:] == ["Final", "Ended"]
        assert isinstance(await rig.on_bus(lambda m: isinstance(m, Ended)), Ended)

    serve(scenario, open_chain=open_chain)


def test_a_web_page_of_elsewhere_may_not_connect() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(InvalidStatus) as caught:
            await rig.client(origin="https://evil.example")
        assert caught.value.response.status_code == 403
        for origin in ("http://localhost:3000", "https://car.example"):
            async with rig.client(origin=origin) as client:
                await started(client)

    serve(scenario, allowed_origins=("https://car.example",))


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:80", True),
        ("https://car.example", True),
        ("https://car.example.evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://192.168.0.1", False),
        ("null", False),
        ("http://[", False),
    ],
)
def test_origins(origin: str, is_allowed: bool) -> None:
    assert is_allowed_origin(origin, ("https://car.example",)) is is_allowed
    assert is_allowed_origin(origin, ("*",))


# ---- HTTP --------------------------------------------------------------------------------------


def test_health_readiness_metrics_and_the_rest() -> None:
    async def scenario(rig: Rig) -> None:
        rig.metrics.watch_engine(rig.engine.load)
        status, headers, body = await rig.get("/healthz?x=1")
        assert (status, headers["content-type"], json.loads(body)) == (
            200,
            "application/json",
            {"status": "ok"},
        )
        status, _, body = await rig.get("/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "bundle": "scripted@0"})
        async with rig.client() as client:
            await send(client, START, WORD, Stop())
            await rest(client)
        status, headers, body = await rig.get("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in (
            "voiced_finals_total 1.0",
            f"voiced_audio_bytes_total {float(len(WORD))}",
            'voiced_segments_total{reason="silence"} 1.0',
            "voiced_engine_queued_finals 0.0",
            "voiced_engine_batch_size 0.0",
            'voiced_engine_dropped_total{kind="partial",reason="superseded"} 0.0',
            "voiced_final_latency_seconds_count 1.0",
            "voiced_segment_seconds_count 1.0",
        ):
            assert line in body.splitlines()
        status, _, body = await rig.get("/nothing")
        assert (status, json.loads(body)["code"]) == (404, "not_found")
        status, headers, _ = await rig.get("/metrics", method="DELETE")
        assert (status, headers["allow"]) == (405, "get")
        status, _, body = await rig.get("/v1/stream")
        assert (status, json.loads(body)["code"]) == (426, "upgrade_required")

    serve(scenario)


def test_readiness_tells_how_the_microphone_is_doing_and_does_not_depend_on_it() -> None:
    status = MicrophoneStatus(
        state=MicrophoneState.WAITING,
        code="device_not_found",
        reason="no input device",
        opened=2,
        lost_frames=480,
    )
    told = {
        "state": "waiting",
        "code": "device_not_found",
        "reason": "no input device",
        "device": None,
        "opened": 2,
        "lost_frames": 480,
        "is_silent": False,
        "drift_ppm": None,
    }

    async def scenario(rig: Rig) -> None:
        code, _, body = await rig.get("/readyz")
        ready = {"ready": True, "bundle": "scripted@0", "microphone": told}
        assert (code, json.loads(body)) == (200, ready)
        rig.engine.ready, rig.engine.reason = False, "loading"
        code, _, body = await rig.get("/readyz")
        assert (code, json.loads(body)["microphone"]) == (503, told)

    serve(scenario, microphone=lambda: status)


# ---- start and stop ----------------------------------------------------------------------------


def test_a_unix_socket_serves_like_the_port_and_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "voiced.sock"

    async def scenario(rig: Rig) -> None:
        for client in (
            rig.client(),
            unix_connect(str(path), "ws://localhost/v1/stream", compression=None),
        ):
            async with client as connection:
                await send(connection, START, WORD, Stop())
                assert [m.text for m in await rest(connection) if isinstance(m, Final)]
        with pytest.raises(SocketInUse):
            bind_unix(path, 0o600)

    serve(scenario, unix_socket=path)
    assert not path.exists()


def test_connections_to_passed_sockets_wait_until_they_are_accepted(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig()
        path = tmp_path / "voiced.sock"
        tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        unix.listen()
        server = Server(ServerOptions(port=1), rig.streams, passed=(tcp, unix))
        await server.start(accept=False)
        try:
            assert server.port == tcp.getsockname()[1]
            early = asyncio.create_task(
                unix_connect(str(path), "ws://localhost/v1/stream").__aenter__()
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)
            assert not early.done()
            await server.accept()
            async with asyncio.timeout(60):
                assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
                client = await early
                await send(client, START, Stop())
                assert isinstance((await rest(client))[-1], Ended)
            writer.close()
        finally:
            await server.drain(deadline_s=5)
            await server.close()
        assert path.exists()  # it is systemd's

    asyncio.run(run())


def test_a_port_in_use_is_named_with_the_next_step() -> None:
    async def scenario(rig: Rig) -> None:
        second = Server(ServerOptions(port=rig.server.port), rig.streams)
        with pytest.raises(
            PortInUse, match=rf"port {rig.server.port} .* set another `server.port`"
        ):
            await second.start()

    serve(scenario)


@pytest.mark.parametrize(
    ("host", "reason"), [("203.0.113.1", "cannot assign"), ("a host name", "not known")]
)
def test_an_address_of_elsewhere_is_named_with_its_setting(host: str, reason: str) -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(AddressRefused, match=f"{host} port 0: .*{reason}.*set `server.host`"):
            await Server(ServerOptions(host=host, port=0), rig.streams).start()

    serve(scenario)


def test_a_drain_sends_the_last_final_and_ended_and_closes_with_1001() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client, rig.client() as waiting:
            await started(client)
            await send(client, silence(0.6) + tone(1.0))
            assert isinstance(await first(client), SpeechStarted)
            await rig.server.drain(deadline_s=10)
            messages = await rest(client)
            assert kinds(messages) == ["SpeechEnded", "Final", "Ended"]
            assert isinstance(messages[0], SpeechEnded)
            assert messages[0].reason == "end_of_stream"
            assert client.close_code == 1001
            assert await rest(waiting) == []
            assert waiting.close_code == 1001
            with pytest.raises(InvalidStatus):
                await rig.client()
            status, _, body = await rig.get("/readyz")
            assert (status, json.loads(body)["code"]) == (503, "shutting_down")
            assert (await rig.get("/healthz"))[0] == 200

    serve(scenario)


def test_a_silent_client_does_not_hold_up_the_end() -> None:
    """Measured: the library's own close waits 10 s for it, and the final cannot be sent."""

    async def scenario(rig: Rig) -> None:
        silent = await rig.client()
        await started(silent)
        await send(silent, silence(0.6) + tone(1.0))
        await rig.on_bus(lambda message: isinstance(message, SpeechStarted))
        silent.transport.pause_reading()
        _, unsaid = await asyncio.open_connection("127.0.0.1", rig.server.port)
        async with asyncio.timeout(8):  # the library's own way: 10 s for each of the two
            await rig.server.drain(deadline_s=5)
            await rig.server.close()
        assert kinds(rig.bus)[-3:] == ["SpeechEnded", "Final", "Ended"]
        silent.transport.abort()
        await silent.wait_closed()
        unsaid.close()

    serve(scenario, close_timeout_s=0.1)


def test_a_drain_past_its_deadline_fails_what_is_left_and_tells_the_client() -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.gate.clear()
        async with rig.client() as client:
            await started(client)
            await send(client, WORD)
            await rig.on_bus(lambda message: isinstance(message, SpeechEnded))
            await rig.server.drain(deadline_s=0.05)
            assert kinds(await rest(client)) == ["SpeechStarted", "SpeechEnded", "Failed", "Ended"]

    serve(scenario)
