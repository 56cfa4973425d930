"""The one place that knows every class: builds the daemon from its settings and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from voiced.audio.errors import AudioError
from voiced.audio.frames import StreamFormat
from voiced.audio.vad import VadFactory, VadKind
from voiced.daemon import logs, reload
from voiced.daemon.addresses import write_addresses
from voiced.daemon.admin import Say, Switched
from voiced.daemon.bus import Bus
from voiced.daemon.chain import AudioChains
from voiced.daemon.config import ConfigError, Problem
from voiced.daemon.engine_switch import EngineSwitch
from voiced.daemon.errors import ModelStays, StartTimeout
from voiced.daemon.events import Events
from voiced.daemon.exit_status import EXIT_FAILED, EXIT_OK
from voiced.daemon.hotwords import hotwords_of
from voiced.daemon.inside import Inside
from voiced.daemon.metrics import Metrics
from voiced.daemon.microphone import MicrophoneRunner
from voiced.daemon.model_change import ModelChange
from voiced.daemon.overload import OverloadRules
from voiced.daemon.pacing import gap_s
from voiced.daemon.part_settings import (
    engine_config,
    front_defaults,
    server_options,
    session_settings,
)
from voiced.daemon.persistence import Persistence
from voiced.daemon.sdnotify import Notifier
from voiced.daemon.security import Security
from voiced.daemon.server import Server
from voiced.daemon.session import StreamSession
from voiced.daemon.settings import Settings, VadSettings
from voiced.daemon.statusline import status_line
from voiced.daemon.streams import Streams
from voiced.daemon.supervisor import Part, Supervisor
from voiced.daemon.tracing import open_tracer
from voiced.daemon.watchdog import Watchdog
from voiced.daemon.watched import CHECK_INTERVAL_S
from voiced.daemon.wire import AudioParams, Intent, Start
from voiced.engine import store
from voiced.engine.errors import EngineError, TextPolicyUnavailable, UnknownLanguage
from voiced.engine.host import restart_delay_s
from voiced.engine.types import EngineInfo

logger = logging.getLogger(__name__)

_HOLD_S = 5.0
"""Longest that connections to passed sockets wait for the engine before they are served: who woke
the daemon by connecting is better served late than refused, and told why if it takes longer."""


_TRACES_S = 1.0
"""For the last traces, at the end of a stop: nobody waits for a collector that is away."""


class Daemon:
    """Everything that runs in one `voiced run`."""

    def __init__(
        self,
        settings: Settings,
        *,
        notifier: Notifier | None = None,
        address_file: Path | None = None,
        passed: Sequence[socket.socket] = (),
        read_settings: Callable[[], Settings] | None = None,
    ) -> None:
        """Build the parts; nothing runs, no port is taken.

        Args:
            settings: All of them.
            notifier: Told about readiness; default: the service manager of this process.
            address_file: Gets, as JSON, where the daemon listens, once it does.
            passed: Listening sockets to serve instead of `server.host` and the like.
            read_settings: Reads them again, for a reload; raises ConfigError.

        Raises:
            BundleError: The model is not here.
            VadUnavailable: The detector's library or model is not here.
        """
        self._settings, self._read_settings = settings, read_settings
        self._notifier = notifier or Notifier.from_environment()
        self._address_file = address_file
        self._metrics = Metrics()
        self._engine = EngineSwitch(engine_config(settings))
        self._engine.hotwords = hotwords_of(settings.engine)
        self._security = Security(settings, self._metrics, passed)
        self._bus = Bus(
            settings.bus.endpoint,
            settings.bus.ingest,
            metrics=self._metrics,
            curve=self._security.curve,
        )
        self._bus_task: asyncio.Task[None] | None = None
        self._kept = Persistence(
            settings.journal,
            settings.bus.replay,
            bus=self._bus,
            engine=self._engine,
            metrics=self._metrics,
            watch=self._on_task_done,
        )
        self._tracer = None
        if settings.tracing.endpoint is not None:
            offset_ns = time.time_ns() - time.monotonic_ns()
            self._tracer = open_tracer(settings.tracing.endpoint, wall_minus_monotonic_ns=offset_ns)
        self._streams = Streams(
            engine=self._engine,
            publish=self._kept.outlet,
            open_chain=self._chains(settings.vad),
            settings=session_settings(settings),
            max_streams=settings.server.max_streams,
            overload=OverloadRules(settings.limits.busy_age_s, settings.engine.max_queued_finals),
            metrics=self._metrics,
            tracer=self._tracer,
        )
        self._bus.relay = self._relay_intent
        self._metrics.watch_engine(self._engine.load)
        microphone = self._make_microphone() if settings.microphone.enabled else None
        self._microphone = microphone
        status = None if microphone is None else lambda: microphone.status
        if status is not None:
            self._metrics.watch_microphone(status)
        self._inside = Inside(
            self._streams,
            bus_seq=lambda: self._bus.seq,
            microphone=status,
            shows_text=settings.server.status_text,
        )
        events = Events()
        self._bus.on_message = events.tap
        tls = self._security.tls
        self._server = Server(
            server_options(settings),
            self._streams,
            access=self._security.access,
            clients=self._security.clients,
            tls=None if tls is None else tls.context,
            events=events,
            microphone=status,
            inside=self._inside,
            journal=self._kept.status,
            switch_model=self.switch_model,
            passed=passed,
        )
        self._inside.server = self._server
        self._guard_task: asyncio.Task[None] | None = None
        self._is_held = bool(passed)
        self._has_tried_engine = asyncio.Event()
        self._door: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._model_change = ModelChange(self._engine, self._check_languages)
        self._configured_model: str | None = None
        """What `engine.model` was when a command chose another one."""
        self._watch_queues()
        self._microphone_task: asyncio.Task[None] | None = None
        self._loop_beats = 0
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._supervisor = Supervisor(
            (
                Part("tracing", self._start_tracing, self._stop_tracing),
                Part("journal", self._kept.start, self._kept.stop),
                Part("bus", self._start_bus, self._stop_bus),
                Part("server", self._start_server, self._stop_server),
                Part("engine", self._start_engine, self._stop_engine),
                Part("streams", self._start_streams, self._stop_streams),
            ),
            drain_s=settings.limits.drain_s,
            notifier=self._notifier,
            watchdog=Watchdog(
                self._notifier,
                {
                    "audio": self._audio_beats,
                    "bus": self._bus_beats,
                    "engine": lambda: self._engine.beats,
                },
                status=self._status_line,
            ),
            on_stopping=self._streams.refuse,
        )

    def wake_gap_s(self) -> float:
        """Return the least time between two wake-ups of the event loop that runs this, seconds."""
        return gap_s(len(self._streams), is_quiet=self._streams.is_quiet)

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; a second signal ends the process at once with status 1.

        SIGHUP is such a signal where standard error is a terminal (it was closed), else a reload.

        Returns:
            The process's exit status: 0, or 1 when something did not end in time.

        Raises:
            DaemonError, EngineError: A part could not be started or broke later.
        """
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._on_signal,
            signal.SIGINT: self._on_signal,
            signal.SIGHUP: self._on_signal if sys.stderr.isatty() else self._on_hangup,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler, number)
        loop.add_signal_handler(signal.SIGUSR1, self._inside.dump)
        loop.set_exception_handler(logs.LoopErrors())
        try:
            is_clean = await self._supervisor.run(self._stop)
        finally:
            for number in (*handlers, signal.SIGUSR1):
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        logger.info("stopped clean=%s", is_clean)
        return EXIT_OK if is_clean else EXIT_FAILED

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stop.is_set():
            logger.info("stopping signal=%s drain_s=%g", number.name, self._settings.limits.drain_s)
            self._stop.set()
            return
        logger.critical("second signal, exit at once signal=%s", number.name)
        # The worker dies with its parent.
        os._exit(EXIT_FAILED)

    def _on_hangup(self, number: signal.Signals) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._tell_and_reload(), name="reload")
            self._reloading.add_done_callback(self._on_task_done)

    async def _tell_and_reload(self) -> None:
        """Reload between the two words that the service manager waits for."""
        if not self._supervisor.is_running:  # READY would be a lie
            await self.reload()
            return
        self._notifier.reloading("reloading")
        try:
            await self.reload()
        finally:
            if self._supervisor.is_running:
                self._notifier.ready(self._status_line() or "ready")

    async def reload(self) -> None:
        """Take over what SIGHUP asks for; the service manager is told around it."""
        logger.info("signal=SIGHUP: certificates, tokens, keys and settings are read again")
        self._security.refresh(is_forced=True)
        if self._read_settings is None:
            return
        try:
            new = await asyncio.to_thread(self._read_settings)
        except ConfigError as error:
            logger.error("reload refused, everything stays as it was: %s", error)
            return
        if new.engine.model == self._configured_model:
            new = reload.merge(new, self._settings, ("engine.model",))  # the command's choice stays
        else:
            self._configured_model = None
        changes = reload.compare(self._settings, new)
        if changes.restart:
            logger.warning("changes that need a restart: %s", ", ".join(changes.restart))
        if self._take_over(new, changes.now) and changes.model:
            try:
                await self._change_model(new, changes.model)
            except ModelStays as error:
                logger.error("model stays, the new one failed: %s", error)

    def _take_over(self, new: Settings, names: tuple[str, ...]) -> bool:
        """Let streams have what they may have now; False when they cannot."""
        settings = reload.merge(self._settings, new, names)
        try:
            chains = self._chains(settings.vad)
            hotwords = hotwords_of(settings.engine)
        except (AudioError, ConfigError) as error:  # another detector or file, which is not here
            logger.error("reload refused, everything stays as it was: %s", error)
            return False
        self._settings = settings
        self._engine.hotwords = hotwords
        logs.set_level(settings.logging.level)
        self._streams.configure(
            open_chain=chains,
            settings=session_settings(settings),
            max_streams=settings.server.max_streams,
            overload=OverloadRules(settings.limits.busy_age_s, settings.engine.max_queued_finals),
        )
        logger.info("reloaded changed=%s", ", ".join(names) or "nothing")
        self._tell_unused_hotwords()
        return True

    async def switch_model(self, model: str, say: Say) -> Switched:
        """Change to another model until the next start, or until `engine.model` is changed.

        Raises:
            ModelStays: Says why.
        """
        before = self._engine.info
        configured = self._configured_model or self._settings.engine.model
        engine = self._settings.engine.model_copy(update={"model": model})
        new = self._settings.model_copy(update={"engine": engine})
        logger.info("model switch asked for model=%s", model)
        try:
            info = await self._change_model(new, ("engine.model",), say)
        except ModelStays as error:
            logger.error("model stays, the new one failed: %s", error)
            raise
        self._configured_model = configured
        return Switched("" if before is None else before.bundle, info.bundle)

    async def _change_model(
        self, new: Settings, names: tuple[str, ...], say: Say | None = None
    ) -> EngineInfo:
        """Take over these settings with the model that they ask for.

        Raises:
            ModelStays: It did not work, and nothing has changed.
        """
        settings = reload.merge(self._settings, new, names)
        info = await self._model_change.change(settings, say)
        self._settings = reload.merge(self._settings, new, names)
        self._take_over(self._settings, ())
        logger.info("model switched bundle=%s changed=%s", info.bundle, ", ".join(names))
        return info

    def _status_line(self) -> str | None:
        if not self._supervisor.is_running:
            return None
        microphone = None if self._microphone is None else self._microphone.status
        return status_line(
            streams=len(self._streams),
            max_streams=self._streams.max_streams,
            load=self._engine.load(),
            bundle=self._engine.info.bundle if self._engine.info else "",
            reason="" if self._engine.ready else self._engine.reason,
            microphone=microphone,
        )

    def _audio_beats(self) -> int | None:
        """Rises while sound can be taken: the loop turns, and the microphone's thread does."""
        self._loop_beats += 1
        task = self._microphone_task
        if self._microphone is None or task is None or task.done():
            return self._loop_beats
        return self._microphone.beats

    def _bus_beats(self) -> int | None:
        is_running = self._bus_task is not None and not self._bus_task.done()
        return self._bus.beats if is_running else None

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A part's own task must not end before the daemon does."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("part broke, stopping task=%s", task.get_name(), exc_info=error)
            self._failure = error
            self._stop.set()

    # ---- parts -----------------------------------------------------------------------------

    async def _start_tracing(self) -> None:
        """Nothing: the library's thread runs from the beginning."""

    async def _stop_tracing(self, left_s: float) -> None:
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close, min(left_s, _TRACES_S))

    async def _start_bus(self) -> None:
        self._bus.open()
        self._kept.listen(self._security.curve)
        self._bus_task = asyncio.create_task(self._bus.run(), name="bus")
        self._bus_task.add_done_callback(self._on_task_done)

    def _relay_intent(self, intent: Intent) -> None:
        self._kept.outlet.put(intent, lambda: self._streams.deliver(intent))

    async def _stop_bus(self, left_s: float) -> None:
        await self._kept.outlet.drain(left_s)
        await self._kept.stop_listening()
        if self._bus_task is not None:
            self._bus_task.cancel()
            await asyncio.wait((self._bus_task,))
        self._bus.close()

    async def _start_server(self) -> None:
        await self._server.start(accept=not self._is_held)
        if self._is_held:
            self._door = asyncio.create_task(self._open_door(), name="door")
            self._door.add_done_callback(self._on_task_done)
        if self._address_file is not None:
            write_addresses(
                self._address_file,
                {
                    "pid": os.getpid(),
                    "host": self._settings.server.host,
                    "port": self._server.port,
                    "unix_socket": self._settings.server.unix_socket,
                    "bus": self._bus.endpoint,
                    "ingest": self._bus.ingest_endpoint,
                    "replay": None if self._kept.replay is None else self._kept.replay.endpoint,
                },
            )

        self._guard_task = asyncio.create_task(self._guard(), name="guard")
        self._guard_task.add_done_callback(self._on_task_done)

    async def _open_door(self) -> None:
        """Serve those who wait at passed sockets, once the engine is up or is known not to be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HOLD_S):
                await self._has_tried_engine.wait()
        await self._server.accept()

    async def _guard(self) -> None:
        """Look after files that may change, and after tokens that may expire."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self._security.refresh()
            await self._server.expel()

    async def _stop_server(self, left_s: float) -> None:
        if self._door is not None:
            self._door.cancel()
            await asyncio.wait((self._door,))
        if self._guard_task is not None:
            self._guard_task.cancel()
            await asyncio.wait((self._guard_task,))
        await self._server.close()

    async def _start_engine(self) -> None:
        """Load the model; what fails is tried again with a pause.

        A driver that is not up yet or a file that is being replaced passes by itself; for the
        rest, the daemon that stays up says on `/readyz` and in the log what is to be done.
        """
        for failures in itertools.count(1):
            error = await self._try_engine()
            self._has_tried_engine.set()
            if error is None:
                break
            delay_s = restart_delay_s(failures + 1)
            logger.error("engine cannot start, next attempt in_s=%.1f: %s", delay_s, error)
            self._notifier.status(f"engine cannot start: {error}")
            await asyncio.sleep(delay_s)
        if self._engine.info is not None:
            self._check_languages(self._engine.info)
            self._tell_unused_hotwords()

    async def _try_engine(self) -> EngineError | None:
        limit_s = self._settings.limits.ready_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._engine.start()
        except TimeoutError:
            raise StartTimeout(limit_s) from None
        except (UnknownLanguage, TextPolicyUnavailable):
            raise  # only other settings can mend it
        except EngineError as error:
            return error
        return None

    def _tell_unused_hotwords(self) -> None:
        info, count = self._engine.info, len(self._engine.hotwords)
        if count and info is not None and not info.has_hotwords:
            logger.warning("hotwords are not used, %s has none count=%d", info.bundle, count)

    def _check_languages(self, info: EngineInfo) -> None:
        """Hold the languages that are set against those of the model: it is known only now.

        Raises:
            ConfigError: A stream that pins none would be refused each time.
        """
        if not info.languages:
            return
        rule = f"must be one of {', '.join(info.languages)}, or absent"
        problems = [
            Problem(f"model {info.bundle}", key, rule, f'"{language}"')
            for key, language in (
                ("engine.language", self._settings.engine.language),
                ("microphone.language", self._settings.microphone.language),
            )
            if language is not None and language not in info.languages
        ]
        if problems:
            raise ConfigError(problems)

    async def _stop_engine(self, left_s: float) -> None:
        await self._model_change.stop()
        await self._engine.stop()

    async def _start_streams(self) -> None:
        self._kept.start_recovery()
        if self._microphone is not None:
            self._microphone_task = asyncio.create_task(self._microphone.run(), name="microphone")
            self._microphone_task.add_done_callback(self._on_task_done)

    async def _stop_streams(self, left_s: float) -> None:
        await self._kept.stop_recovery()
        if self._microphone is not None:
            self._microphone.stop()
        await self._server.drain(deadline_s=left_s)
        if self._microphone_task is not None:
            await asyncio.wait((self._microphone_task,))

    # ---- building --------------------------------------------------------------------------

    def _watch_queues(self) -> None:
        streams, server = self._streams, self._server
        for name, text, read in (
            (
                "voiced_backlog_seconds",
                "Speech closed and not answered, of the stream that has most",
                lambda: streams.backlog_s,
            ),
            (
                "voiced_backlog_age_seconds",
                "How long the oldest closed segment has been waiting for its last word",
                lambda: streams.backlog_age_s,
            ),
            (
                "voiced_clients_waiting_bytes",
                "Bytes that wait for clients to read them",
                lambda: server.waiting_bytes,
            ),
            (
                "voiced_clients_stalled_seconds",
                "How long the slowest client has taken nothing of what waits for it",
                lambda: server.stalled_s,
            ),
        ):
            self._metrics.watch(name, text, read)

    def _chains(self, vad: VadSettings) -> AudioChains:
        vads = VadFactory(store.silero_path())
        vads.make(VadKind(vad.kind))  # a missing detector is an error now, not at the first stream
        return AudioChains(
            defaults=front_defaults(vad),
            vads=vads,
            vad_kind=VadKind(vad.kind),
            next_id=self._kept.segment_ids,
            longest_s=self._longest_s,
        )

    def _longest_s(self) -> float:
        info = self._engine.info
        return self._settings.vad.max_segment_s if info is None else info.max_segment_s

    def _make_microphone(self) -> MicrophoneRunner:
        from voiced.audio.sources.microphone import Microphone

        settings = self._settings.microphone
        device = settings.device
        source = Microphone(
            int(device) if device is not None and device.isdecimal() else device,
            rate_hz=settings.rate_hz,
            channels=settings.channels,
        )
        return MicrophoneRunner(source, self._open_microphone_session)

    def _open_microphone_session(self, audio: StreamFormat) -> StreamSession:
        settings = self._settings.microphone
        return self._streams.open(
            Start(
                v=1,
                audio=AudioParams(
                    encoding=audio.encoding.value, rate_hz=audio.rate_hz, channels=audio.channels
                ),
                stream=settings.stream,
                language=settings.language,
            )
        )
