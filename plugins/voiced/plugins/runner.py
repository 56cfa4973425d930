"""Runs one plugin in this process: finds it, feeds it, survives it, ends it.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed or hung (a supervisor starts it again). For a
plugin that cannot be used at all an error is raised: starting again will not help.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

from voiced.daemon import wire
from voiced.plugins.curve import CurveKeys
from voiced.plugins.errors import PluginError, PluginNotFound
from voiced.plugins.position import PositionFile, default_folder, place_of
from voiced.plugins.sdk import DEFAULT_INGEST, IntentPublisher, Plugin, PluginContext
from voiced.plugins.subscriber import (
    DEFAULT_BUS,
    BusItem,
    BusSubscriber,
    Gap,
    Lost,
    Nudged,
    Regained,
    Restarted,
)

logger = logging.getLogger(__name__)

GROUP = "voiced.plugins"
EXIT_OK, EXIT_FAILED = 0, 1
StartFrom = Literal["last", "now", "beginning"]
_STDERR_FD = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plugin may do before its process ends."""

    failures_in_a_row: int = 10
    handler_s: float = 30.0
    """One handler call."""
    setup_s: float = 120.0
    """`setup`, which may load a model, and `close`."""


def installed_plugins() -> dict[str, EntryPoint]:
    """Name → entry point of every installed plugin, by name."""
    return {each.name: each for each in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def load_plugin(name: str) -> type[Plugin]:
    """Import a plugin class by its installed name or as `package.module:Class`.

    Raises:
        PluginNotFound: Not installed, not importable, or not a `Plugin`.
    """
    known = installed_plugins()
    if ":" not in name and name not in known:
        raise PluginNotFound(name, reason="not installed and not module:Class", known=list(known))
    module, _, attribute = (known[name].value if name in known else name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a plugin's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise PluginNotFound(name, reason=reason, known=list(known)) from error
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        reason = f"{module}:{attribute} is no subclass of voiced.plugins.sdk.Plugin"
        raise PluginNotFound(name, reason=reason, known=list(known))
    return found


class Watchdog:
    """Ends the process when a call into the plugin takes too long.

    A thread cannot be stopped from outside in Python, so a hung handler costs its process. The
    stack of the watched thread is logged first. Code that hangs without releasing the GIL stops
    this thread too; for it, faulthandler's C thread ends the process at twice the limit.
    """

    def __init__(self, *, end_process: Callable[[int], None] = os._exit) -> None:
        self._end_process = end_process
        self._changed = threading.Condition()
        self._call: tuple[str, float, int] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="plugin-watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, what: str, limit_s: float) -> Iterator[None]:
        """Give the calling thread `limit_s` seconds for the body; `what` goes into the log."""
        call = (what, time.monotonic() + limit_s, threading.get_ident())
        faulthandler.dump_traceback_later(2 * limit_s, exit=True, file=_STDERR_FD)
        self._set(call)
        try:
            yield
        finally:
            self._set(None)
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Stop watching and join the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _set(self, call: tuple[str, float, int] | None) -> None:
        with self._changed:
            self._call = call
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                left_s = None if self._call is None else self._call[1] - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._closed or self._call is None:
                return
            what, _, thread_id = self._call
        frame = sys._current_frames().get(thread_id)
        stack = "".join(traceback.format_stack(frame)) if frame else "(thread is gone)"
        logger.critical("plugin hangs, process ends in=%s stack:\n%s", what, stack)
        for handler in logging.getLogger().handlers:
            handler.flush()
        self._end_process(EXIT_FAILED)


def dispatch(plugin: Plugin, item: BusItem) -> None:
    """Call the handler that `item` is for."""
    if isinstance(item, Gap):
        plugin.on_gap(item)
    elif isinstance(item, Nudged):
        plugin.on_reload()
    elif isinstance(item, Restarted | Lost | Regained):
        plugin.on_connection(item)
    else:
        plugin.on_message(item)


def serve(
    name: str,
    plugin: Plugin,
    subscriber: BusSubscriber,
    watchdog: Watchdog,
    limits: Limits,
    kept: PositionFile | None = None,
) -> int:
    """Feed the plugin until the subscriber is interrupted or the plugin fails too often."""
    messages = failures = in_a_row = too_old = 0
    for item in subscriber:
        _log_event(name, item)
        if subscriber.is_replayed and _is_too_old(item, plugin.max_age_s):
            too_old += 1
            continue
        messages += 1
        try:
            with watchdog.watching(f"{name}: {_ids(item)}", limits.handler_s):
                dispatch(plugin, item)
            in_a_row = 0
        except Exception:
            failures += 1
            in_a_row += 1
            logger.exception("plugin failed on one message plugin=%s %s", name, _ids(item))
            if in_a_row >= limits.failures_in_a_row:  # these come again in the next process
                logger.critical("plugin gives up plugin=%s failures_in_a_row=%d", name, in_a_row)
                return EXIT_FAILED
        if kept is not None and (place := place_of(item)) is not None:
            kept.save(place)
    logger.info(
        "plugin stopped plugin=%s messages=%d failures=%d replayed=%d too_old=%d duplicates=%d "
        "rubbish=%d",
        name,
        messages,
        failures,
        subscriber.replayed,
        too_old,
        subscriber.duplicates,
        subscriber.rubbish,
    )
    return EXIT_OK


def run_plugin(
    name: str,
    bus_endpoint: str = DEFAULT_BUS,
    ingest_endpoint: str = DEFAULT_INGEST,
    options: Mapping[str, Any] | None = None,
    *,
    curve: CurveKeys | None = None,
    replay: str | None = None,
    start_from: StartFrom | None = None,
    folder: Path | None = None,
    limits: Limits | None = None,
) -> int:
    """Run a plugin until SIGTERM or SIGINT; the return value is the process's exit code.

    The bus is joined before `setup` runs, so that what is said during a long setup waits in the
    queue. Signals are handled when called in the main thread; a second one ends at once.

    Args:
        name: Installed name, or `package.module:Class`.
        bus_endpoint: The daemon's PUB socket.
        ingest_endpoint: The daemon's PULL socket.
        options: The plugin's own.
        replay: The daemon's ROUTER socket: what was missed is fetched there. None: nothing is.
        start_from: Where to begin; None: as the plugin says.
        folder: Where the position is kept; None: the usual place.
        limits: What the plugin may do before its process ends.

    Raises:
        PluginError: The plugin, its options or a file that they name cannot be used.
        ValueError: An endpoint cannot be used.
    """
    limits = limits or Limits()
    plugin_class = load_plugin(name)
    start_from = start_from or plugin_class.start_from
    kept = None if replay is None else PositionFile(folder or default_folder(name))
    since_ms = 0 if start_from == "beginning" else None
    with (
        IntentPublisher(ingest_endpoint, curve=curve) as publisher,
        BusSubscriber(
            bus_endpoint, plugin_class.topics, curve=curve, replay=replay, start=since_ms
        ) as subscriber,
        _signals_interrupt(subscriber),
        Watchdog() as watchdog,
    ):
        context = PluginContext(plugin_class.name, options or {}, publisher)
        resume_from = kept if start_from == "last" else None
        return _set_up_and_serve(
            name, plugin_class, context, subscriber, watchdog, limits, kept, resume_from
        )


def _set_up_and_serve(
    name: str,
    plugin_class: type[Plugin],
    context: PluginContext,
    subscriber: BusSubscriber,
    watchdog: Watchdog,
    limits: Limits,
    kept: PositionFile | None,
    resume_from: PositionFile | None,
) -> int:
    plugin: Plugin | None = None
    try:
        with watchdog.watching(f"{name}: setup", limits.setup_s):
            plugin = plugin_class()
            plugin.setup(context)
            position = plugin.position()
        if resume_from is not None and (position := position or resume_from.load()) is not None:
            subscriber.start_at(position)
        logger.info("plugin started plugin=%s pid=%d", name, os.getpid())
        return serve(name, plugin, subscriber, watchdog, limits, kept)
    except PluginError:  # options, or files that they name: a new start would not mend them
        raise
    except Exception:
        logger.critical("plugin setup failed plugin=%s", name, exc_info=True)
        return EXIT_FAILED
    finally:
        if plugin is not None:
            _close(name, plugin, watchdog, limits)


def _close(name: str, plugin: Plugin, watchdog: Watchdog, limits: Limits) -> None:
    try:
        with watchdog.watching(f"{name}: close", limits.setup_s):
            plugin.close()
    except Exception:
        logger.exception("plugin failed while closing plugin=%s", name)


@contextlib.contextmanager
def _signals_interrupt(subscriber: BusSubscriber) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        subscriber.interrupt()

    def reload(number: int, frame: FrameType | None) -> None:
        subscriber.nudge()

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_event(name: str, item: BusItem) -> None:
    if isinstance(item, Nudged):
        logger.info("plugin %s: signal=SIGHUP: reads its files again", name)
    elif isinstance(item, Gap | Lost | Restarted):
        logger.warning("plugin %s: %s", name, item)
    elif isinstance(item, Regained):
        logger.info("plugin %s: %s", name, item)


def _is_too_old(item: BusItem, max_age_s: float | None) -> bool:
    """By the clock: one that is dated ahead of it is of unknown age, and counts as old."""
    if max_age_s is None or not isinstance(item, wire.Message) or item.wall_ms is None:
        return False
    return abs(time.time() - item.wall_ms / 1000) > max_age_s


def _ids(item: BusItem) -> str:
    """The ids that find a message again; never its text."""
    kind = type(item).__name__.lower()
    names = ("stream", "segment", "revision", "epoch", "seq", "first", "last")
    found = [f"{each}={getattr(item, each)}" for each in names if hasattr(item, each)]
    return " ".join([f"message={kind}", *found])
