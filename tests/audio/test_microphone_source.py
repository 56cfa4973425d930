"""The microphone against a sound system that fails on demand."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audio.fake_sounddevice import (
    HOST_ERROR,
    INVALID_CHANNELS,
    INVALID_RATE,
    UNAVAILABLE,
    FakeSoundDevice,
    FakeStream,
    PortAudioError,
)

from voiced.audio.clock import FakeClock
from voiced.audio.errors import (
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    MicrophoneError,
    PortAudioMissing,
)
from voiced.audio.frames import StreamFormat
from voiced.audio.sources.microphone import (
    Block,
    Drift,
    LossLedger,
    Lost,
    LostBy,
    Microphone,
    MicrophoneEvent,
    Opened,
    Recovery,
    Silent,
    Unavailable,
    list_devices,
)
from voiced.audio.sources.portaudio import CapturedBlock, Detached, load

DEADLINE_S = 30.0
PATIENT = Recovery(first_block_s=DEADLINE_S, watchdog_s=DEADLINE_S, call_s=DEADLINE_S)
"""Nothing hangs in the test; a busy machine must not look like it."""


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    fake = FakeSoundDevice("USB Mic", "Headset", "pulse")
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def listen() -> Iterator[Callable[..., Iterator[MicrophoneEvent]]]:
    """Start microphones that are stopped after the test."""
    started: list[tuple[Microphone, Any]] = []

    def start(microphone: Microphone) -> Iterator[MicrophoneEvent]:
        started.append((microphone, microphone.events()))
        return started[-1][1]

    yield start
    for microphone, events in started:
        microphone.stop()
        events.close()


Listen = Callable[[Microphone], Iterator[MicrophoneEvent]]


def until(events: Iterator[MicrophoneEvent], kind: type[MicrophoneEvent]) -> Any:
    """Return the next event of a kind."""
    deadline = time.monotonic() + DEADLINE_S
    for event in events:
        if isinstance(event, kind):
            return event
        assert time.monotonic() < deadline
    raise AssertionError(f"the events ended without {kind.__name__}")


# ---- opening -----------------------------------------------------------------------------------


def test_a_missing_library_names_the_package_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Listen
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(PortAudioMissing, match=r"not found; .*apt install libportaudio2"):
        load()
    events = listen(Microphone(recovery=Recovery(first_retry_s=0.01)))
    waiting = until(events, Unavailable)
    assert waiting.error.code == "portaudio_missing"
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSoundDevice("late"))  # type: ignore[arg-type]
    assert until(events, Opened).device == "late"


def test_devices_that_only_play_are_not_listed(system: FakeSoundDevice) -> None:
    found = list_devices()
    assert [device.name for device in found] == ["USB Mic", "Headset", "pulse"]
    assert [device.is_default for device in found] == [True, False, False]
    assert (found[0].host_api, found[0].channels, found[0].rate_hz) == ("ALSA", 2, 48_000)


def test_a_list_that_does_not_come_is_not_waited_for(system: FakeSoundDevice) -> None:
    system.may_list.clear()
    with pytest.raises(MicrophoneError, match=r"does not answer within 0\.05 s"):
        list_devices(timeout_s=0.05)
    system.may_list.set()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(None, "USB Mic"), (2, "pulse"), ("usb mic", "USB Mic"), ("head", "Headset")],
)
def test_a_device_is_found_by_number_name_or_a_part_of_it(
    system: FakeSoundDevice, listen: Listen, wanted: str | int | None, found: str
) -> None:
    assert until(listen(Microphone(wanted, recovery=PATIENT)), Opened).device == found


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("headphone", "did you mean 'Headset'; there are 'USB Mic', 'Headset', 'pulse'"),
        ("se", "'se' names several input devices: 'Headset', 'pulse'"),
        (3, "no input device 3; there are 'USB Mic'"),
        ("zzz", "no input device 'zzz'; there are"),
    ],
)
def test_a_device_that_does_not_exist_is_answered_with_those_that_do(
    system: FakeSoundDevice, listen: Listen, wanted: str | int, text: str
) -> None:
    waiting = until(listen(Microphone(wanted)), Unavailable)
    assert isinstance(waiting.error, DeviceNotFound)
    assert text in str(waiting.error)


def test_no_device_at_all_and_no_default_are_told_apart(
    system: FakeSoundDevice, listen: Listen
) -> None:
    system.default.device = [-1, -1]
    assert "no default input device; name one of" in str(
        until(listen(Microphone()), Unavailable).error
    )
    system.names.clear()
    assert "the sound system offers none" in str(until(listen(Microphone()), Unavailable).error)


@pytest.mark.parametrize(
    "error",
    [
        PortAudioError("Error opening RawInputStream: Device unavailable", UNAVAILABLE),
        PortAudioError("Unanticipated host error: 'Device or resource busy'", HOST_ERROR),
    ],
)
def test_a_busy_device_is_waited_for(
    system: FakeSoundDevice, listen: Listen, error: PortAudioError
) -> None:
    system.refuse = lambda _: error
    events = listen(Microphone("USB Mic", recovery=Recovery(first_retry_s=0.01)))
    waiting = until(events, Unavailable)
    assert isinstance(waiting.error, DeviceBusy)
    assert "'USB Mic' is busy" in str(waiting.error)
    system.refuse = lambda _: None
    assert until(events, Opened).device == "USB Mic"


def test_another_failure_keeps_portaudios_words(system: FakeSoundDevice, listen: Listen) -> None:
    system.refuse = lambda _: PortAudioError("Illegal combination of I/O devices", -9993)
    error = until(listen(Microphone()), Unavailable).error
    assert type(error) is MicrophoneError
    assert "Illegal combination" in str(error)


def test_a_device_that_refuses_16_khz_mono_is_opened_as_it_is(
    system: FakeSoundDevice, listen: Listen
) -> None:
    def refuse(settings: dict[str, Any]) -> PortAudioError | None:
        if settings["samplerate"] != 48_000:
            return PortAudioError("Invalid sample rate", INVALID_RATE)
        if settings["channels"] != 2:
            return PortAudioError("Invalid number of channels", INVALID_CHANNELS)
        return None

    system.refuse = refuse
    assert until(listen(Microphone(recovery=PATIENT)), Opened).audio == StreamFormat(
        rate_hz=48_000, channels=2
    )
    text = str(until(listen(Microphone(rate_hz=8_000)), Unavailable).error)
    assert "refuses 8000 Hz x 1, 8000 Hz x 2" in text
    assert "its own are 48000 Hz x 2" in text


def test_the_wait_between_attempts_doubles_to_its_limit(
    system: FakeSoundDevice, listen: Listen
) -> None:
    system.names.clear()
    events = listen(Microphone(recovery=Recovery(first_retry_s=0.01, max_retry_s=0.05)))
    assert [until(events, Unavailable).retry_s for _ in range(5)] == [
        0.01,
        0.02,
        0.04,
        0.05,
        0.05,
    ]


# ---- recording ---------------------------------------------------------------------------------


def test_blocks_arrive_as_they_were_recorded(system: FakeSoundDevice, listen: Listen) -> None:
    sent = [bytes([number]) * 640 for number in range(1, 6)]

    def play(stream: FakeStream) -> None:
        for pcm in sent:
            stream.deliver(pcm)

    system.on_start = play
    events = listen(Microphone(block_ms=20, recovery=PATIENT))
    assert isinstance(next(events), Opened)
    assert [next(events) for _ in sent] == [Block(pcm) for pcm in sent]


def test_an_overflow_is_a_gap_as_long_as_the_clock_says(
    system: FakeSoundDevice, listen: Listen
) -> None:
    clock = FakeClock()

    def play(stream: FakeStream) -> None:
        stream.deliver()
        clock.advance_ms(120)
        stream.deliver(overflow=True)
        stream.deliver(overflow=True)

    system.on_start = play
    events = listen(Microphone(block_ms=20, recovery=PATIENT, clock=clock))
    shown = [next(events) for _ in range(6)][1:]
    assert [event for event in shown if isinstance(event, Lost)] == [
        Lost(1600, LostBy.OVERFLOW),  # 120 ms less the block of 20 ms
        Lost(320, LostBy.OVERFLOW),  # no time went by, but one block at least is gone
    ]
    assert [type(event) for event in shown] == [Block, Lost, Block, Lost, Block]


def test_a_slow_reader_loses_the_oldest_blocks_and_sees_how_many(
    system: FakeSoundDevice, listen: Listen
) -> None:
    def play(stream: FakeStream) -> None:
        for number in range(10):
            stream.deliver(bytes([number + 1]) * 640)

    system.on_start = play
    events = listen(Microphone(block_ms=20, buffer_ms=100, recovery=PATIENT))
    shown = [next(events) for _ in range(7)]
    assert shown[1] == Lost(5 * 320, LostBy.SLOW_READER)
    assert [event.pcm[0] for event in shown if isinstance(event, Block)] == [6, 7, 8, 9, 10]


def test_zeros_are_reported_once_per_run(system: FakeSoundDevice, listen: Listen) -> None:
    zeros = bytes(640)

    def play(stream: FakeStream) -> None:
        for pcm in [zeros] * 8 + [b"\x01" * 640] + [zeros] * 5 + [b"\x01" * 640]:
            stream.deliver(pcm)

    system.on_start = play
    recovery = Recovery(first_block_s=DEADLINE_S, watchdog_s=DEADLINE_S, silent_s=0.1)
    events = listen(Microphone(block_ms=20, recovery=recovery))
    shown = [next(events) for _ in range(1 + 15 + 2)]
    assert [index for index, event in enumerate(shown) if isinstance(event, Silent)] == [6, 16]


# ---- losing the device -------------------------------------------------------------------------


def test_a_device_that_dies_is_opened_again_under_its_new_number(
    system: FakeSoundDevice, listen: Listen
) -> None:
    def die(stream: FakeStream) -> None:
        stream.deliver()
        system.names.insert(0, "newcomer")
        stream.die()

    system.on_start = die
    recovery = Recovery(first_retry_s=0.01, first_block_s=DEADLINE_S, watchdog_s=DEADLINE_S)
    events = listen(Microphone("Headset", recovery=recovery))
    assert isinstance(next(events), Opened)
    assert isinstance(next(events), Block)  # what was recorded is not lost
    lost = next(events)
    assert isinstance(lost, Unavailable)
    assert isinstance(lost.error, DeviceLost)
    system.on_start = FakeStream.deliver
    assert until(events, Opened).device == "Headset"
    assert [stream.settings["device"] for stream in system.streams] == [1, 2]
    assert system.streams[0].is_closed.is_set()
    assert system.refreshes == 1


def test_a_device_that_returns_under_another_card_number_is_the_same_one(
    system: FakeSoundDevice, listen: Listen
) -> None:
    def die(stream: FakeStream) -> None:
        system.names[0] = "USB Mic: Audio (hw:2,0)"
        stream.die()

    system.names[0] = "USB Mic: Audio (hw:1,0)"
    system.on_start = die
    recovery = Recovery(first_retry_s=0.01, first_block_s=DEADLINE_S, watchdog_s=DEADLINE_S)
    events = listen(Microphone("USB Mic: Audio (hw:1,0)", recovery=recovery))
    assert until(events, Opened).device == "USB Mic: Audio (hw:1,0)"
    system.on_start = FakeStream.deliver
    assert until(events, Opened).device == "USB Mic: Audio (hw:2,0)"


def test_the_drift_of_the_devices_clock_is_measured_and_begins_anew_after_an_overflow(
    system: FakeSoundDevice, listen: Listen
) -> None:
    clock = FakeClock()

    def record(stream: FakeStream) -> None:
        for number in range(1_400):  # 42 s, by a clock that is 1 % slow
            clock.advance_ms(30 / 0.99)
            stream.deliver(overflow=number == 1_300)
        stream.die()

    system.on_start = record
    events = listen(Microphone("pulse", recovery=PATIENT, buffer_ms=60_000, clock=clock))
    found: list[Drift] = []
    for event in events:
        if isinstance(event, Drift):
            found.append(event)
        if isinstance(event, Unavailable):
            break
    assert len(found) == 2  # after 30 and 35 s; what follows the overflow is too short
    assert [event.ppm for event in found] == pytest.approx([-10_000, -10_000], rel=0.02)


def test_time_away_is_put_on_the_sample_clock(system: FakeSoundDevice, listen: Listen) -> None:
    clock = FakeClock()

    def die(stream: FakeStream) -> None:
        stream.deliver()
        stream.die()

    def return_late(stream: FakeStream) -> None:
        clock.advance_ms(500)
        stream.deliver()

    system.on_start = die
    recovery = Recovery(first_retry_s=0.01, first_block_s=DEADLINE_S, watchdog_s=DEADLINE_S)
    events = listen(Microphone(block_ms=20, recovery=recovery, clock=clock))
    until(events, Unavailable)
    clock.advance_ms(1500)
    system.on_start = return_late
    shown: list[MicrophoneEvent] = []
    while not any(isinstance(event, Block) for event in shown):
        shown.append(next(events))
    lost = [event for event in shown if isinstance(event, Lost)]
    assert {event.cause for event in lost} == {LostBy.AWAY}
    assert sum(event.frames for event in lost) == 16 * 2000 - 320


def test_a_stream_that_falls_silent_is_left_though_its_abort_hangs(
    system: FakeSoundDevice, listen: Listen
) -> None:
    system.may_abort.clear()
    recovery = Recovery(watchdog_s=0.05, call_s=0.05, first_retry_s=0.01, first_block_s=DEADLINE_S)
    events = listen(Microphone(recovery=recovery))
    until(events, Block)
    assert "may hang" in str(until(events, Unavailable).error)
    until(events, Opened)
    assert len(system.streams) == 2
    assert system.refreshes == 0  # it would have waited for the stream that hangs
    assert not system.streams[0].is_closed.is_set()
    system.may_abort.set()
    assert system.streams[0].is_closed.wait(DEADLINE_S)


def test_an_open_that_hangs_is_reported_and_used_when_it_succeeds(
    system: FakeSoundDevice, listen: Listen
) -> None:
    system.may_open.clear()
    recovery = Recovery(
        call_s=0.02, first_retry_s=0.01, max_retry_s=0.02, first_block_s=DEADLINE_S, watchdog_s=60
    )
    events = listen(Microphone(recovery=recovery))
    for _ in range(3):
        assert "opening input device 'default' hangs" in str(until(events, Unavailable).error)
    system.may_open.set()
    until(events, Opened)
    assert len(system.streams) == 1


# ---- stopping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_recording", [True, False])
def test_stop_ends_the_events_at_once(system: FakeSoundDevice, is_recording: bool) -> None:
    if not is_recording:
        system.names.clear()
    forever = 1e6
    microphone = Microphone(
        recovery=Recovery(first_retry_s=forever, first_block_s=forever, watchdog_s=forever)
    )
    reached = threading.Event()

    def read() -> None:
        for event in microphone.events():
            if isinstance(event, Block | Unavailable):
                reached.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert reached.wait(DEADLINE_S)
    microphone.stop()
    reader.join(DEADLINE_S)
    assert not reader.is_alive()
    assert all(stream.is_closed.is_set() for stream in system.streams)


def test_stop_in_the_moment_of_opening_is_not_missed(
    system: FakeSoundDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    microphone = Microphone(recovery=PATIENT)
    system.on_start = lambda _: None  # a device that never records would be waited for
    result = Detached.result

    def stop_then_result(call: Detached[Any]) -> Any:
        microphone.stop()
        return result(call)

    monkeypatch.setattr(Detached, "result", stop_then_result)
    assert list(microphone.events()) == []
    assert system.streams[0].is_closed.is_set()


def test_stop_closes_a_device_that_opens_too_late(system: FakeSoundDevice) -> None:
    system.may_open.clear()
    microphone = Microphone(recovery=Recovery(call_s=0.02))
    events = microphone.events()
    until(events, Unavailable)
    microphone.stop()
    assert not [event for event in events if isinstance(event, Opened | Block)]
    system.may_open.set()
    assert system.has_opened.wait(DEADLINE_S)
    assert system.streams[0].is_closed.wait(DEADLINE_S)


def test_stop_does_not_make_the_process_wait_for_an_abort_that_hangs(
    system: FakeSoundDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[object] = []
    monkeypatch.setattr(atexit, "unregister", forgotten.append)
    system.may_abort.clear()
    microphone = Microphone(recovery=Recovery(call_s=0.05, first_block_s=DEADLINE_S))
    events = microphone.events()
    until(events, Block)
    microphone.stop()
    assert list(events) == []
    assert forgotten == [system._exit_handler]
    system.may_abort.set()
    assert system.streams[0].is_closed.wait(DEADLINE_S)


# ---- the ledger --------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(["block", "away", "reopen"]), st.integers(20, 3_000)),
        max_size=50,
    ),
    st.sampled_from([8_000, 16_000, 44_100]),
)
def test_received_and_lost_frames_add_up_to_the_time_that_passed(
    steps: list[tuple[str, int]], rate_hz: int
) -> None:
    ledger, block = LossLedger(), rate_hz // 50
    ledger.opened(rate_hz)
    ledger.received(CapturedBlock(0, 0, b"", False), block)  # the count starts with it
    now_ns, total, first_frame, is_recording = 0, 0, block, True
    for what, wait_ms in steps:
        if what == "block":
            # A running device keeps its pace; one that was away comes when it comes.
            now_ns += (20 if is_recording else wait_ms) * 1_000_000
            lost, _ = ledger.received(CapturedBlock(first_frame, now_ns, b"", False), block)
            assert lost >= 0
            total += lost + block
            first_frame, is_recording = first_frame + block, True
            # Whole frames are reported, so each step may hold one back.
            assert abs(total - now_ns * rate_hz / 1e9) <= 1 + len(steps)
        else:
            now_ns += wait_ms * 1_000_000
            if what == "away":
                total += ledger.away(now_ns)
            ledger.opened(rate_hz)
            first_frame, is_recording = 0, False
