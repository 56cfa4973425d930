"""`voiced listen`: prints what is on the bus."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import msgspec

from voiced.daemon import wire
from voiced.daemon.exit_status import EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from voiced.plugins.curve import CurveKeys
    from voiced.plugins.subscriber import BusItem


def listen(
    endpoint: str,
    types: Sequence[str] = (),
    as_json: bool = False,
    count: int | None = None,
    *,
    curve: CurveKeys | None = None,
    replay: str | None = None,
    since_ms: int | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Print bus messages as they come until Ctrl-C, or until `count` messages were printed.

    Args:
        endpoint: The daemon's PUB socket.
        types: Message types to print, e.g. `final`; empty prints all.
        as_json: One JSON object a line, as on the bus; losses as `{"type": "gap", …}`.
        curve: For a bus that is closed to others.
        count: Messages to print; losses and restarts do not count.
        replay: The daemon's ROUTER socket, for what was before.
        since_ms: Begin with the journal's last words since this Unix time.
        out: Where messages go; standard output by default.
        err: Where losses and restarts go without `as_json`; standard error by default.

    Returns:
        0, or 2 when the endpoint or a type cannot be used.
    """
    from voiced.plugins.subscriber import BusSubscriber

    out, err = out or sys.stdout, err or sys.stderr
    known = [str(each.__struct_config__.tag) for each in wire.ServerMessage.__args__]
    if unknown := [each for each in types if each not in known]:
        text = f"no such message type: {', '.join(unknown)}; known: {', '.join(known)}"
        print(f"voiced: {text}", file=err)
        return EXIT_USAGE
    try:
        subscriber = BusSubscriber(
            endpoint, [f"{each}/" for each in types], curve=curve, replay=replay, start=since_ms
        )
    except ValueError as error:
        print(f"voiced: {error}", file=err)
        return EXIT_USAGE
    with subscriber:
        left = count
        try:
            while left is None or left > 0:
                item = subscriber.receive()
                if item is None:
                    break
                is_message = isinstance(item, wire.Message)
                text = _as_json(item) if as_json else _as_text(item)
                print(text, file=out if is_message or as_json else err, flush=True)
                if left is not None and is_message:
                    left -= 1
        except (KeyboardInterrupt, BrokenPipeError):
            return EXIT_OK
    return EXIT_OK


def _as_json(item: BusItem) -> str:
    if isinstance(item, wire.Message):
        return wire.encode(item).decode()
    event = {"type": type(item).__name__.lower(), **asdict(item)}
    return msgspec.json.encode(event).decode()


def _as_text(item: BusItem) -> str:
    from voiced.plugins.subscriber import Gap, Lost, Regained

    if isinstance(item, Gap):
        return f"-- {item.count} messages were lost ({item.first} to {item.last}) --"
    if isinstance(item, Lost):
        return f"-- nothing heard for {item.silence_ms} ms: is the daemon running? --"
    if isinstance(item, Regained):
        return f"-- heard again after {item.silence_ms} ms --"
    if not isinstance(item, wire.Message):
        return "-- the daemon was started anew --"
    fields = msgspec.to_builtins(item)
    for envelope in ("type", "v", "stream", "epoch", "seq", "wall_ms"):
        fields.pop(envelope, None)
    body = "  ".join(f"{key}={value}" for key, value in fields.items())
    return f"{wire.topic(item).decode():<24} {body}".rstrip()
