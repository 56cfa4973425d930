"""The bus behind CURVE: real sockets, and the questions that ZeroMQ asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from socket import create_connection, create_server
from typing import Any

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from voiced.daemon import curve
from voiced.daemon.bus import Bus
from voiced.daemon.curve import AllowList, CurveServer, KeyFileError, KeyPair, _Peer, serve_curve
from voiced.daemon.guarded import FileRefused
from voiced.daemon.metrics import Metrics
from voiced.daemon.replay import ReplayServer
from voiced.daemon.watched import Watched
from voiced.daemon.wire import Intent, Refused, Replay, decode_answer, encode
from voiced.plugins.curve import CurveKeys

INTENT = Intent(stream="desk", segment=1, name="open", slots={}, text="open", confidence=1.0)


class Keyring:
    """A protected bus, and clients with keys of their own."""

    def __init__(self, folder: Path) -> None:
        self.key, self.allowed = folder / "daemon.key", folder / "allowed.json"
        self.server_pair = curve.new_pair()
        curve.write_pair(self.key, self.server_pair)
        self.list = AllowList()
        curve.write_allowed(self.allowed, self.list)
        self.metrics = Metrics()
        self.curve, self.watched = serve_curve(self.key, self.allowed, metrics=self.metrics)
        self.bus = Bus("tcp://127.0.0.1:*", "tcp://127.0.0.1:0", curve=self.curve, heartbeat_s=0.02)
        self.intents: list[Intent] = []
        self.bus.on_intent = self.intents.append
        self.context = zmq.asyncio.Context()

    def allow(self, name: str, *domains: str) -> CurveKeys:
        pair = curve.new_pair()
        self.list = curve.with_key(self.list, name, pair.public, domains)
        curve.write_allowed(self.allowed, self.list)
        self.watched.refresh(is_forced=True)
        return self.keys(pair)

    def keys(self, pair: KeyPair) -> CurveKeys:
        return CurveKeys(pair.public, pair.secret, self.server_pair.public)

    def socket(self, kind: int, keys: CurveKeys | None) -> zmq.asyncio.Socket:
        socket = self.context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IMMEDIATE, 1)
        if keys is not None:
            keys.apply(socket)
        if kind == zmq.SUB:
            socket.subscribe(b"")
            socket.connect(self.bus.endpoint)
        else:
            socket.connect(str(self.bus.ingest_endpoint))
        return socket

    async def refusals(self, count: int) -> None:
        while self.metrics.value("voiced_access_denied_total", code="curve") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def run(folder: Path, scenario: Callable[[Keyring], Any]) -> None:
    async def main() -> None:
        ring = Keyring(folder)
        ring.bus.open()
        running = asyncio.create_task(ring.bus.run())
        try:
            async with asyncio.timeout(30):
                await scenario(ring)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            ring.bus.close()
            ring.context.destroy(linger=0)

    asyncio.run(main())


def test_an_allowed_key_hears_the_bus_and_hands_in_intents(tmp_path: Path) -> None:
    async def scenario(ring: Keyring) -> None:
        both = ring.allow("car", "subscribe", "ingest")
        subscriber = ring.socket(zmq.SUB, both)
        topic, _ = await subscriber.recv_multipart()
        assert topic == b"heartbeat/-"
        plugin = ring.socket(zmq.PUSH, both)
        await plugin.send(encode(INTENT))
        while not ring.intents:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert ring.intents[0].name == "open"
        for socket in (subscriber, plugin):
            socket.close()

    run(tmp_path, scenario)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_a_key_that_is_removed_loses_its_open_connections_and_others_do_not(
    tmp_path: Path,
) -> None:
    async def scenario(ring: Keyring) -> None:
        gone = ring.allow("gone", "subscribe", "ingest")
        stays = ring.allow("stays", "subscribe", "ingest")
        listeners = [ring.socket(zmq.SUB, keys) for keys in (gone, stays)]
        plugins = [ring.socket(zmq.PUSH, keys) for keys in (gone, stays)]
        for listener in listeners:
            await listener.recv_multipart()
        for plugin in plugins:
            await plugin.send(encode(INTENT))
        await until(lambda: len(ring.intents) == 2)
        kept = listeners[1].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        lost = listeners[0].get_monitor_socket(zmq.EVENT_DISCONNECTED)

        ring.list = curve.without_key(ring.list, "gone")
        curve.write_allowed(ring.allowed, ring.list)
        ring.watched.refresh(is_forced=True)
        await lost.recv_multipart()
        await ring.refusals(1)  # it tries again
        ring.intents.clear()
        with contextlib.suppress(zmq.ZMQError):
            await plugins[0].send(encode(INTENT), zmq.NOBLOCK)
        await until(
            lambda: ring.metrics.value("voiced_connections_cut_total", reason="key_removed") == 2
        )
        await plugins[1].send(encode(INTENT))
        await until(lambda: ring.intents)
        assert len(ring.intents) == 1
        while await listeners[0].poll(0):
            await listeners[0].recv_multipart()
        for _ in range(5):
            await listeners[1].recv_multipart()
        assert not await listeners[0].poll(0)
        assert not await kept.poll(0)
        for socket in (*listeners, *plugins, kept, lost):
            socket.close()

    run(tmp_path, scenario)


def test_only_connections_of_the_socket_are_cut() -> None:
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with create_connection(("127.0.0.1", port)) as client, server.accept()[0] as mine:
            inode = os.fstat(mine.fileno()).st_ino
            for endpoint, number in (
                (f"tcp://127.0.0.1:{port + 1}", inode),  # another's, by the same descriptor
                (f"tcp://127.0.0.1:{port}", inode + 1),  # a later one, by the same descriptor
            ):
                assert not _Peer("a", mine.fileno(), endpoint, number).cut()
            client.sendall(b"x")
            assert mine.recv(1) == b"x"
            assert _Peer("a", mine.fileno(), f"tcp://127.0.0.1:{port}", inode).cut()
            assert client.recv(1) == b""


def test_a_key_that_is_made_anew_under_an_old_name_does_not_keep_the_old_one(
    tmp_path: Path,
) -> None:
    async def scenario(ring: Keyring) -> None:
        old = ring.socket(zmq.SUB, ring.allow("car", "subscribe"))
        await old.recv_multipart()
        lost = old.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        ring.list = curve.without_key(ring.list, "car")
        new = ring.socket(zmq.SUB, ring.allow("car", "subscribe"))
        await lost.recv_multipart()
        await new.recv_multipart()
        for socket in (old, new, lost):
            socket.close()

    run(tmp_path, scenario)


def test_a_stranger_a_plain_socket_and_a_key_for_something_else_hear_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(ring: Keyring) -> None:
        good = ring.socket(zmq.SUB, ring.allow("screen", "subscribe"))
        await good.recv_multipart()
        stranger = ring.socket(zmq.SUB, ring.keys(curve.new_pair()))
        plain = ring.socket(zmq.SUB, None)
        await ring.refusals(1)
        wrong_use = ring.socket(zmq.PUSH, ring.allow("screen-2", "subscribe"))
        await ring.refusals(2)
        with pytest.raises(zmq.Again):
            await wrong_use.send(encode(INTENT), zmq.NOBLOCK)
        for _ in range(20):
            await good.recv_multipart()
        for socket in (stranger, plain):
            assert not await socket.poll(0)
        for socket in (good, stranger, plain, wrong_use):
            socket.close()

    with caplog.at_level(logging.WARNING):
        run(tmp_path, scenario)
    assert "bus connection refused domain=subscribe public_key=" in caplog.text


def test_the_replay_socket_is_open_to_those_alone_who_may_hear_the_bus(tmp_path: Path) -> None:
    async def scenario(ring: Keyring) -> None:
        server = ReplayServer(
            "tcp://127.0.0.1:*", tmp_path / "none.db", unwritten=lambda: 0, metrics=ring.metrics
        )
        server.open(ring.bus.context, ring.curve)
        serving = asyncio.create_task(server.run())

        def asker(keys: CurveKeys) -> zmq.asyncio.Socket:
            socket = ring.context.socket(zmq.DEALER)
            socket.set(zmq.LINGER, 0)
            keys.apply(socket)
            socket.connect(server.endpoint)
            return socket

        stranger = asker(ring.allow("button", "ingest"))
        await stranger.send(encode(Replay(v=1, id=1)))
        await ring.refusals(1)
        good = asker(ring.allow("screen", "subscribe"))
        await good.send(encode(Replay(v=1, id=2)))
        answer = decode_answer(await good.recv())
        assert (answer.id, isinstance(answer, Refused)) == (2, True)  # there is no journal here
        assert not await stranger.poll(0)
        ring.list = curve.without_key(ring.list, "screen")
        curve.write_allowed(ring.allowed, ring.list)
        ring.watched.refresh(is_forced=True)
        await good.send(encode(Replay(v=1, id=3)))
        await ring.refusals(2)  # it was cut, and tries again
        assert not await good.poll(0)
        for socket in (stranger, good):
            socket.close()
        serving.cancel()
        await asyncio.wait({serving})
        server.close()

    run(tmp_path, scenario)


def test_a_wrong_daemon_is_not_believed(tmp_path: Path) -> None:
    """A client that expects another daemon's key gets nothing from this one."""

    async def scenario(ring: Keyring) -> None:
        good = ring.allow("car", "subscribe")
        fooled = CurveKeys(good.public, good.secret, curve.new_pair().public)
        subscriber = ring.socket(zmq.SUB, fooled)
        right = ring.socket(zmq.SUB, good)
        for _ in range(20):
            await right.recv_multipart()
        assert not await subscriber.poll(0)
        for socket in (subscriber, right):
            socket.close()

    run(tmp_path, scenario)


