"""`/v1/admin`: who gets in, what is taken, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.server_rig import Rig, serve
from tests.daemon.test_access import Keys, bearer, status_of
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedOK

from voiced.daemon.admin import Say, Switched
from voiced.daemon.errors import ModelStays


async def switch(model: str, say: Say) -> Switched:
    await say(f"building {model}")
    if model == "broken":
        raise ModelStays("backend_failed", "it is broken")
    return Switched("old@1", f"{model}@2")


async def answers(client: ClientConnection, model: str) -> list[dict[str, Any]]:
    await client.send(json.dumps({"type": "switch_model", "v": 1, "model": model}))
    return [json.loads(message) async for message in client]


def test_a_command_is_answered_while_it_is_carried_out() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client("/v1/admin") as client:
            assert await answers(client, "new") == [
                {"type": "progress", "text": "building new"},
                {"type": "switched", "before": "old@1", "bundle": "new@2"},
            ]
            assert client.close_code == 1000
        async with rig.client("/v1/admin") as client:
            assert (await answers(client, "broken"))[1:] == [
                {"type": "refused", "code": "backend_failed", "message": "it is broken"}
            ]

    serve(scenario, switch_model=switch, max_streams=1)


@pytest.mark.parametrize("model", ["../a", "/etc", "a/b", "..", "", "fake", "x" * 129, "a\n"])
def test_a_client_names_a_bundle_and_no_path(model: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client("/v1/admin") as client:
            await client.send(json.dumps({"type": "switch_model", "v": 1, "model": model}))
            assert json.loads(await client.recv())["code"] == "bad_message"
            await client.wait_closed()
            assert client.close_code == 1008

    serve(scenario, switch_model=switch)


def test_it_takes_the_scope_of_an_admin_and_no_web_page_of_elsewhere(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    admin, car = keys.add("ops", "admin"), keys.add("car", "stream")

    async def scenario(rig: Rig) -> None:
        assert (await status_of(rig.client("/v1/admin")))[0] == 401
        assert (await status_of(rig.client("/v1/admin", **bearer(car))))[0] == 403
        page = {**bearer(admin), "origin": "https://evil.example"}
        assert (await status_of(rig.client("/v1/admin", **page)))[0] == 403
        assert (await rig.get("/v1/admin", headers=f"Authorization: Bearer {admin}\r\n"))[0] == 426
        async with rig.client("/v1/admin", **bearer(admin)) as client:
            assert (await answers(client, "new"))[-1]["bundle"] == "new@2"

    serve(scenario, access=keys.access, switch_model=switch)


def test_who_says_nothing_is_let_go() -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client("/v1/admin") as client:
            await client.wait_closed()
            assert client.close_code == 1008

    serve(scenario, switch_model=switch, start_timeout_s=0.05)


def test_what_was_begun_goes_on_without_its_client() -> None:
    done: list[str] = []

    async def slowly(model: str, say: Say) -> Switched:
        await say("first")
        await connection[0].wait_closed()
        await say("nobody hears this")
        done.append(model)
        return Switched("a", "b")

    connection: list[ClientConnection] = []

    async def scenario(rig: Rig) -> None:
        async with rig.client("/v1/admin") as client:
            connection.append(client)
            await client.send('{"type": "switch_model", "v": 1, "model": "new"}')
            await client.recv()
        with pytest.raises(ConnectionClosedOK):
            await client.recv()

    serve(scenario, switch_model=slowly)
    assert done == ["new"]
