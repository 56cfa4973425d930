"""Who gets in: tokens, limits of each client, and what a crowd of connections may do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.server_rig import START, WORD, Rig, kinds, rest, send, serve, started
from websockets.exceptions import InvalidStatus
from websockets.protocol import State

from voiced.daemon import tokens
from voiced.daemon.access import BEARER, SUBPROTOCOL, Access
from voiced.daemon.connections import remote_address
from voiced.daemon.events import wanted_topics
from voiced.daemon.limits import Clients
from voiced.daemon.security_settings import ClientLimits, TotalLimits
from voiced.daemon.tokens import TokenBook
from voiced.daemon.watched import Watched
from voiced.daemon.wire import Ended, Error, Final, Ready, Stop, decode_server


class Keys:
    """A file of tokens, with a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tokens.json"
        self._book = TokenBook()
        self.now_s = 1_000.0
        tokens.write(self._path, self._book)
        self.watched = Watched((self._path,), lambda: tokens.read(self._path))
        self.access = Access(self.watched, now_s=lambda: self.now_s)

    def add(self, name: str, *scopes: str, expires_s: int | None = None) -> str:
        self._book, text = tokens.new(self._book, name, scopes, now_s=0, expires_s=expires_s)
        self._write()
        return text

    def revoke(self, name: str) -> None:
        self._book = tokens.without(self._book, name)
        self._write()

    def _write(self) -> None:
        tokens.write(self._path, self._book)
        assert self.watched.refresh(is_forced=True)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something that it counts has come."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


def bearer(token: str) -> dict[str, dict[str, str]]:
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


async def status_of(connecting: Any) -> tuple[int, dict[str, Any]]:
    """Try to connect; return the HTTP status and body of the refusal."""
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    response = caught.value.response
    return response.status_code, json.loads(response.body or b"{}")


