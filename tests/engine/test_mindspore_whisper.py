"""The fp32 Whisper bundle, converted, recognises recorded speech as with ONNX Runtime."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.needs import missing

from voiced.audio.clock import SystemClock
from voiced.audio.frames import RATE_HZ, Segment
from voiced.audio.pcm import float_to_int16
from voiced.audio.sources.media import decode_file
from voiced.engine import store
from voiced.engine.backends.mindspore_lite.backend import MsliteBackend
from voiced.engine.build.mindspore.convert import choose_gears, convert_bundle
from voiced.engine.build.mindspore.tools import find_converter
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, EngineError
from voiced.engine.loop import FinalsFirst, run_engine
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.scheduler import Job, Scheduler
from voiced.engine.types import EngineConfig, Gear, Request, RequestKind, Transcript

MODEL = "whisper-base-fp32"
GEARS_S = (2, 4)
TARGET = "mindspore-cpu"
CLIPS_PER_SET = 4
SETS = ("en_commands_misc", "zh_aishell1", "zh_multispeaker")

pytestmark = [pytest.mark.model, pytest.mark.speech]


@dataclass(frozen=True, slots=True)
class Spoken:
    name: str
    language: str
    pcm: np.ndarray


@pytest.fixture(scope="module")
def converted(mslite_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with two gears converted; the store's own stays as it is."""
    try:
        built = store.resolve(MODEL)
    except BundleError as error:
        missing("MSLITE", f"{MODEL} is not built (`voiced model build {MODEL}`): {error}")
    folder = tmp_path_factory.mktemp("converted") / MODEL
    shutil.copytree(built, folder)
    bundle = Bundle.open(folder)
    stages: list[str] = []
    with closing(MsliteBackend(python=mslite_python, deadline_s=60.0)) as backend:
        gears = choose_gears(bundle, GEARS_S)
        convert_bundle(bundle, gears, find_converter(mslite_python), backend, stages.append)
    assert any("prefill" in stage for stage in stages)
    return folder


@pytest.fixture(scope="module")
def backend(mslite_python: Path) -> Iterator[MsliteBackend]:
    with closing(MsliteBackend(python=mslite_python, deadline_s=60.0)) as backend:
        yield backend


@pytest.fixture(scope="module")
def ours(converted: Path, backend: MsliteBackend) -> Iterator[Recognizer]:
    config = EngineConfig(str(converted), backend="mindspore_lite", max_segment_s=GEARS_S[-1])
    with closing(load_recognizer(config, backend)) as recognizer:
        recognizer.warm(lambda _: None)
        yield recognizer


@pytest.fixture(scope="module")
def theirs(converted: Path) -> Iterator[Recognizer]:
    config = EngineConfig(str(converted), options={"gears_of": TARGET})
    with closing(load_recognizer(config)) as recognizer:
        yield recognizer


@pytest.fixture(scope="module")
def speech(speech_dir: Path) -> list[Spoken]:
    found = []
    for name in SETS:
        lines = (speech_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        clips = [json.loads(line) for line in lines]
        short = [clip for clip in clips if clip["seconds"] <= GEARS_S[-1]][:CLIPS_PER_SET]
        for clip in short:
            blocks = [float_to_int16(block) for block in decode_file(speech_dir / clip["audio"])]
            found.append(Spoken(clip["id"], clip["lang"], np.concatenate(blocks)))
    assert {each.language for each in found} == {"en", "zh"}
    return found


def request(spoken: Spoken, kind: RequestKind = RequestKind.FINAL) -> Request:
    return Request(Segment(1, "test", 0, spoken.pcm.copy(), spoken.language), kind)


def text_of(recognizer: Recognizer, asked: Request) -> str:
    (answer,) = recognizer.recognize([asked])
    assert isinstance(answer, Transcript), answer
    return answer.text


def test_every_artifact_has_a_report_of_small_differences(converted: Path) -> None:
    target = Bundle.open(converted).target(TARGET)
    assert {artifact.role for artifact in target.artifacts} == {"prefill", "step"}
    assert [gear.frames for gear in target.gears] == [s * 100 for s in GEARS_S]
    for artifact in target.artifacts:
        assert artifact.file.endswith(".ms")
        assert artifact.parity.samples >= 2
        assert all(artifact.parity.ids_equal.values())
        keys = {n: d for n, d in artifact.parity.max_abs_diff.items() if "_k_" in n or "_v_" in n}
        assert keys
        assert max(keys.values()) < 2e-3


@pytest.mark.parametrize("kind", list(RequestKind))
def test_the_texts_are_those_of_onnxruntime(
    ours: Recognizer, theirs: Recognizer, speech: list[Spoken], kind: RequestKind
) -> None:
    pairs = [(text_of(ours, request(s, kind)), text_of(theirs, request(s, kind))) for s in speech]
    different = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(different) <= 0.05 * len(pairs), different
    assert sum(bool(text) for text, _ in pairs) >= 0.8 * len(pairs)


def test_a_graph_server_killed_between_or_in_requests_costs_a_retry_only(
    ours: Recognizer, theirs: Recognizer, backend: MsliteBackend, speech: list[Spoken]
) -> None:
    server = backend.server
    assert server is not None
    clock, restarts = SystemClock(), server.restarts
    queue = FinalsFirst(Scheduler(max_queued_finals=8), clock)
    found: dict[int, Transcript | EngineError] = {}
    for number, spoken in enumerate(speech[:3]):
        queue.submit(Job(number, request(spoken), clock.monotonic_ns()))
    queue.stop()
    os.kill(server.pid, signal.SIGKILL)
    run_engine(ours, queue, lambda job, outcome: found.update({job: outcome}), clock)
    assert server.restarts == restarts + 1
    for number, spoken in enumerate(speech[:3]):
        answer = found[number]
        assert isinstance(answer, Transcript), answer
        assert answer.text == text_of(theirs, request(spoken))


def test_speech_longer_than_the_converted_gears_is_cut(ours: Recognizer) -> None:
    assert ours.info.max_segment_s == GEARS_S[-1]
    noise = np.random.default_rng(0).integers(-300, 300, 9 * RATE_HZ, dtype=np.int16)
    (answer,) = ours.recognize([Request(Segment(1, "test", 0, noise, "en"))])
    assert isinstance(answer, Transcript), answer


def test_a_bundle_that_was_not_converted_is_refused_at_load(
    converted: Path, backend: MsliteBackend, tmp_path: Path
) -> None:
    plain = tmp_path / MODEL
    shutil.copytree(converted, plain)
    manifest = json.loads((plain / "manifest.json").read_text())
    made = manifest.pop("targets")[TARGET]
    for name in [made["log"], *(a["file"] for a in made["artifacts"])]:
        (plain / name).unlink()
        del manifest["files"][name]
    (plain / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"no converted artifacts.*--target {TARGET}"):
        load_recognizer(EngineConfig(str(plain)), backend)


def test_a_gear_that_was_not_converted_names_the_fix(converted: Path) -> None:
    bundle = Bundle.open(converted, verify="size")
    axes = {"N": 1, "2T": 1600, "T": 800, "P": 400}
    with pytest.raises(
        BundleError, match=r"prefill for .* with .*2T=200.*expected .*2T=1600.*gears"
    ):
        bundle.artifact(TARGET, "prefill", axes)
    assert Gear(1600) not in bundle.narrowed(TARGET).gears
