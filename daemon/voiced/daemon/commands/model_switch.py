"""`voiced model switch`: a running daemon is told to recognise with another model."""

from __future__ import annotations

import asyncio

import msgspec

from voiced.daemon.admin import Refused, Switched, SwitchModel, decode_answer
from voiced.daemon.commands.talk import ServerUnreachable, Target, dial
from voiced.daemon.errors import DaemonError


class SwitchFailed(DaemonError):
    """The daemon did not change its model; `code` is the daemon's."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason

    def __str__(self) -> str:
        return f"the model was not switched: {self.reason}"


def model_switch(name: str, target: Target) -> int:
    """Ask for it, say what happens, and return 0 when it is done.

    Raises:
        ServerUnreachable: No daemon answers.
        SwitchFailed, StreamEndedEarly: It goes on with the model that it has.
    """
    done = asyncio.run(_ask(name, target))
    print(f"switched from {done.before} to {done.bundle}", flush=True)
    print(
        f"until the daemon is started again or `engine.model` is changed; "
        f'to keep it, set `engine.model = "{name}"`'
    )
    return 0


async def _ask(name: str, target: Target) -> Switched:
    from websockets.exceptions import ConnectionClosed

    async with await dial(target) as connection:
        try:
            await connection.send(msgspec.json.encode(SwitchModel(1, name)).decode())
            while True:
                answer = decode_answer(await connection.recv())
                if isinstance(answer, Switched):
                    return answer
                if isinstance(answer, Refused):
                    raise SwitchFailed(answer.code, answer.message)
                print(answer.text, flush=True)
        except ConnectionClosed as error:
            raise SwitchFailed("unreachable", f"the daemon left: {error}") from error
        except msgspec.MsgspecError as error:
            reason = f"what listens there is no voiced daemon: {error}"
            raise ServerUnreachable(target.url, reason) from error