def test_a_stream_needs_a_token_of_its_scope_before_the_upgrade(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    good, other = keys.add("car", "stream"), keys.add("screen", "subscribe")
    old = keys.add("old", "stream", expires_s=999)

    async def scenario(rig: Rig) -> None:
        assert await status_of(rig.client()) == (
            401,
            {
                "code": "unauthorized",
                "message": "found no token, expected `Authorization: Bearer …`",
            },
        )
        for token, status, code in (
            ("rubbish", 401, "unauthorized"),
            (f"vk_{'x' * 43}", 401, "unauthorized"),
            (old, 401, "token_expired"),
            (other, 403, "forbidden"),
        ):
            found, body = await status_of(rig.client(**bearer(token)))
            assert (found, body["code"]) == (status, code)
            assert token not in body["message"]
        _, headers, _ = await rig.get("/v1/stream")
        assert headers["www-authenticate"] == 'bearer realm="voiced"'
        assert rig.metrics.value("voiced_access_denied_total", code="unauthorized") == 4
        async with rig.client(**bearer(good)) as client:
            await send(client, START, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario, access=keys.access)


def test_a_browser_shows_its_token_as_a_subprotocol_that_is_never_sent_back(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    token = keys.add("page", "stream")

    async def scenario(rig: Rig) -> None:
        offered = [SUBPROTOCOL, BEARER + token]
        async with rig.client(subprotocols=offered) as client:
            assert client.subprotocol == SUBPROTOCOL
            assert client.response is not None
            assert token not in str(client.response.headers)
            await started(client)
        in_address = f"/v1/stream?token={token}&access_token={token}"
        assert (await status_of(rig.client(in_address)))[0] == 401
        two = {"additional_headers": {"Authorization": f"Bearer {token}"}, "subprotocols": offered}
        assert (await status_of(rig.client(**two)))[0] == 401

    serve(scenario, access=keys.access)


def test_metrics_need_an_admin_and_readiness_tells_others_little(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    admin, car = keys.add("ops", "admin"), keys.add("car", "stream")

    async def scenario(rig: Rig) -> None:
        for header, status in (
            ("", 401),
            (f"Authorization: Bearer {car}\r\n", 403),
            (f"Authorization: bearer {admin}\r\n", 200),
        ):
            assert (await rig.get("/metrics", headers=header))[0] == status
        assert (await rig.get("/healthz"))[0] == 200
        assert json.loads((await rig.get("/readyz"))[2]) == {"ready": True}
        told = await rig.get("/readyz", headers=f"Authorization: Bearer {admin}\r\n")
        assert json.loads(told[2]) == {"ready": True, "bundle": "scripted@0"}
        rig.engine.ready, rig.engine.reason = False, "a path of this machine"
        assert json.loads((await rig.get("/readyz"))[2]) == {"ready": False, "code": "not_ready"}

    serve(scenario, access=keys.access)


@pytest.mark.parametrize("is_expiry", [True, False])
def test_an_open_stream_ends_when_its_token_does_and_the_bus_has_its_final(
    tmp_path: Path, is_expiry: bool
) -> None:
    keys = Keys(tmp_path)
    token = keys.add("car", "stream", expires_s=2_000)

    async def scenario(rig: Rig) -> None:
        async with rig.client(**bearer(token)) as client:
            await started(client)
            await send(client, WORD)
            await rig.on_bus(lambda message: isinstance(message, Final))
            await rig.server.expel()
            if is_expiry:
                keys.now_s = 2_000.0
            else:
                keys.revoke("car")
            await rig.server.expel()
            error = (await rest(client))[-1]
        assert isinstance(error, Error)
        assert error.code == ("token_expired" if is_expiry else "unauthorized")
        assert client.close_code == 1008
        await rig.on_bus(lambda message: isinstance(message, Ended))

    serve(scenario, access=keys.access)


def test_no_token_and_no_words_are_ever_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(tmp_path)
    good, bad = keys.add("car", "stream"), f"vk_{'s3cret' * 8}"[:46]

    async def scenario(rig: Rig) -> None:
        with caplog.at_level(logging.DEBUG):
            await status_of(rig.client(**bearer(bad)))
            await status_of(rig.client(subprotocols=[SUBPROTOCOL, BEARER + bad]))
            async with rig.client(**bearer(good)) as client:
                await send(client, START, WORD, Stop())
                await rest(client)
            async with rig.client(**bearer(good)) as client:
                await send(client, START, "rubbish")
                await rest(client)
        ours = [record for record in caplog.records if record.name.startswith("voiced")]
        text = "\n".join(record.getMessage() for record in ours)
        assert "stream opened" in text
        for secret in (good, bad, good.removeprefix("vk_")[:20], "samples"):
            assert secret not in text

    serve(scenario, access=keys.access)


# ---- events ------------------------------------------------------------------------------------


def test_events_are_the_bus_for_those_with_the_scope(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    listener, speaker = keys.add("screen", "subscribe"), keys.add("car", "stream")

    async def scenario(rig: Rig) -> None:
        def events(token: str, query: str = "") -> Any:
            return rig.client(f"/v1/events{query}", **bearer(token))

        assert (await status_of(events(speaker)))[0] == 403
        async with events(listener) as everything, events(listener, "?topics=final/") as finals:
            async with rig.client(**bearer(speaker)) as client:
                await send(client, START, WORD, Stop())
                said = await rest(client)
            heard = [decode_server(await everything.recv()) for _ in said]
            assert heard == said
            assert isinstance(decode_server(await finals.recv()), Final)
            await rig.server.drain(deadline_s=5)
            assert await rest(finals) == []
            assert finals.close_code == 1001

    serve(scenario, access=keys.access)


def test_a_listener_that_never_reads_is_closed_and_costs_nobody_else_anything() -> None:
    async def scenario(rig: Rig) -> None:
        deaf = await rig.client("/v1/events", close_timeout=0.1)
        deaf.transport.pause_reading()
        message = Error(stream="-", code="x", message="y" * 10_000)
        while rig.metrics.value("voiced_connections_open") == 1:
            rig.events.tap(message)
            await asyncio.sleep(0)
        async with rig.client() as client:
            await send(client, START, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
        deaf.transport.abort()
        await deaf.wait_closed()

    serve(scenario, outbox_bytes=100_000, close_timeout_s=0.1)


@pytest.mark.parametrize(
    ("path", "topics"),
    [
        ("/v1/events", ()),
        ("/v1/events?topics=final/", (b"final/",)),
        (
            "/v1/events?topics=final/desk,partial/&topics=ended/",
            (b"final/desk", b"partial/", b"ended/"),
        ),
        ("/v1/events?topics=", ()),
        ("/v1/events?other=1", ()),
    ],
)
def test_topics_of_the_address(path: str, topics: tuple[bytes, ...]) -> None:
    assert wanted_topics(path) == topics


# ---- limits ------------------------------------------------------------------------------------


def limited(
    tmp_path: Path,
    scenario: Callable[[Rig, str], Awaitable[None]],
    *,
    total: TotalLimits | None = None,
    **limits: Any,
) -> None:
    """Serve a client whose token has these limits."""
    keys = Keys(tmp_path)
    token = keys.add("car", "stream")

    async def run(rig: Rig) -> None:
        await scenario(rig, token)

    serve(run, access=keys.access, clients=Clients(ClientLimits(**limits), total))


def test_one_client_has_no_more_streams_than_it_may(tmp_path: Path) -> None:
    async def scenario(rig: Rig, token: str) -> None:
        async with rig.client(**bearer(token)) as client:
            await started(client)
            status, body = await status_of(rig.client(**bearer(token)))
            assert (status, body["code"], body["retry_after_ms"]) == (429, "client_limit", 1_000)
        await rig.on_bus(lambda message: isinstance(message, Ended))
        await until(lambda: not rig.metrics.value("voiced_connections_open"))
        async with rig.client(**bearer(token)) as client:
            await started(client)

    limited(tmp_path, scenario, streams=1)


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets are not filled again, so that a slow machine is as much above the rate as a fast."""
    clock = types.SimpleNamespace(monotonic=lambda: 0.0)
    for module in ("stream_client", "server", "routes"):
        monkeypatch.setattr(f"voiced.daemon.{module}.time", clock)


@pytest.mark.parametrize(
    ("limit", "limits"),
    [
        ("bytes", {"bytes_per_s": 1.13e6}),
        ("messages", {"messages_per_s": 54.0}),
    ],
)
def test_a_client_above_its_rate_is_slowed_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, limits: dict[str, float]
) -> None:
    stopped_clock(monkeypatch)

    async def scenario(rig: Rig, token: str) -> None:
        async with rig.client(**bearer(token)) as client:
            audio = WORD * 24  # 2.3 MB in 111 messages; the buckets hold 2.26 and 108
            size = len(audio) // 110
            await started(client)
            for offset in range(0, len(audio), size):
                await client.send(audio[offset : offset + size])
            await send(client, Stop())
            messages = await rest(client)
        assert len([message for message in messages if isinstance(message, Final)]) == 24
        assert rig.metrics.value("voiced_limited_total", limit=limit) > 0

    limited(tmp_path, scenario, **limits)


def test_all_clients_together_are_slowed_by_the_limit_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped_clock(monkeypatch)

    async def scenario(rig: Rig) -> None:
        async with rig.client() as client:
            await send(client, START, *[WORD] * 3, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
        assert rig.metrics.value("voiced_limited_total", limit="bytes") > 0

    serve(scenario, clients=Clients(total=TotalLimits(bytes_per_s=1.4e5)))


def test_a_stream_beyond_the_seconds_of_an_hour_is_ended_with_quota(tmp_path: Path) -> None:
    async def scenario(rig: Rig, token: str) -> None:
        async with rig.client(**bearer(token)) as client:
            await send(client, START, WORD, WORD)
            messages = await rest(client)
        assert isinstance(messages[-1], Error)
        assert messages[-1].code == "quota"
        assert client.close_code == 1013
        await rig.on_bus(lambda message: isinstance(message, Ended))
        (final,) = [message for message in rig.bus if isinstance(message, Final)]
        assert final.text

    limited(tmp_path, scenario, audio_s_per_hour=5.0)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("127.0.0.1", 1), ""),
        (("::1", 1, 0, 0), ""),
        ("", ""),
        (None, ""),
        (("::ffff:127.0.0.1", 1, 0, 0), ""),
        (("10.0.0.7", 1), "10.0.0.7"),
        (("::ffff:10.0.0.7", 1, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
    ],
)
def test_who_counts_as_one_address(peer: object, address: str) -> None:
    assert remote_address(peer) == address


# ---- crowds ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def as_if_remote(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every peer counts as one of another machine: there is no second machine here."""
    monkeypatch.setattr("voiced.daemon.connections.remote_address", lambda peer: "10.0.0.7")
    monkeypatch.setattr("voiced.daemon.routes.remote_address", lambda peer: "10.0.0.7")
    yield


def test_one_address_has_no_more_connections_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        async with as_if_remote(monkeypatch), rig.client() as client:
            await started(client)
            silent = [await asyncio.open_connection("127.0.0.1", rig.server.port) for _ in range(9)]
            with contextlib.suppress(ConnectionResetError):
                assert await silent[0][0].read() == b""
            for _, writer in silent:
                writer.close()
            cut = ("voiced_connections_cut_total", "address")
            await until(lambda: rig.metrics.value(cut[0], reason=cut[1]) >= 7)
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario, max_connections_per_address=3)


def test_eighty_websockets_of_one_address_that_never_start_keep_no_other_of_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(rig: Rig) -> None:
        async with as_if_remote(monkeypatch):
            silent = [await rig.client() for _ in range(80)]
            async with rig.client() as client:
                await send(client, START, WORD, Stop())
                assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
            for each in silent[:17]:  # 64 may be there, and two came later
                await each.wait_closed()
            assert silent[-1].state is State.OPEN
            for each in silent:
                await each.close()
            assert rig.metrics.value("voiced_connections_cut_total", reason="address") == 17

    limits = ClientLimits(requests_per_minute=1_000)
    serve(scenario, clients=Clients(limits), max_connections=1_000, max_connections_per_address=64)


def test_a_client_that_never_starts_does_not_count_among_its_streams(tmp_path: Path) -> None:
    async def scenario(rig: Rig, token: str) -> None:
        async with rig.client(**bearer(token)) as silent, rig.client(**bearer(token)) as client:
            await started(client)
            await send(silent, START)
            (error,) = await rest(silent)
            assert isinstance(error, Error)
            assert (error.code, silent.close_code) == ("client_limit", 1013)
            await until(lambda: rig.metrics.value("voiced_connections_open") == 1)
            assert (await status_of(rig.client(**bearer(token))))[0] == 429
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    limited(tmp_path, scenario, streams=1)


def test_one_address_has_no_more_requests_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        async with as_if_remote(monkeypatch):
            statuses = [(await rig.get("/readyz"))[0] for _ in range(7)]
            assert statuses == [200] * 6 + [429]
            assert (await rig.get("/healthz"))[0] == 200
            assert rig.metrics.value("voiced_limited_total", limit="requests") == 1

    serve(scenario, clients=Clients(ClientLimits(requests_per_minute=6)))


def test_a_client_that_drips_a_request_or_a_frame_is_cut_and_holds_little() -> None:
    """Slow-loris: a byte now and then, for ever."""

    async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
        for offset in range(len(data)):
            writer.write(data[offset : offset + 1])
            await writer.drain()
            await asyncio.sleep(0.005)

    async def scenario(rig: Rig) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        dripping = asyncio.create_task(
            drip(writer, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 10_000)
        )
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        dripping.cancel()
        writer.close()
        async with rig.client() as client:
            await started(client)
            frame = b"\x82\xfe\xff\xff" + bytes(4) + bytes(60_000)  # 64 KiB, masked by zeros

            async def drip_frame() -> None:
                for offset in range(len(frame)):
                    client.transport.write(frame[offset : offset + 1])
                    await asyncio.sleep(0.005)

            dripping = asyncio.create_task(drip_frame())
            (error,) = await rest(client)
            dripping.cancel()
        assert isinstance(error, Error)
        assert error.code == "idle"

    serve(scenario, open_timeout_s=0.1, idle_timeout_s=0.2)


def test_a_stream_cannot_name_a_file_or_a_model() -> None:
    async def scenario(rig: Rig) -> None:
        for field in ('"model":"/etc/passwd"', '"bundle":"x"', '"path":"/"', '"stream":"../x"'):
            async with rig.client() as client:
                await send(client, '{"type":"start","v":1,"audio":{},' + field + "}")
                (error,) = await rest(client)
                assert isinstance(error, Error)
                assert error.code == "bad_message"
        for path in ("/../etc/passwd", "/v1/stream/../../x", "/%2e%2e/x", "/metrics/x"):
            assert (await rig.get(path))[0] == 404
        async with rig.client() as client:
            assert isinstance(await started(client), Ready)

    serve(scenario)
