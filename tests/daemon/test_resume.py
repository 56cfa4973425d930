"""Streams that outlive their connections: the counts, then real sockets that break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.server_rig import WORD, Rig, first, kinds, rest, send, serve
from tests.daemon.test_access import Keys, bearer
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from voiced.daemon.commands.talk import FRAME_BYTES, Target, backoff_s, talk
from voiced.daemon.errors import ResumeRefused
from voiced.daemon.resume import History, ResumePoint
from voiced.daemon.wire import (
    AudioParams,
    Ended,
    Error,
    Final,
    Partial,
    Ready,
    Resume,
    ServerMessage,
    SpeechStarted,
    Start,
    Stop,
)

TOKEN = "t" * 22
START = Start(v=1, audio=AudioParams(), stream="desk", partials=False, resume=True)


def point(**options: Any) -> ResumePoint:
    made = ResumePoint(
        owner="", frame_bytes=2, rate_hz=16_000, resume_ms=1_000, token=TOKEN, **options
    )
    made.number(Ready(stream="desk", bundle="b", rate_hz=16_000))
    return made


def asked(received: int = 0, first_sample: int = 0, token: str = TOKEN) -> Resume:
    return Resume(v=1, stream="desk", token=token, received=received, first_sample=first_sample)


# ---- the counts --------------------------------------------------------------------------------


@dataclass
class Wire:
    """A client and a daemon with a line between them that loses its end when it is cut."""

    audio: bytes
    point: ResumePoint = field(default_factory=point)
    taken: bytearray = field(default_factory=bytearray)
    heard: list[int] = field(default_factory=list)
    at: int = 0
    to_client: list[ServerMessage] = field(default_factory=list)

    def send(self, size: int) -> None:
        """The client sends a block, and the daemon takes it."""
        block = self.audio[self.at : self.at + size]
        self.at += len(block)
        self.taken += self.point.take(block)

    def say(self, count: int) -> None:
        """The daemon sends messages; they are on their way."""
        for _ in range(count):
            segment = self.point._history.last
            message = SpeechStarted(stream="desk", segment=segment, start_ms=0)
            self.to_client.append(self.point.number(message))

    def arrive(self, count: int) -> None:
        """Some of what is on its way reaches the client."""
        for message in self.to_client[:count]:
            number = message.number or 0
            if number > (self.heard[-1] if self.heard else 0):
                self.heard.append(number)
        del self.to_client[:count]

    def cut(self, in_flight: int) -> None:
        """The line breaks: blocks that the client has sent and messages on their way are gone."""
        self.at += in_flight  # sent, and never to arrive
        self.to_client.clear()
        resumption = self.point.attach(
            asked(self.heard[-1] if self.heard else 0), owner="", stream="desk"
        )
        assert resumption.lost_frames == 0
        assert resumption.ready.next_sample is not None
        self.at = resumption.ready.next_sample * 2
        self.to_client.extend(resumption.messages)


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "say", "arrive", "cut"]), st.integers(0, 9)), max_size=60
)


@given(STEPS, st.binary(min_size=200, max_size=200))
def test_whatever_breaks_no_sample_and_no_message_is_doubled_or_lost(
    steps: list[tuple[str, int]], audio: bytes
) -> None:
    line = Wire(audio)
    line.to_client.append(line.point._history.since(0)[0])
    for name, amount in steps:
        getattr(line, name)(amount)
        assert line.audio.startswith(bytes(line.taken))
    line.cut(3)
    while line.at < len(line.audio):
        line.send(7)
    line.arrive(len(line.to_client))
    assert bytes(line.taken) == line.audio
    assert line.heard == list(range(1, line.point._history.last + 1))


def test_half_a_sample_of_a_lost_connection_is_forgotten() -> None:
    here = point()
    assert here.take(b"abc") == b"ab"
    assert here.attach(asked(), owner="", stream="desk").ready.next_sample == 1
    assert here.take(b"cd") == b"cd"


def test_what_the_client_has_not_any_more_is_a_gap() -> None:
    here = point()
    here.take(b"ab")
    resumption = here.attach(asked(first_sample=11), owner="", stream="desk")
    assert (resumption.lost_frames, resumption.ready.next_sample) == (10, 11)
    assert here.attach(asked(first_sample=3), owner="", stream="desk").lost_frames == 0


@pytest.mark.parametrize(
    ("request_", "owner", "reason"),
    [
        (asked(token="x" * 22), "", "not that of the stream"),
        (asked(), "somebody", "not that of the stream"),
        (asked(received=2), "", "message 2 was never sent"),
        (asked(first_sample=1 << 40), "", "more than a day"),
    ],
)
def test_what_cannot_go_on_is_refused(request_: Resume, owner: str, reason: str) -> None:
    with pytest.raises(ResumeRefused, match=reason):
        point().attach(request_, owner=owner, stream="desk")


def partial(segment: int, revision: int) -> Partial:
    return Partial(
        stream="desk",
        segment=segment,
        revision=revision,
        text="x" * 50,
        start_ms=0,
        end_ms=1,
        language="en",
    )


def final(segment: int) -> Final:
    return Final(
        stream="desk",
        segment=segment,
        revision=9,
        text="x",
        language="en",
        confidence=1,
        start_ms=0,
        end_ms=1,
        latency_ms=1,
    )


def test_of_partials_the_newest_is_kept_and_none_behind_the_final() -> None:
    history = History()
    for message in (partial(1, 1), partial(1, 2), partial(2, 1), final(1)):
        history.add(message)
    assert [message.number for message in history.since(0)] == [3, 4]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=80))
def test_the_history_is_bounded_and_says_what_it_forgot(said: list[tuple[bool, int]]) -> None:
    history = History(max_bytes=1_500, max_messages=8)
    for is_final, segment in said:
        history.add(final(segment) if is_final else partial(segment, 1))
        assert len(history.since(history.forgotten)) <= 8
        assert sum(kept[1] for kept in history._kept.values()) == history._bytes <= 1_500
    if history.forgotten:
        with pytest.raises(ResumeRefused, match="are not kept any more"):
            history.since(history.forgotten - 1)


def test_pauses_grow_and_are_never_alike_for_long() -> None:
    pauses = backoff_s()
    first_ten = [next(pauses) for _ in range(10)]
    for index, pause_s in enumerate(first_ten):
        most_s = min(0.1 * 2**index, 5.0)
        assert most_s / 2 <= pause_s <= most_s


# ---- real sockets ------------------------------------------------------------------------------


async def opened(client: ClientConnection, start: Start | Resume = START) -> Ready:
    await client.send(json.dumps({"type": type(start).__name__.lower()} | to_dict(start)))
    ready = await first(client)
    assert isinstance(ready, Ready), ready
    return ready


def to_dict(message: Start | Resume) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(message))


def back(ready: Ready, received: int, first_sample: int = 0) -> Resume:
    assert ready.resume_token is not None
    return Resume(
        v=1,
        stream=ready.stream,
        token=ready.resume_token,
        received=received,
        first_sample=first_sample,
    )


def test_a_client_comes_back_in_mid_word_and_the_word_is_whole() -> None:
    async def scenario(rig: Rig) -> None:
        client = await rig.client()
        ready = await opened(client)
        assert (ready.number, ready.next_sample, ready.resume_ms) == (1, 0, 60_000)
        half = len(WORD) // 2 + 1  # half a sample too much
        await client.send(WORD[:half])
        assert isinstance(await first(client), SpeechStarted)
        client.transport.abort()
        async with rig.client() as again:
            ready = await opened(again, back(ready, received=2))
            assert ready.next_sample == half // 2
            await send(again, WORD[ready.next_sample * 2 :], Stop())
            messages = await rest(again)
            assert kinds(messages) == ["SpeechEnded", "Final", "Ended"]
            assert [message.number for message in messages] == [3, 4, 5]
        async with rig.client() as whole:
            await send(whole, Start(v=1, audio=AudioParams(), partials=False), WORD, Stop())
            (expected,) = [m for m in await rest(whole) if isinstance(m, Final)]
        (found,) = [message for message in messages if isinstance(message, Final)]
        assert (found.text, found.start_ms) == (expected.text, expected.start_ms)
        assert rig.metrics.value("voiced_streams_resumed_total") == 1
        assert all(message.number is None for message in rig.bus)

    serve(scenario, resume_s=60.0)


def test_what_was_published_while_the_client_was_away_is_sent_again() -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.gate.clear()
        client = await rig.client()
        ready = await opened(client)
        await send(client, WORD, Stop())
        await first(client)
        client.transport.abort()
        rig.engine.gate.set()
        await rig.on_bus(lambda message: isinstance(message, Ended))
        async with rig.client() as again:
            await opened(again, back(ready, received=1))
            await send(again, Stop())
            assert kinds(await rest(again)) == ["SpeechStarted", "SpeechEnded", "Final", "Ended"]
            assert again.close_code == 1000

    serve(scenario, resume_s=60.0)


def test_a_connection_that_is_only_half_open_is_cut_by_the_clients_return() -> None:
    async def scenario(rig: Rig) -> None:
        half_open = await rig.client()
        ready = await opened(half_open)
        await half_open.send(WORD[:10_000])
        half_open.transport.pause_reading()
        async with rig.client() as again:
            ready = await opened(again, back(ready, received=1))
            assert ready.next_sample is not None
            with contextlib.suppress(ConnectionClosed):
                await half_open.send(b"x" * 10_000)  # must not be taken
            await send(again, WORD[ready.next_sample * 2 :], Stop())
            assert kinds(await rest(again))[-2:] == ["Final", "Ended"]
        half_open.transport.abort()
        await half_open.wait_closed()

    serve(scenario, resume_s=60.0)


def test_a_client_that_does_not_come_back_has_its_word_answered_on_the_bus() -> None:
    async def scenario(rig: Rig) -> None:
        client = await rig.client()
        ready = await opened(client)
        await client.send(WORD[: len(WORD) // 2])
        await first(client)
        client.transport.abort()
        await rig.on_bus(lambda message: isinstance(message, Ended))
        assert kinds(rig.bus)[-2:] == ["Final", "Ended"]
        async with rig.client() as late:
            await send(late, json.dumps(to_dict(back(ready, 2)) | {"type": "resume"}))
            (error,) = await rest(late)
            assert isinstance(error, Error)
            assert error.code == "resume_refused"

    serve(scenario, resume_s=0.05)


def test_a_client_that_takes_its_leave_is_not_waited_for() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await opened(client)
            await client.send(WORD[: len(WORD) // 2])
            await first(client)
        await rig.on_bus(lambda message: isinstance(message, Ended))

    serve(scenario, resume_s=3_600.0)


def test_a_violation_ends_a_resumable_stream_like_any_other() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await opened(client)
            await send(client, "rubbish")
            assert kinds(await rest(client)) == ["Error"]
        await rig.on_bus(lambda message: isinstance(message, Ended))

    serve(scenario, resume_s=3_600.0)


def test_a_client_that_falls_silent_is_cut_and_may_come_back() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            ready = await opened(client)
            await client.send(WORD[:9_600])
            assert await rest(client) == []
            assert client.close_code == 1008
        async with rig.client() as again:
            ready = await opened(again, back(ready, received=1))
            assert ready.next_sample == 4_800

    serve(scenario, resume_s=60.0, idle_timeout_s=0.1)


def test_one_who_waits_gets_in_however_full_the_daemon_is_and_nobody_else_does() -> None:
    async def scenario(rig: Rig) -> None:
        client = await rig.client()
        ready = await opened(client)
        client.transport.abort()
        await client.wait_closed()
        rig.engine.ready, rig.engine.reason = False, "being replaced"
        async with rig.client() as other:
            await send(other, json.dumps(to_dict(START) | {"type": "start", "stream": "other"}))
            (error,) = await rest(other)
            assert isinstance(error, Error)
            assert error.code == "not_ready"
        rig.engine.ready = True
        async with rig.client() as again:
            await opened(again, back(ready, received=1))

    serve(scenario, resume_s=60.0, max_streams=1)


def test_only_the_one_who_opened_a_stream_may_carry_it_on(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    mine, other = keys.add("mine", "stream"), keys.add("other", "stream")

    async def scenario(rig: Rig) -> None:
        client = await rig.client(**bearer(mine))
        ready = await opened(client)
        client.transport.abort()
        async with rig.client(**bearer(other)) as thief:
            await send(thief, json.dumps(to_dict(back(ready, 1)) | {"type": "resume"}))
            (error,) = await rest(thief)
            assert isinstance(error, Error)
            assert error.code == "resume_refused"
        async with rig.client(**bearer(mine)) as again:
            await opened(again, back(ready, received=1))
            keys.revoke("mine")
            await rig.server.expel()
            assert kinds(await rest(again)) == ["Error"]
        await rig.on_bus(lambda message: isinstance(message, Ended))

    serve(scenario, resume_s=3_600.0, access=keys.access)


def test_a_drain_ends_a_stream_that_waits_for_its_client() -> None:
    async def scenario(rig: Rig) -> None:
        client = await rig.client()
        await opened(client)
        await client.send(WORD[: len(WORD) // 2])
        await first(client)
        client.transport.abort()
        await client.wait_closed()
        await rig.server.drain(deadline_s=5)
        assert kinds(rig.bus)[-2:] == ["Final", "Ended"]

    serve(scenario, resume_s=3_600.0)


class CuttingLine:
    """A relay between clients and the server that breaks each connection after some bytes."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port, self._cuts = port, cuts
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        left = self._cuts[self.connections] if self.connections < len(self._cuts) else 1 << 60
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_counted: bool
        ) -> None:
            nonlocal left
            while data := await source.read(1_000):
                if is_counted:
                    left -= len(data)
                    if left < 0:
                        break
                sink.write(data)
                await sink.drain()
            writer.transport.abort()
            far_writer.transport.abort()

        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                pump(reader, far_writer, is_counted=True),
                pump(far_reader, writer, is_counted=False),
            )


