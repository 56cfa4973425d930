"""`voiced model switch` against a running daemon."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tests.system.running_daemon import (
    Daemon,
    finals,
    launch,
    receive,
    receive_until,
    silence,
    stream,
    subscribed,
)

from voiced.audio.sources.media import read_all

CLIP = "en_commands_misc/turn_on_the_living_room_lamp"


async def switch(daemon: Daemon, name: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command; its exit status and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voiced.daemon.cli", "model", "switch", name, *arguments),
        *("--url", daemon.url.replace("/v1/stream", "/v1/admin")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "VOICED_DEBUG"},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def store(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real bundle, its copy, one with a damaged graph, and one that computes otherwise."""
    folder = tmp_path_factory.mktemp("store")
    for name in ("whisper-base", "second", "damaged", "changed"):
        shutil.copytree(bundle, folder / name)
        manifest = json.loads((folder / name / "manifest.json").read_bytes())
        manifest["name"] = name
        if name == "changed":  # as built, but built from other weights than its answer
            golden = folder / name / manifest["golden"]["output"]
            with np.load(golden) as stored:
                answer = {key: stored[key] for key in stored.files}
            answer["cross_k"] = -answer["cross_k"]
            np.savez(golden, **answer)
            entry = manifest["files"][golden.name]
            entry["bytes"] = golden.stat().st_size
            entry["sha256"] = sha256(golden.read_bytes()).hexdigest()
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
    with (folder / "damaged" / "step.onnx").open("r+b") as graph:
        graph.seek(1_000_000)
        byte = graph.read(1)
        graph.seek(1_000_000)
        graph.write(bytes([byte[0] ^ 1]))
    return folder


@pytest.fixture(scope="module")
def daemon(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    running = launch(folder, "--set", "vad.kind=webrtc", VOICED_MODEL_DIR=str(store))
    try:
        running.wait_ready()
        yield running
        running.process.terminate()
        assert running.wait_exit() == 0
    finally:
        running.kill()


@pytest.mark.model
@pytest.mark.speech
def test_a_bad_model_is_rolled_back_and_a_good_one_takes_over_without_a_lost_final(
    daemon: Daemon, speech_dir: Path
) -> None:
    pcm = np.rint(read_all(speech_dir / f"{CLIP}.flac") * 32767).astype("<i2").tobytes()
    turn = silence(0.5) + pcm + silence(1.0)

    def bundle() -> str:
        return str(json.loads(daemon.get("/v1/status")[1])["engine"]["bundle"])

    async def run() -> None:
        over = asyncio.Event()
        async with stream(daemon, stream="car", language="en") as connection:

            async def speak() -> None:
                while not over.is_set():
                    await connection.send(turn)
                    while (await receive(connection))["type"] != "final":
                        pass
                await connection.send('{"type":"stop"}')
                await receive_until(connection, "ended")

            speaking = asyncio.create_task(speak())
            first = await asyncio.to_thread(bundle)
            for name, reason in (("damaged", "step.onnx"), ("changed", "numbers off by")):
                status, out, err = await switch(daemon, name)
                assert status == 1, err
                assert out == f"checking {name}: every byte, and its golden pair\n"
                assert "voiced: the model was not switched: " in err
                assert reason in err
                assert await asyncio.to_thread(bundle) == first
            status, out, err = await switch(daemon, "second")
            assert (status, err) == (0, "")
            second = await asyncio.to_thread(bundle)
            assert second.startswith("second@")
            assert f"switched from {first} to {second}\n" in out
            over.set()
            await speaking

    with subscribed(daemon) as bus:
        asyncio.run(run())
        bus.until_ended("car")
        said = bus.of("car")
    begun = {message["segment"] for message in said if message["type"] == "speech_started"}
    answered = [message["segment"] for message in said if message["type"] == "final"]
    assert len(begun) >= 2
    assert sorted(answered) == sorted(begun)
    assert not [message for message in said if message["type"] == "failed"]
    texts = {final["text"].lower().strip(" .!") for final in finals(said) if final["text"]}
    assert all("living room lamp" in text for text in texts)


@pytest.mark.model
def test_what_is_not_here_is_said_and_changes_nothing(daemon: Daemon) -> None:
    status, _, err = asyncio.run(switch(daemon, "whisper-giant"))
    assert status == 3
    assert "the model was not switched" in err
    assert "voiced model pull whisper-giant" in err
    for path in ("../whisper-base", "/etc", "fake"):  # a client names no path
        status, _, err = asyncio.run(switch(daemon, path))
        assert status == 1
        assert "regex" in err
    status, _, err = asyncio.run(switch(daemon, "second", "--token-file", "/none"))
    assert status != 0
