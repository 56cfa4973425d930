"""The whole product on real speech: real daemon, sockets, bus, detector, model and plugin."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soxr
from tests.system import virtual_microphone
from tests.system.running_daemon import (
    DEADLINE_S,
    RATE_HZ,
    Daemon,
    Subscriber,
    finals,
    launch,
    receive_until,
    say,
    silence,
    stream,
    subscribed,
)

from voiced.audio.frames import Encoding, StreamFormat
from voiced.audio.pcm import PcmReader
from voiced.audio.sources.media import read_all
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.scoring import score

pytestmark = [pytest.mark.model, pytest.mark.speech]

Float32 = npt.NDArray[np.float32]

ENGLISH = ("en_commands_misc/turn_on_the_living_room_lamp", "turn on the living room lamp")
MANDARIN = ("zh_multispeaker/SSB02000375", "销售过程管理")
PLAY_ENGLISH = ("en_commands_misc/rh3-play_the_beatles", "beatles")
PLAY_MANDARIN = ("zh_aishell1/BAC009S0150W0060", "我们好像在哪见过")
LONG = "long/lj001-joined"
LONG_S = 42.2
"""A pause of the long recording: the whole of its first five sentences."""


@pytest.fixture(scope="module")
def daemon(
    bundle: Path, speech_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """`voiced run` with its defaults, ready; all tests of this file share it."""
    running = launch(tmp_path_factory.mktemp("daemon"))
    try:
        running.wait_ready()
        yield running
        running.process.terminate()
        assert running.wait_exit() == 0
    finally:
        running.kill()


@pytest.fixture
def bus(daemon: Daemon) -> Iterator[Subscriber]:
    with subscribed(daemon) as subscriber:
        yield subscriber


@pytest.fixture(scope="module")
def clip(speech_dir: Path) -> Any:
    def read(name: str) -> Float32:
        return read_all(speech_dir / f"{name}.flac")

    return read


def pcm16(samples: Float32) -> bytes:
    return np.rint(samples * 32767).astype("<i2").tobytes()


def text_of(messages: list[dict[str, Any]]) -> str:
    """The finals in the order of speech, which need not be that of their arrival."""
    in_order = sorted(finals(messages), key=lambda final: int(final["segment"]))
    return " ".join(final["text"] for final in in_order).lower()


def words_of(text: str) -> list[str]:
    return builtin_normaliser().units(text, "en")


def test_english_and_mandarin_are_on_the_bus_in_order_with_their_places(
    daemon: Daemon, bus: Subscriber, clip: Any
) -> None:
    async def talk() -> None:
        async with asyncio.TaskGroup() as both:
            for name, (recording, _) in (("en", ENGLISH), ("zh", MANDARIN)):
                pcm = silence(0.5) + pcm16(clip(recording)) + silence(1.0)
                both.create_task(say(daemon, pcm, stream=name))

    asyncio.run(talk())
    bus.until_ended("en", "zh")
    numbers = [message["seq"] for message in bus.messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len({message["epoch"] for message in bus.messages}) == 1
    for name, (_, words) in (("en", ENGLISH), ("zh", MANDARIN)):
        about = bus.of(name)
        (started,) = bus.of(name, "speech_started")
        (ended,) = bus.of(name, "speech_ended")
        (final,) = bus.of(name, "final")
        order = [about.index(message) for message in (started, ended, final)]
        assert order == sorted(order)
        assert [about[0]["type"], about[-1]["type"]] == ["ready", "ended"]
        assert words in final["text"].lower()
        assert final["language"] == name
        assert 0.5 < final["confidence"] <= 1
        assert 0 <= started["start_ms"] == final["start_ms"] < final["end_ms"]
        assert final["end_ms"] == ended["end_ms"] <= about[-1]["audio_ms"]
        assert 0 < final["latency_ms"] < DEADLINE_S * 1000
        assert final["wall_ms"] >= ended["wall_ms"]
        revisions = [message["revision"] for message in bus.of(name, "partial", "final")]
        assert revisions == sorted(set(revisions))


def test_long_speech_cut_at_the_maximum_loses_and_doubles_no_word(
    daemon: Daemon, clip: Any, speech_dir: Path
) -> None:
    entries = map(json.loads, (speech_dir / "long.jsonl").read_text("utf-8").splitlines())
    (entry,) = [entry for entry in entries if entry["id"] == LONG]
    spoken = " ".join(part["text"] for part in entry["segments"] if part["end"] < LONG_S)
    spoken = spoken.translate({ord("("): None, ord(")"): None})  # spoken, too
    pcm = pcm16(clip(LONG)[: round(LONG_S * RATE_HZ)]) + silence(1.0)

    async def talk() -> list[dict[str, Any]]:
        vad = {"max_segment_s": 8.0}
        return await say(daemon, pcm, language="en", partials=False, vad=vad)

    messages = asyncio.run(talk())
    ends = [message for message in messages if message["type"] == "speech_ended"]
    assert sum(end["reason"] == "max_length" for end in ends) >= 3
    for before, after in pairwise(ends):
        if before["reason"] == "max_length":
            assert after["start_ms"] == before["end_ms"]  # the cuts meet
    said, heard = words_of(spoken), words_of(text_of(messages))
    result = score(said, heard)
    assert result.errors <= 0.15 * result.reference, heard
    assert abs(result.hypothesis - result.reference) <= 3, heard
    assert [word for word, following in pairwise(heard) if word == following] == []


def mulaw(samples: Float32) -> bytes:
    """Encode by the nearest of the 256 values that the codes stand for."""
    reader = PcmReader(StreamFormat(Encoding.MULAW, 8_000, 1))
    values = reader.feed(bytes(range(256)))
    order = np.argsort(values)
    right = np.clip(np.searchsorted(values[order], samples), 1, 255)
    is_left = samples - values[order][right - 1] < values[order][right] - samples
    return order[np.where(is_left, right - 1, right)].astype(np.uint8).tobytes()


def test_any_encoding_a_dc_offset_and_clipping_give_the_same_words(
    daemon: Daemon, clip: Any
) -> None:
    speech = np.pad(clip(ENGLISH[0]), (RATE_HZ // 2, RATE_HZ))
    at_48k = soxr.resample(speech, RATE_HZ, 48_000).astype("<f4")
    offset = np.where(speech == 0, 0, speech + np.float32(0.2))
    formats = {
        "8 kHz mu-law": (
            mulaw(soxr.resample(speech, RATE_HZ, 8_000)),
            {"encoding": "mulaw", "rate_hz": 8_000},
        ),
        "48 kHz stereo": (
            np.stack([at_48k, at_48k], axis=1).tobytes(),
            {"encoding": "pcm_f32le", "rate_hz": 48_000, "channels": 2},
        ),
        "dc offset": (pcm16(offset.clip(-1, 1).astype(np.float32)), {}),
        "clipped": (pcm16((speech * 10).clip(-1, 1).astype(np.float32)), {}),
    }

    async def talk() -> dict[str, asyncio.Task[list[dict[str, Any]]]]:
        async with asyncio.TaskGroup() as group:
            return {
                name: group.create_task(say(daemon, pcm, audio=audio, language="en"))
                for name, (pcm, audio) in formats.items()
            }

    heard = {name: text_of(task.result()) for name, task in asyncio.run(talk()).items()}
    assert [name for name, text in heard.items() if ENGLISH[1] not in text] == [], heard


def test_minutes_of_silence_with_a_dc_offset_say_nothing(daemon: Daemon) -> None:
    pcm = np.full(120 * RATE_HZ, 6_000, dtype="<i2").tobytes()
    messages = asyncio.run(say(daemon, pcm))
    assert [message["type"] for message in messages] == ["ended"]
    assert (messages[0]["segments"], messages[0]["audio_ms"]) == (0, 120_000)


def test_the_plugin_process_publishes_what_a_spoken_command_means(
    daemon: Daemon, bus: Subscriber, clip: Any, tmp_path: Path
) -> None:
    where = daemon.addresses()
    command = [
        *(sys.executable, "-m", "voiced.daemon.cli", "plugins", "run", "intents"),
        *("--bus", where["bus"], "--ingest", where["ingest"]),
    ]
    with (tmp_path / "log").open("wb") as log:
        plugin = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        log_file = tmp_path / "log"
        daemon.wait_for("plugin", lambda: "plugin started" in log_file.read_text("utf-8"))
        for name, language, (recording, title) in (
            ("play-en", "en", PLAY_ENGLISH),
            ("play-zh", "zh", PLAY_MANDARIN),
        ):
            pcm = silence(0.5) + pcm16(clip(recording)) + silence(1.0)
            asyncio.run(say(daemon, pcm, stream=name, language=language))
            intent = bus.until(lambda message: message["type"] == "intent")
            (final,) = bus.of(name, "final")
            assert (intent["stream"], intent["segment"]) == (name, final["segment"])
            assert intent["name"] == "PlayMusic"
            assert title in json.dumps(intent["slots"], ensure_ascii=False).lower()
            assert intent["plugin"] == "intents"
        plugin.terminate()
        assert plugin.wait(DEADLINE_S) == 0
    finally:
        if plugin.poll() is None:
            plugin.kill()
            plugin.wait()


def test_a_worker_killed_in_mid_segment_costs_no_word_and_other_streams_only_time(
    daemon: Daemon, bus: Subscriber, clip: Any
) -> None:
    (worker,) = daemon.worker_pids()
    english, mandarin = (pcm16(clip(recording)) for recording, _ in (ENGLISH, MANDARIN))

    async def talk() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with (
            stream(daemon, stream="killed", language="en") as first,
            stream(daemon, stream="other", language="zh") as second,
        ):
            half = len(english) // 4 * 2
            await first.send(silence(0.5) + english[:half])
            before = await receive_until(first, "speech_started")
            os.kill(worker, signal.SIGKILL)
            await first.send(english[half:] + silence(1.0))
            await second.send(silence(0.5) + mandarin + silence(1.0))
            for each in (first, second):
                await each.send('{"type":"stop"}')
            heard = before + await receive_until(first, "ended")
            return heard, await receive_until(second, "ended")

    for heard, words in zip(asyncio.run(talk()), (ENGLISH[1], MANDARIN[1]), strict=True):
        assert len(finals(heard)) == 1
        assert words in text_of(heard)
    bus.until_ended("killed", "other")
    assert not [message for message in bus.messages if message["type"] == "failed"]
    daemon.wait_ready()
    assert daemon.worker_pids() not in ([], [worker])


@pytest.mark.device
def test_what_is_said_into_the_microphone_is_on_the_bus(
    bundle: Path, clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with virtual_microphone.running(monkeypatch) as virtual:
        device = ("--microphone", "--device", virtual_microphone.DEVICE)
        daemon = launch(tmp_path, *device, VOICED_MODEL_DIR=str(bundle.parent))
        try:
            daemon.wait_ready()
            with subscribed(daemon) as bus:
                daemon.wait_for("microphone", lambda: "microphone opened" in daemon.log)
                player = virtual.play(silence(1.0) + pcm16(clip(ENGLISH[0])) + silence(2.0))
                final = bus.until(lambda message: message["type"] in ("final", "failed"))
                assert player.wait(DEADLINE_S) == 0
                assert (final["type"], final["stream"]) == ("final", "microphone")
                assert ENGLISH[1] in final["text"].lower()
            daemon.process.terminate()
            assert daemon.wait_exit() == 0
        finally:
            daemon.kill()
