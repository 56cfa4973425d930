"""The microphone as a stream: order, states, faults of the session, stopping."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
from collections.abc import Awaitable, Callable, Generator

import pytest

from voiced.audio.clock import FakeClock
from voiced.audio.errors import DeviceNotFound, MicrophoneError, PortAudioMissing
from voiced.audio.frames import StreamFormat
from voiced.audio.sources.microphone import (
    Block,
    Drift,
    Lost,
    LostBy,
    MicrophoneEvent,
    Opened,
    Silent,
    Unavailable,
)
from voiced.daemon.metrics import Metrics
from voiced.daemon.microphone import (
    Complaints,
    MicrophoneRunner,
    MicrophoneState,
    MicrophoneStatus,
    Source,
    SourceBroke,
)

DEADLINE_S = 30.0
MONO = StreamFormat()
STEREO = StreamFormat(rate_hz=48_000, channels=2)


class Script:
    """A source that says what the test puts in."""

    def __init__(self, *events: MicrophoneEvent) -> None:
        self._events: queue.Queue[MicrophoneEvent | None] = queue.Queue()
        self.was_disposed = False
        for event in events:
            self._events.put(event)

    def say(self, event: MicrophoneEvent) -> None:
        self._events.put(event)

    def events(self) -> Generator[MicrophoneEvent, None, None]:
        try:
            while (event := self._events.get()) is not None:
                yield event
        finally:
            self.was_disposed = True

    def stop(self) -> None:
        self._events.put(None)


class Recorder:
    """A session that writes down what it is told."""

    def __init__(self, audio: StreamFormat) -> None:
        self.audio = audio
        self.log: list[bytes | int | str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_on: bytes | None = None

    async def feed(self, data: bytes) -> None:
        await self.gate.wait()
        if data == self.fail_on:
            raise ValueError(f"cannot take {data!r}")
        self.log.append(data)

    def lost(self, input_frames: int) -> None:
        self.log.append(input_frames)

    async def finish(self) -> None:
        self.log.append("finished")


class Sessions:
    """Opens recorders, or refuses."""

    def __init__(self) -> None:
        self.opened: list[Recorder] = []
        self.is_opened = asyncio.Event()
        self.refuse: list[Exception] = []
        self.prepare: Callable[[Recorder], None] = lambda _: None

    def __call__(self, audio: StreamFormat) -> Recorder:
        if self.refuse:
            raise self.refuse.pop(0)
        self.opened.append(Recorder(audio))
        self.is_opened.set()
        self.prepare(self.opened[-1])
        return self.opened[-1]


class Watched(MicrophoneRunner):
    """Tells its status after each event."""

    def __init__(
        self, source: Source, open_session: Sessions, *, source_retry_s: float = 0.0
    ) -> None:
        super().__init__(source, open_session, source_retry_s=source_retry_s)
        self.statuses: asyncio.Queue[MicrophoneStatus] = asyncio.Queue()

    async def _handle(self, event: MicrophoneEvent | SourceBroke | None) -> None:
        await super()._handle(event)
        self.statuses.put_nowait(self.status)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(limited())


def played(
    *events: MicrophoneEvent, sessions: Sessions | None = None, clock: FakeClock | None = None
) -> tuple[MicrophoneRunner, Sessions]:
    """Run a whole script to its end."""
    sessions = sessions or Sessions()
    script = Script(*events)
    script.stop()
    runner = MicrophoneRunner(script, sessions, clock=clock)
    run(runner.run)
    assert script.was_disposed
    return runner, sessions


def test_sound_and_gaps_reach_the_session_in_order_and_it_is_finished_once() -> None:
    runner, sessions = played(
        Unavailable(DeviceNotFound(None, ()), 0.25),
        Opened("mic", MONO),
        Block(b"aa"),
        Lost(320, LostBy.OVERFLOW),
        Block(b"bb"),
    )
    (session,) = sessions.opened
    assert session.audio == MONO
    assert session.log == [b"aa", 320, b"bb", "finished"]
    status = runner.status
    assert (status.state, status.device) == (MicrophoneState.STOPPED, "mic")
    assert (status.lost_frames, status.overflows, status.opened) == (320, 1, 1)


def test_a_stream_outlives_the_loss_of_its_device() -> None:
    runner, sessions = played(
        Opened("mic", MONO),
        Block(b"aa"),
        Unavailable(MicrophoneError("gone"), 0.25),
        Lost(16_000, LostBy.AWAY),
        Opened("mic", MONO),
        Block(b"bb"),
    )
    (session,) = sessions.opened
    assert session.log == [b"aa", 16_000, b"bb", "finished"]
    assert runner.status.opened == 2


def test_a_device_that_returns_with_another_format_starts_another_stream() -> None:
    _, sessions = played(Opened("mic", MONO), Block(b"aa"), Opened("other", STEREO), Block(b"bbbb"))
    assert [session.audio for session in sessions.opened] == [MONO, STEREO]
    assert [session.log for session in sessions.opened] == [
        [b"aa", "finished"],
        [b"bbbb", "finished"],
    ]


def test_no_stream_is_opened_before_there_is_sound() -> None:
    runner, sessions = played(Unavailable(PortAudioMissing("no library"), 0.25))
    assert sessions.opened == []
    assert runner.status.device is None


def test_the_state_says_what_is_wrong_and_when_it_is_over() -> None:
    async def test() -> None:
        script = Script()
        runner = Watched(script, Sessions())
        assert runner.status.state is MicrophoneState.OPENING
        task = asyncio.create_task(runner.run())

        async def status_after(event: MicrophoneEvent) -> MicrophoneStatus:
            script.say(event)
            return await runner.statuses.get()

        waiting = await status_after(Unavailable(PortAudioMissing("no PortAudio"), 0.25))
        assert waiting.state is MicrophoneState.WAITING
        assert waiting.code == "portaudio_missing"
        assert "apt install libportaudio2" in (waiting.reason or "")
        running = await status_after(Opened("mic", MONO))
        assert running.state is MicrophoneState.RUNNING
        assert (running.code, running.reason) == (None, None)
        assert (await status_after(Silent(10.0))).is_silent
        assert (await status_after(Block(bytes(2)))).is_silent
        assert not (await status_after(Block(b"aa"))).is_silent
        runner.stop()
        await task
        assert runner.status.state is MicrophoneState.STOPPED

    run(test)


def test_a_session_that_breaks_is_logged_and_replaced_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = Sessions()

    def prepare(session: Recorder) -> None:
        if len(sessions.opened) == 1:
            session.fail_on = b"bad"

    sessions.prepare = prepare

    class Hurrying(FakeClock):
        """Six seconds go by with every look."""

        def monotonic_ns(self) -> int:
            self.advance_ms(6_000)
            return super().monotonic_ns()

    runner, _ = played(
        Opened("mic", MONO),
        Block(b"aa"),
        Block(b"bad"),
        Block(b"cc"),
        sessions=sessions,
        clock=Hurrying(),
    )
    assert [session.log for session in sessions.opened] == [
        [b"aa", "finished"],  # the broken one too: it holds the stream's name until it ends
        [b"cc", "finished"],
    ]
    assert "microphone session ended" in caplog.text
    assert "cannot take b'bad'" in caplog.text
    assert runner.status.state is MicrophoneState.STOPPED


def test_a_refused_session_is_asked_for_again_only_after_a_while() -> None:
    sessions = Sessions()
    sessions.refuse = [RuntimeError("too many streams")]
    runner, _ = played(
        Opened("mic", MONO),
        Block(b"aa"),
        Block(b"bb"),
        sessions=sessions,
        clock=FakeClock(),
    )
    assert sessions.opened == []
    assert sessions.refuse == []
    assert runner.status.reason == "too many streams"


def test_a_session_that_is_behind_holds_the_source_back() -> None:
    async def test() -> None:
        sessions = Sessions()
        sessions.prepare = lambda session: session.gate.clear()
        script = Script(Opened("mic", MONO), *[Block(bytes([n])) for n in range(100)])
        runner = MicrophoneRunner(script, sessions)
        task = asyncio.create_task(runner.run())
        await sessions.is_opened.wait()
        for _ in range(200):
            await asyncio.sleep(0)
        assert script._events.qsize() > 80
        sessions.opened[0].gate.set()
        runner.stop()
        await task
        assert sessions.opened[0].log == [*[bytes([n]) for n in range(100)], "finished"]

    run(test)


def test_cancelling_frees_the_device_even_when_the_session_hangs() -> None:
    async def test() -> None:
        sessions = Sessions()
        sessions.prepare = lambda session: session.gate.clear()
        script = Script(Opened("mic", MONO), *[Block(b"aa")] * 50)
        task = asyncio.create_task(MicrophoneRunner(script, sessions).run())
        await sessions.is_opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert script.was_disposed
        assert sessions.opened[0].log == []

    run(test)


class Faulty(Script):
    """Raises once for each `None` before the last; then goes on where it was."""

    def __init__(self, faults: int, *events: MicrophoneEvent) -> None:
        super().__init__(*events)
        self.faults = faults

    def events(self) -> Generator[MicrophoneEvent, None, None]:
        yield from super().events()
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a fault in the source")


def test_a_source_that_raises_is_logged_once_and_iterated_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = Sessions()
    source = Faulty(3, Opened("mic", MONO), Block(b"aa"))
    for _ in range(3):
        source.stop()
    source.say(Opened("mic", MONO))
    source.say(Block(b"bb"))
    source.stop()
    runner = MicrophoneRunner(source, sessions, clock=FakeClock(), source_retry_s=0.0)
    run(runner.run)
    (session,) = sessions.opened
    assert session.log == [b"aa", b"bb", "finished"]
    (record,) = [record for record in caplog.records if "source broke" in record.message]
    assert record.exc_info is not None
    assert runner.status.opened == 2


def test_a_source_that_broke_is_shown_and_stopping_does_not_wait_for_the_pause() -> None:
    async def test() -> None:
        source = Faulty(1)
        runner = Watched(source, Sessions(), source_retry_s=3_600)
        task = asyncio.create_task(runner.run())
        source.stop()
        status = await runner.statuses.get()
        assert (status.state, status.code) == (MicrophoneState.WAITING, "internal")
        runner.stop()
        await task

    run(test)


def test_a_clock_far_off_its_rate_is_warned_about_and_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        runner, _ = played(Opened("mic", MONO), Drift(40.0), Drift(45.0))
        assert runner.status.drift_ppm == 45.0
        assert "WARNING" not in {record.levelname for record in caplog.records}
        assert caplog.text.count("microphone clock measured drift_ppm=40") == 1
        runner, _ = played(Opened("mic", MONO), Drift(-81_250.0))
    assert "records -8.12 % faster than its rate says" in caplog.text
    assert runner.status.facts()["drift_ppm"] == -81_250


def test_another_capture_has_another_clock() -> None:
    runner, _ = played(Opened("mic", MONO), Drift(40.0), Opened("mic", MONO))
    assert runner.status.drift_ppm is None


def test_metrics_show_how_the_microphone_is_doing() -> None:
    metrics = Metrics()
    status = MicrophoneStatus()
    metrics.watch_microphone(lambda: status)
    assert metrics.value("voiced_microphone_state", state="opening") == 1
    status = MicrophoneStatus(
        state=MicrophoneState.WAITING, opened=2, lost_frames=480, is_silent=True
    )
    states = {
        state.value: metrics.value("voiced_microphone_state", state=state.value)
        for state in MicrophoneState
    }
    assert states == {**dict.fromkeys(states, 0), "waiting": 1}
    assert metrics.value("voiced_microphone_opened") == 2
    assert metrics.value("voiced_microphone_lost_frames") == 480
    assert metrics.value("voiced_microphone_silent") == 1
    assert math.isnan(metrics.value("voiced_microphone_drift_ppm"))
    assert b'voiced_microphone_state{state="waiting"} 1.0' in metrics.render()
    status = MicrophoneStatus(drift_ppm=-12.5)
    assert metrics.value("voiced_microphone_drift_ppm") == -12.5


def test_a_missing_device_is_logged_at_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        played(*[Unavailable(DeviceNotFound("mic", ()), 5.0)] * 20, clock=FakeClock())
    assert len([record for record in caplog.records if "no input device" in record.message]) == 1


def test_complaints_are_counted_while_they_are_kept_back() -> None:
    complaints = Complaints()
    second = 1_000_000_000
    assert complaints.due("a", 0) == 1
    assert complaints.due("b", 0) == 1
    assert [complaints.due("a", now_s * second) for now_s in (5, 30, 59)] == [0, 0, 0]
    assert complaints.due("a", 60 * second) == 4
    assert complaints.due("a", 200 * second) == 1
