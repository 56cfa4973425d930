"""The replay socket, with real sockets and a real journal."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio
from tests.daemon.kept import NOW_MS, final

from voiced.daemon.errors import EndpointInUse
from voiced.daemon.journal import Journal
from voiced.daemon.metrics import Metrics
from voiced.daemon.replay import MAX_REQUEST_BYTES, ReplayServer
from voiced.daemon.wire import Page, Position, Refused, Replay, decode_answer, encode

ANY = "tcp://127.0.0.1:*"


class Asker:
    def __init__(self, endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.connect(endpoint)

    async def ask(self, request: Replay | bytes) -> Page | Refused:
        await self.socket.send(request if isinstance(request, bytes) else encode(request))
        async with asyncio.timeout(20):
            return decode_answer(await self.socket.recv())

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()


@asynccontextmanager
async def serving(path: Path, *, unwritten: int = 0) -> AsyncIterator[tuple[Asker, Metrics]]:
    metrics = Metrics()
    server = ReplayServer(ANY, path, unwritten=lambda: unwritten, metrics=metrics)
    server.open()
    task = asyncio.create_task(server.run())
    asker = Asker(server.endpoint)
    try:
        yield asker, metrics
    finally:
        asker.close()
        task.cancel()
        await asyncio.wait({task})
        server.close()


def journal(path: Path, count: int = 5) -> None:
    made = Journal(path, "e1", started_ms=NOW_MS, survives_power_cut=False)
    made.append(final(seq) for seq in range(1, count + 1))
    made.close()


def test_a_subscriber_gets_page_by_page_what_it_missed(tmp_path: Path) -> None:
    journal(tmp_path / "j.db")

    async def run() -> None:
        async with serving(tmp_path / "j.db") as (asker, metrics):
            after, got = Position("e1", 1), []
            while True:
                page = await asker.ask(Replay(v=1, id=len(got), after=after, limit=2))
                assert isinstance(page, Page)
                assert page.id == len(got)
                assert page.complete
                got += list(page.messages)
                if not page.more:
                    break
                after = Position(str(got[-1].epoch), got[-1].seq or 0)
            assert got == [final(seq).message for seq in range(2, 6)]
            until = Replay(v=1, id=9, after=Position("e1", 1), until=Position("e1", 3))
            page = await asker.ask(until)
            assert [each.seq for each in page.messages] == [2, 3]  # type: ignore[union-attr]
            since = await asker.ask(Replay(v=1, id=9, since_ms=NOW_MS + 1))
            assert since == Page(id=9, messages=(), more=False, complete=True)
            assert metrics.value("voiced_replays_total", outcome="page") == 4

    asyncio.run(run())


def test_what_is_out_and_not_written_is_no_complete_answer(tmp_path: Path) -> None:
    journal(tmp_path / "j.db")

    async def run() -> None:
        async with serving(tmp_path / "j.db", unwritten=1) as (asker, _):
            page = await asker.ask(Replay(v=1, id=1))
            assert isinstance(page, Page)
            assert not page.complete

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b'{"type":"replay","v":2,"id":1}',
        b'{"type":"replay","v":1,"id":1,"limit":0}',
        b'{"type":"replay","v":1,"id":1,"after":{"epoch":"e","seq":-1}}',
        b'{"type":"replay","v":1,"id":1,"table":"entries"}',
        b'{"type":"final"}',
        b"\xff" * 100,
    ],
)
def test_what_is_no_request_is_refused_and_the_next_is_answered(
    tmp_path: Path, data: bytes
) -> None:
    journal(tmp_path / "j.db")

    async def run() -> None:
        async with serving(tmp_path / "j.db") as (asker, _):
            refused = await asker.ask(data)
            assert isinstance(refused, Refused)
            assert refused.code == "bad_message"
            assert isinstance(await asker.ask(Replay(v=1, id=1)), Page)

    asyncio.run(run())


def test_too_long_or_too_many_parts_are_dropped(tmp_path: Path) -> None:
    journal(tmp_path / "j.db")

    async def run() -> None:
        async with serving(tmp_path / "j.db") as (asker, metrics):
            await asker.socket.send(b" " * (MAX_REQUEST_BYTES + 1))
            await asker.socket.send_multipart([b"1", b"2"])
            assert isinstance(await asker.ask(Replay(v=1, id=1)), Page)
            assert metrics.value("voiced_replays_total", outcome="bad_message") == 2

    asyncio.run(run())


@pytest.mark.parametrize("content", [None, b"no database, but long enough to look like one" * 50])
def test_a_journal_that_cannot_be_read_is_a_refusal_with_the_reason(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "j.db"
    if content is not None:
        path.write_bytes(content)

    async def run() -> None:
        async with serving(path) as (asker, _):
            refused = await asker.ask(Replay(v=1, id=3))
            assert isinstance(refused, Refused)
            assert (refused.id, refused.code) == (3, "journal_unavailable")
            assert str(path) in refused.message

    asyncio.run(run())


@pytest.mark.parametrize(
    "field",
    ['"since_ms":{}', '"after":{{"epoch":"e1","seq":{}}}', '"until":{{"epoch":"e1","seq":{}}}'],
)
@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1, -(1 << 63) - 1])
def test_a_number_beyond_the_databases_is_refused_and_ends_nothing(
    tmp_path: Path, field: str, number: int
) -> None:
    journal(tmp_path / "j.db")

    async def run() -> None:
        async with serving(tmp_path / "j.db") as (asker, _):
            refused = await asker.ask(
                b'{"type":"replay","v":1,"id":1,' + field.format(number).encode() + b"}"
            )
            assert isinstance(refused, Refused)
            assert refused.code == "bad_message"
            assert isinstance(await asker.ask(Replay(v=1, id=1)), Page)

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [b"no JSON", "text, no bytes", 7, b'{"type":"ended"}', encode(final(2).message) + b"\xff"],
)
def test_an_entry_that_is_damaged_is_left_out_and_the_page_says_that_something_is_missing(
    tmp_path: Path, body: object
) -> None:
    path = tmp_path / "j.db"
    journal(path, count=4)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE entries SET body = ? WHERE seq IN (2, 3)", (body,))

    async def run() -> None:
        async with serving(path) as (asker, _):
            page = await asker.ask(Replay(v=1, id=1, limit=1))
            assert isinstance(page, Page)
            assert ([each.seq for each in page.messages], page.more) == ([1], True)
            page = await asker.ask(Replay(v=1, id=1, after=Position("e1", 1), limit=1))
            assert isinstance(page, Page)
            assert ([each.seq for each in page.messages], page.more) == ([4], False)
            assert not page.complete

    asyncio.run(run())


def test_an_endpoint_that_is_taken_names_the_setting(tmp_path: Path) -> None:
    async def run() -> None:
        first = ReplayServer(ANY, tmp_path / "j.db", unwritten=lambda: 0, metrics=Metrics())
        first.open()
        second = ReplayServer(
            first.endpoint, tmp_path / "j.db", unwritten=lambda: 0, metrics=Metrics()
        )
        with pytest.raises(EndpointInUse, match=r"bus\.replay"):
            second.open()
        first.close()

    asyncio.run(run())


def test_a_page_is_read_as_the_wire_describes_it() -> None:
    page = Page(id=1, messages=(final(1).message,), more=False, complete=True)
    assert msgspec.json.decode(encode(page))["messages"][0]["type"] == "final"
