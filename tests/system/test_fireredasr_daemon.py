"""FireRedASR on the live path: file, WebSocket and bus, with a small generated model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.tiny_fireredasr import CHARACTERS, Tiny
from tests.system.running_daemon import (
    DEADLINE_S,
    Daemon,
    Subscriber,
    finals,
    launch,
    noise,
    receive_until,
    say,
    silence,
    stream,
    subscribed,
)

SOUND = silence(0.5) + noise(2.0) + silence(1.2) + noise(1.4) + silence(1.2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "tiny-firered2"
    return build_bundle(target, Tiny(2, 2, end_bias=5.0), gears_s=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def daemon(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = launch(
        tmp_path_factory.mktemp("daemon"),
        *("--model", str(bundle), "--set", "vad.kind=webrtc", "--set", "vad.max_segment_s=4"),
        *("--set", "engine.n_best=2"),
    )
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


def test_finals_with_words_and_alternatives_reach_client_and_bus(
    daemon: Daemon, bus: Subscriber, bundle: Path
) -> None:
    messages = asyncio.run(say(daemon, SOUND, stream="desk"))
    assert messages[0]["type"] == "speech_started"
    found = finals(messages)
    assert len(found) == 2
    for final in found:
        assert final["text"]
        assert final["language"] == "zh"
        assert 0 < final["confidence"] < 1
        assert final["n_best"][0]["text"] == final["text"]
        assert len(final["n_best"]) == 2
        assert "".join(w["text"] for w in final["words"]) == final["text"].replace(" ", "")
        places = [(w["start_ms"], w["end_ms"]) for w in final["words"]]
        assert places == sorted(places)
        assert all(final["start_ms"] <= start <= end <= final["end_ms"] for start, end in places)
    bus.until_ended("desk")
    published = bus.of("desk", "final")
    assert [each["text"] for each in published] == [each["text"] for each in found]
    assert [each["words"] for each in published] == [each["words"] for each in found]


def test_partials_come_while_the_speech_goes_on(daemon: Daemon) -> None:
    async def talk() -> list[dict[str, Any]]:
        async with stream(daemon, stream="talk") as connection:
            await connection.send(noise(2.0))
            partials = await receive_until(connection, "partial")
            await connection.send(silence(1.0))
            return partials + await receive_until(connection, "final")

    messages = asyncio.run(talk())
    (partial, *_) = [message for message in messages if message["type"] == "partial"]
    assert partial["text"]
    assert messages[-1]["text"]


def wav(path: Path, pcm: bytes) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(pcm)
    return path


def voiced(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "voiced.daemon.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_gives_the_same_texts_with_and_without_the_daemon(
    daemon: Daemon, bundle: Path, tmp_path: Path
) -> None:
    file = wav(tmp_path / "sound.wav", SOUND)
    spoken = [m["text"] for m in finals(asyncio.run(say(daemon, SOUND)))]
    written = voiced(
        *("transcribe", str(file), "--model", str(bundle), "--vad", "webrtc", "--format", "jsonl")
    )
    words = [word["text"] for segment in written[0]["segments"] for word in segment["words"]]
    assert "".join(words) == "".join(spoken).replace(" ", "")
    assert written[0]["text"].replace(" ", "") == "".join(spoken).replace(" ", "")


def test_a_file_can_be_streamed_at_the_speed_of_speech(daemon: Daemon, tmp_path: Path) -> None:
    pcm = noise(1.2) + silence(0.9)
    spoken = [m["text"] for m in finals(asyncio.run(say(daemon, pcm)))]
    streamed = voiced("stream", str(wav(tmp_path / "s.wav", pcm)), "--json", "--url", daemon.url)
    assert [m["text"] for m in streamed if m["type"] == "final"] == spoken != []


def test_a_text_step_that_is_missing_ends_the_start_with_its_name(
    bundle: Path, tmp_path: Path
) -> None:
    steps = "engine.fireredasr.text_steps=dots"
    daemon = launch(tmp_path, "--model", str(bundle), "--set", "vad.kind=webrtc", "--set", steps)
    try:
        assert daemon.wait_exit() == 1
    finally:
        daemon.kill()
    assert daemon.log.splitlines()[-1].startswith("voiced: no text step 'dots'; expected one of ")


def test_hotwords_of_a_stream_and_of_a_file_are_written(
    daemon: Daemon, bundle: Path, tmp_path: Path
) -> None:
    pcm = noise(1.0) + silence(1.2)
    (plain,) = finals(asyncio.run(say(daemon, pcm)))
    phrase = next(c for c in CHARACTERS if c not in plain["text"])
    (found,) = finals(asyncio.run(say(daemon, pcm, stream="hot", hotwords=[f"{phrase} :10"])))
    assert phrase in found["text"]
    file = tmp_path / "hotwords.txt"
    file.write_text(f"{phrase} :10\n", encoding="utf-8")
    sound = wav(tmp_path / "s.wav", pcm)
    chosen = ("--model", str(bundle), "--vad", "webrtc", "--format", "jsonl")
    written = voiced("transcribe", str(sound), *chosen, "--hotwords", str(file))
    assert written[0]["text"] == found["text"]