def test_a_key_taken_off_the_list_cannot_come_back(tmp_path: Path) -> None:
    async def scenario(ring: Keyring) -> None:
        keys = ring.allow("car", "subscribe")
        subscriber = ring.socket(zmq.SUB, keys)
        await subscriber.recv_multipart()
        subscriber.close()
        curve.write_allowed(ring.allowed, curve.without_key(ring.list, "car"))
        assert ring.watched.refresh(is_forced=True)
        again = ring.socket(zmq.SUB, keys)
        await ring.refusals(1)
        assert not await again.poll(0)
        again.close()

    run(tmp_path, scenario)


def asked(*parts: bytes) -> bytes:
    """The status that a question gets from a handler that allows one key."""
    pair = KEY
    watched = Watched((), lambda: AllowList((curve.AllowedKey("car", pair.public, ("ingest",)),)))
    return CurveServer(pair, watched).answer(list(parts))[2]


KEY = curve.new_pair()
RAW = z85.decode(KEY.public)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((b"1.0", b"1", b"ingest", b"127.0.0.1", b"", b"CURVE", RAW), b"200"),
        ((b"1.0", b"1", b"subscribe", b"127.0.0.1", b"", b"CURVE", RAW), b"400"),
        ((b"1.0", b"1", b"", b"127.0.0.1", b"", b"CURVE", RAW), b"400"),
        ((b"1.0", b"1", b"ingest", b"127.0.0.1", b"", b"NULL"), b"400"),
        ((b"1.0", b"1", b"ingest", b"127.0.0.1", b"", b"PLAIN", RAW, RAW), b"400"),
        ((b"2.0", b"1", b"ingest", b"127.0.0.1", b"", b"CURVE", RAW), b"400"),
        ((), b"400"),
    ],
)
def test_what_the_handler_answers(parts: tuple[bytes, ...], status: bytes) -> None:
    assert asked(*parts) == status


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_no_question_breaks_the_handler_or_opens_it(parts: list[bytes]) -> None:
    assert asked(*parts) == b"400"