def through(
    line_of: Callable[[Rig], CuttingLine],
    check: Callable[[list[ServerMessage], CuttingLine, Rig], Awaitable[None]],
    pcm: bytes,
) -> None:
    """Play audio with the client of `voiced stream` over a line that breaks."""

    async def scenario(rig: Rig) -> None:
        line = line_of(rig)
        async with line.listening() as port:
            frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]
            said: list[ServerMessage] = []
            await talk(
                Target(f"ws://127.0.0.1:{port}/v1/stream"),
                START,
                frames,
                lambda message, received_ms, lag_ms: said.append(message),
            )
            await check(said, line, rig)

    serve(scenario, resume_s=60.0)


def test_voiced_stream_goes_on_over_a_line_that_breaks_again_and_again(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def check(said: list[ServerMessage], line: CuttingLine, rig: Rig) -> None:
        assert line.connections == 6
        numbers = [message.number for message in said]
        assert numbers == list(range(1, len(numbers) + 1))
        assert kinds(said) == ["Ready", "SpeechStarted", "SpeechEnded", "Final", "Ended"]
        found, ended = said[-2], said[-1]
        assert isinstance(found, Final)
        assert isinstance(ended, Ended)
        assert (ended.audio_ms, ended.lost_ms) == (len(WORD) // 32, 0)
        assert rig.metrics.value("voiced_streams_resumed_total") == 5
        async with rig.client() as whole:
            await send(whole, Start(v=1, audio=AudioParams(), partials=False), WORD, Stop())
            (expected,) = [m for m in await rest(whole) if isinstance(m, Final)]
        assert (found.text, found.start_ms) == (expected.text, expected.start_ms)

    cuts = [20_000, 15_000, 3_000, 30_000, 10_000]
    with caplog.at_level(logging.INFO):
        through(lambda rig: CuttingLine(rig.server.port, cuts), check, WORD)
    assert "resuming in" in capsys.readouterr().err
    assert "stream parked stream=desk" in caplog.text
