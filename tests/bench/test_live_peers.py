"""Other servers under live streams: the common part, and each server's own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Placed, Spoken
from voiced.bench.errors import PeerUnavailable
from voiced.bench.hearing import Judge
from voiced.bench.live_peers import Heard, PeerRun, comparison
from voiced.bench.live_servers import (
    Moonshine,
    MoonshineLine,
    WyomingLine,
    _ended,
    _final,
    _started,
    event_bytes,
    free_port,
    moonshine_messages,
    read_event,
    require,
    server,
)
from voiced.bench.load import LoadPlan
from voiced.bench.moonshine_server import event
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.report import plain_table
from voiced.daemon import wire


def spoken(clip: str = "a", language: str = "en") -> Spoken:
    pcm = np.full(RATE_HZ // 2, 5_000, np.int16)
    return Spoken(clip, language, "turn on the lamp", pcm, 0, len(pcm))


class EchoLine:
    """Writes the right text when an utterance has been heard."""

    def __init__(self, *, is_deaf: bool = False) -> None:
        self._said: list[Placed] = []
        self._position = 0
        self._is_deaf = is_deaf
        self._heard: asyncio.Queue[Heard | None] = asyncio.Queue()

    def say(self, placed: Placed) -> None:
        self._said.append(placed)

    async def send(self, block: bytes) -> None:
        self._position += len(block) // 2
        now_s = asyncio.get_running_loop().time()
        while self._said and self._said[0].speech_end <= self._position:
            placed = self._said.pop(0)
            number, start, end = placed.number + 1, placed.speech_start, placed.speech_end
            text = "" if self._is_deaf else "Turn on the lamp."
            for message in (
                _started(number, start),
                _ended(number, start, end),
                _final(number, start, end, text, "en"),
            ):
                self._heard.put_nowait((message, now_s))

    async def finish(self) -> None:
        self._heard.put_nowait(None)

    async def heard(self) -> AsyncIterator[Heard]:
        while (item := await self._heard.get()) is not None:
            yield item


class EchoPeer:
    name = "echo"
    wait = "nothing"

    def __init__(self, *, is_deaf: bool = False, languages: frozenset[str] | None = None) -> None:
        self._is_deaf = is_deaf
        self.languages = languages

    @contextlib.contextmanager
    def serve(self) -> Iterator[tuple[int, int]]:
        yield os.getpid(), 0

    @contextlib.asynccontextmanager
    async def line(self, port: int, language: str) -> AsyncIterator[EchoLine]:
        yield EchoLine(is_deaf=self._is_deaf)


def run(peer: EchoPeer) -> PeerRun:
    judge = Judge(builtin_normaliser(), {"a": "turn on the lamp"})
    return PeerRun(peer, LoadPlan(streams=2, seconds=4.0), {"en": [spoken()]}, judge)


def test_a_peer_is_paced_timed_and_judged_as_the_daemon_is() -> None:
    with EchoPeer().serve() as (pid, port):
        result = asyncio.run(run(EchoPeer()).run(port, lambda: [pid]))
    assert result.utterances >= 2
    assert result.fates == {"right": result.utterances}
    assert result.final_ms.count == result.on_screen_ms.count == result.utterances
    assert result.books.finals == result.utterances
    shown = plain_table(comparison([("echo", result)], {"echo": "nothing"}))
    assert "echo ends an utterance by: nothing" in shown


def test_what_a_deaf_peer_does_not_write_is_lost() -> None:
    result = asyncio.run(run(EchoPeer(is_deaf=True)).run(0, lambda: []))
    assert result.misheard == result.utterances >= 2
    assert result.final_ms.count == 0


def test_a_peer_gets_only_the_languages_that_it_knows() -> None:
    plan = LoadPlan(streams=1, seconds=1.0)
    peer = EchoPeer(languages=frozenset({"en"}))
    with pytest.raises(PeerUnavailable, match="echo knows en; the recordings are in zh"):
        PeerRun(peer, plan, {"zh": [spoken(language="zh")]}, None)


def test_lines_of_moonshine_become_messages() -> None:
    class Line:
        line_id, start_time, duration, text, is_complete = 7, 1.5, 2.0, " Hello ", False

    told = event(Line)
    assert told == {
        "line": 7,
        "start_ms": 1_500,
        "end_ms": 3_500,
        "text": "Hello",
        "is_complete": False,
    }
    known: set[int] = set()
    first = moonshine_messages(told, known)
    assert [type(message) for message in first] == [wire.SpeechStarted, wire.Partial]
    last = moonshine_messages(told | {"is_complete": True, "text": "Hello there"}, known)
    assert [type(message) for message in last] == [wire.SpeechEnded, wire.Final]
    final = last[-1]
    assert isinstance(final, wire.Final)
    assert (final.segment, final.start_ms, final.end_ms, final.text) == (
        *(7, 1_500, 3_500),
        "Hello there",
    )


def test_moonshine_gets_blocks_behind_their_length_and_its_lines_are_read() -> None:
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while size := int.from_bytes(await reader.readexactly(4), "little"):
            got.extend(await reader.readexactly(size))
        writer.write(
            b'{"line": 1, "start_ms": 0, "end_ms": 900, "text": "hi", "is_complete": true}\n'
        )
        writer.close()
        await writer.wait_closed()

    async def scenario() -> list[wire.ServerMessage]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with Moonshine().line(port, "en") as line:
                assert isinstance(line, MoonshineLine)
                await line.send(b"ab" * 100)
                await line.send(b"cd" * 100)
                await line.finish()
                return [message async for message, _ in line.heard()]

    messages = asyncio.run(scenario())
    assert bytes(got) == b"ab" * 100 + b"cd" * 100
    assert [type(message) for message in messages] == [
        *(wire.SpeechStarted, wire.SpeechEnded),
        wire.Final,
    ]


def test_a_wyoming_client_sends_an_utterance_from_its_pre_roll_to_its_hang_over() -> None:
    turns: list[tuple[str | None, int]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        language, sound = None, 0
        while (got := await read_event(reader)) is not None:
            match got["type"]:
                case "transcribe":
                    language = got["data"]["language"]
                case "audio-chunk":
                    assert got["data"] == {"rate": 16_000, "width": 2, "channels": 1}
                    sound += len(got["payload"]) // 2
                case "audio-stop":
                    turns.append((language, sound))
                    writer.write(event_bytes("transcript", {"text": f"turn {len(turns)}"}))
        writer.close()
        await writer.wait_closed()

    async def scenario() -> list[wire.ServerMessage]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            line = WyomingLine(listening.sockets[0].getsockname()[1], "zh", 1_600)
            one = spoken()
            for number in range(20):  # blocks of 0.1 s; an utterance of 0.5 s at 0.2 and 1.2 s
                if number in (2, 12):
                    line.say(Placed(number // 10, one, number * 1_600))
                await line.send(bytes(3_200))
            await line.finish()
            heard = [message async for message, _ in line.heard()]
            await line.close()
            return heard

    messages = asyncio.run(scenario())
    finals = [message for message in messages if isinstance(message, wire.Final)]
    assert [final.text for final in finals] == ["turn 1", "turn 2"]
    assert [(final.start_ms, final.end_ms) for final in finals] == [(200, 800), (1_200, 1_800)]
    assert turns == [("zh", 9_600), ("zh", 9_600)]


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with (
        pytest.raises(PeerUnavailable, match=r"ended: 1\n  \| no model here"),
        server(command, free_port(), tmp_path / "log"),
    ):
        raise AssertionError("it never listened")


def test_a_server_that_listens_runs_until_the_end_of_the_block(tmp_path: Path) -> None:
    port = free_port()
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    with server([sys.executable, "-c", code], port, tmp_path / "log") as pid:
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_peer_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(PeerUnavailable, match="nothing is not installed; install the dependency"):
        require("no_such_module_at_all", "nothing")