def test_files_of_keys_are_guarded_and_a_secret_is_in_no_text(tmp_path: Path) -> None:
    path = tmp_path / "daemon.key"
    pair = curve.new_pair()
    curve.write_pair(path, pair)
    assert path.stat().st_mode & 0o777 == 0o600
    assert curve.read_pair(path) == pair
    assert pair.secret not in repr(pair)
    assert pair.secret not in repr(CurveKeys(pair.public, pair.secret, pair.public))
    with pytest.raises(KeyFileError, match="is there already"):
        curve.write_pair(path, pair)
    path.chmod(0o604)
    with pytest.raises(FileRefused, match="has mode 604, expected at most 640"):
        curve.read_pair(path)
    path.chmod(0o600)
    for wrong in (b"", b"{}", path.read_bytes().replace(b"secret", b"s"), b"\xff"):
        path.write_bytes(wrong)
        with pytest.raises(FileRefused, match="is no file of `voiced keys curve new`") as caught:
            curve.read_pair(path)
        assert pair.secret not in str(caught.value)


def test_an_allow_list_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "allowed.json"
    key = f'{{"name":"a","public":"{KEY.public}","domains":["ingest"]}}'
    for text in ("", "{}", f'{{"version":1,"keys":[{key},{key}]}}', '{"version":1,"keys":[1]}'):
        path.write_text(text)
        with pytest.raises(FileRefused, match="is no list of allowed keys"):
            curve.read_allowed(path)
