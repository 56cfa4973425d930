"""What a plugin author writes against: one class with handlers, one context to act through.

A plugin runs in its own process (`runner.py`), one thread calls its handlers one after another.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import msgspec
import zmq

from voiced.daemon import wire
from voiced.plugins.curve import CurveKeys
from voiced.plugins.errors import PluginConfigError
from voiced.plugins.subscriber import Gap, Lost, Regained, Restarted

if TYPE_CHECKING:
    from pydantic import BaseModel

    Options = TypeVar("Options", bound=BaseModel)

logger = logging.getLogger(__name__)

DEFAULT_INGEST = "tcp://127.0.0.1:8767"


class IntentPublisher:
    """Sends intents to the daemon, which puts them on the bus. Owned by one thread.

    An intent that waits for a daemon would act on the car minutes later; so one that cannot be
    handed over within `timeout_s` is dropped and counted, and nothing queues without a peer.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_INGEST,
        *,
        curve: CurveKeys | None = None,
        timeout_s: float = 0.5,
    ) -> None:
        """Connect; `curve` is for a daemon that is closed to others."""
        self.dropped = 0
        """Intents that found no daemon, since the start."""
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.LINGER, 1_000)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.set(zmq.SNDTIMEO, round(timeout_s * 1000))
        try:
            if curve is not None:
                curve.apply(self._socket)
            self._socket.connect(endpoint)
        except ValueError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"ingest endpoint {endpoint!r} cannot be used: {error}") from error

    def send(self, intent: wire.Intent) -> bool:
        """Hand one intent over; False when it was dropped."""
        try:
            self._socket.send(wire.encode(intent))
        except zmq.Again:
            self.dropped += 1
            logger.error(
                "intent dropped, no daemon takes it endpoint=%s intent=%s stream=%s segment=%d",
                self._endpoint,
                intent.name,
                intent.stream,
                intent.segment,
            )
            return False
        return True

    def close(self) -> None:
        """Give the socket back; waits at most one second for what is still on its way."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PluginContext:
    """A plugin's way out: its settings and the road back to the bus."""

    def __init__(self, name: str, config: Mapping[str, Any], publisher: IntentPublisher) -> None:
        self.name = name
        self.config = dict(config)
        """The table `[plugins.NAME]` of the configuration, overlaid with `--set key=value`
        (always text)."""
        self._publisher = publisher

    def publish(self, intent: wire.Intent) -> bool:
        """Put an intent on the bus, signed with the plugin's name; False when it was dropped."""
        if intent.plugin is None:
            intent = msgspec.structs.replace(intent, plugin=self.name)
        return self._publisher.send(intent)

    def options(self, model: type[Options]) -> Options:
        """Read `config` as a pydantic model; text becomes numbers and flags where it can.

        Raises:
            PluginConfigError: Names every problem at once: key, value, rule, nearest known key.
        """
        from pydantic import ValidationError

        known = list(model.model_fields)
        problems = [_unknown_key(key, known) for key in self.config if key not in known]
        try:
            options = model.model_validate(self.config)
        except ValidationError as error:
            problems += [
                _broken_rule(dict(each))
                for each in error.errors(include_url=False)
                if each["type"] != "extra_forbidden"
            ]
            raise PluginConfigError(self.name, problems) from error
        if problems:
            raise PluginConfigError(self.name, problems)
        return options


def _broken_rule(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    rule = str(error["msg"])
    found = "absent" if error["type"] == "missing" else repr(error["input"])
    return f"{key} = {found}: {rule[:1].lower()}{rule[1:]}"


def _unknown_key(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known) or 'none'}"
    return f"{key}: no such option, {hint}"


class Plugin:
    """Base class of plugins: override what is of interest.

    A handler that raises loses that one message: it is logged and counted, the next one comes.
    A handler that takes longer than the runner's limit ends the process.
    """

    name = "plugin"
    """Used in logs, in `intent.plugin` and as the default name."""
    topics: tuple[str, ...] = ()
    """Beginnings of the topics to receive, e.g. `("final/",)`; empty means everything."""
    start_from: Literal["last", "now"] = "last"
    """Where a new process begins: behind the last final that it had, or with what comes now.
    `voiced plugins run --from` says otherwise."""
    max_age_s: float | None = None
    """Finals out of the journal that are older, or dated so far ahead of the clock, are left out:
    for a plugin whose acts come too late then."""
    context: PluginContext

    def setup(self, context: PluginContext) -> None:
        """Called once before the first message. Overriders call `super().setup(context)`."""
        self.context = context

    def on_message(self, message: wire.ServerMessage) -> None:
        """Called with every message but heartbeats; passes on those that have a method."""
        if isinstance(message, wire.Final):
            self.on_final(message)
        elif isinstance(message, wire.Partial):
            self.on_partial(message)
        elif isinstance(message, wire.EagerFinal):
            self.on_eager_final(message)
        elif isinstance(message, wire.Resumed):
            self.on_resumed(message)

    def on_final(self, message: wire.Final) -> None:
        """The last word on a segment; its text is empty when no speech was found."""

    def on_partial(self, message: wire.Partial) -> None:
        """The text so far of a segment that still grows."""

    def on_eager_final(self, message: wire.EagerFinal) -> None:
        """What the final will be if nothing more is said; only where the daemon publishes it."""

    def on_resumed(self, message: wire.Resumed) -> None:
        """Speech goes on: the segment's `eager_final` is taken back."""

    def on_gap(self, gap: Gap) -> None:
        """Messages were lost between daemon and plugin; the runner has logged it."""

    def on_connection(self, event: Restarted | Lost | Regained) -> None:
        """The daemon restarted, went silent or is heard again; the runner has logged it."""

    def on_reload(self) -> None:
        """Read files again that options name (SIGHUP); one that raises keeps what it had."""

    def position(self) -> wire.Position | None:
        """Return the last final that has had its effect; called once, after `setup`.

        A plugin that keeps this with the effect itself has each final exactly once, whenever its
        process ends. None: the runner's own note counts, which is written after the handler; a
        process that is killed between the two gets that one final again.
        """
        return None

    def close(self) -> None:
        """Called once at the end, also after failures."""
