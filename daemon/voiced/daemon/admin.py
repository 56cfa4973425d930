"""`/v1/admin`: one command of an admin on a WebSocket, answered while it is carried out.

A WebSocket and not a plain request, because that takes longer than a handshake may, and because
web pages can be kept out of it by their origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from voiced.daemon.errors import DaemonError
from voiced.daemon.wire import WireError, shown
from voiced.engine.errors import EngineError

logger = logging.getLogger(__name__)


class SwitchModel(
    msgspec.Struct, tag_field="type", tag="switch_model", forbid_unknown_fields=True, frozen=True
):
    """Let another bundle of the daemon's store recognise from now on."""

    v: Literal[1]
    # A name and never a path; not the recogniser that tests use.
    model: Annotated[str, msgspec.Meta(pattern=r"^(?!fake\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]


class Progress(msgspec.Struct, tag_field="type", tag="progress", frozen=True):
    """What is being done, for people."""

    text: str


class Switched(msgspec.Struct, tag_field="type", tag="switched", frozen=True):
    """It is done."""

    before: str
    """The bundle of before, its name and short hash."""
    bundle: str
    """The one that recognises now."""


class Refused(msgspec.Struct, tag_field="type", tag="refused", frozen=True):
    """Nothing has changed."""

    code: str
    message: str


Answer = Progress | Switched | Refused
Say = Callable[[str], Awaitable[None]]
Switch = Callable[[str, Say], Awaitable[Switched]]
"""Changes the model; raises DaemonError or EngineError when nothing has changed."""

_decoder: msgspec.json.Decoder[SwitchModel] = msgspec.json.Decoder(SwitchModel)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def decode_command(data: bytes | str) -> SwitchModel:
    """Read what an admin asks for.

    Raises:
        WireError: Not a command.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(shown(error)) from error


def decode_answer(data: bytes | str) -> Answer:
    """Read what the daemon says; raises `msgspec.MsgspecError`."""
    return _answers.decode(data)


async def serve_admin(
    connection: ServerConnection, switch: Switch | None, *, timeout_s: float
) -> None:
    """Carry out the one command of a connection.

    A client that leaves does not stop what it has begun.

    Args:
        connection: Of somebody who may.
        switch: Changes the model; None: it cannot be changed here.
        timeout_s: For the command to come.
    """

    async def say(answer: Answer) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(msgspec.json.encode(answer).decode())

    try:
        async with asyncio.timeout(timeout_s):
            command = decode_command(await connection.recv())
    except (TimeoutError, ConnectionClosed):
        await connection.close(CloseCode.POLICY_VIOLATION, "idle")
        return
    except WireError as error:
        await say(Refused(error.code, str(error)))
        await connection.close(CloseCode.POLICY_VIOLATION, error.code)
        return
    if switch is None:
        await say(Refused("not_ready", "there is no model to be changed here"))
    else:
        try:
            await say(await switch(command.model, lambda text: say(Progress(text))))
        except (DaemonError, EngineError) as error:
            await say(Refused(error.code, str(error)))
    await connection.close()
