"""The fp32 model with its caches on the device, on real speech, against the host's caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from voiced.audio.frames import Segment
from voiced.audio.sources.media import read_all
from voiced.engine import golden
from voiced.engine.backends.base import Tensors
from voiced.engine.backends.onnxruntime import OrtBackend, OrtCall, OrtSession, OrtTensor
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, LeaseError, StateLost
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.types import EngineConfig, Gear, Request, RequestKind, Transcript

pytestmark = pytest.mark.model

LAMP = "en_commands_misc/turn_on_the_living_room_lamp"
JFK = "en_misc/jfk"
ZH = "zh_multispeaker/SSB02000375"
STEP_TO, STEP_FROM = 200, 92
"""Bytes of one step of five rows, see test_resident.py."""


@pytest.fixture(scope="module")
def recognizer(resident_bundle: Path) -> Iterator[Recognizer]:
    loaded = load_recognizer(EngineConfig(bundle_dir=str(resident_bundle)))
    loaded.warm(lambda _: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def clips(speech_dir: Path) -> dict[str, np.ndarray]:
    return {
        name: np.rint(read_all(speech_dir / f"{name}.flac") * 32767).astype(np.int16)
        for name in (LAMP, JFK, ZH)
    }


def ask(
    recognizer: Recognizer,
    pcm: np.ndarray,
    language: str | None = None,
    kind: RequestKind = RequestKind.FINAL,
) -> Transcript:
    (answer,) = recognizer.recognize([Request(Segment(7, "test", 0, pcm, language), kind=kind)])
    assert isinstance(answer, Transcript)
    return answer


def test_english_and_mandarin_are_read_and_told_apart(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    for language in ("en", None):
        answer = ask(recognizer, clips[LAMP], language)
        assert "turn on the living room lamp" in answer.text.lower()
        assert answer.language == "en"
    answer = ask(recognizer, clips[ZH])
    assert answer.language == "zh"
    assert "销售过程管理" in answer.text


def test_a_partial_is_greedy_on_the_same_graph(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    answer = ask(recognizer, clips[LAMP], "en", RequestKind.PARTIAL)
    assert "living room lamp" in answer.text.lower()


def test_what_no_gear_holds_is_read_piece_by_piece(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    answer = ask(recognizer, np.tile(clips[JFK], 4), "en")  # 44 s
    assert answer.text.lower().count("fellow americans") == 4


def test_requests_beyond_the_batch_of_the_gears_are_answered_one_after_the_other(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    assert recognizer.max_batch == 1
    requests = [Request(Segment(i, "test", 0, clips[name])) for i, name in enumerate((LAMP, ZH))]
    texts = [a.text for a in recognizer.recognize(requests) if isinstance(a, Transcript)]
    assert texts == [ask(recognizer, clips[name]).text for name in (LAMP, ZH)]


def test_an_utterance_moves_its_features_and_a_few_numbers_per_step(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    pcm = clips[LAMP]
    ask(recognizer, pcm, "en")  # the gear's constants are on the device now
    timings = ask(recognizer, pcm, "en").timings
    features, cells, specials = 80 * 400 * 4, 128 * 4, 5 * 101 * 4
    calls = timings.steps + 1  # and the prompt
    assert timings.to_device_bytes == features + cells + calls * STEP_TO
    assert timings.from_device_bytes == specials + calls * STEP_FROM


def test_the_golden_pair_holds(resident_bundle: Path) -> None:
    opened = Bundle.open(resident_bundle, verify="size")
    assert "golden pair ok" in golden.check(opened)


def test_a_beam_wider_than_the_graph_is_refused_at_load(resident_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"5 rows.*engine\.beam = 6.*set engine\.beam to 5"):
        load_recognizer(EngineConfig(bundle_dir=str(resident_bundle), beam=6))


def test_all_live_gears_are_warmed_where_shapes_are_compiled(resident_bundle: Path) -> None:
    class Compiling(OrtBackend):
        compiles_shapes = True

    config = EngineConfig(bundle_dir=str(resident_bundle), max_segment_s=6, beam=2)
    loaded = load_recognizer(config, Compiling())
    said: list[str] = []
    loaded.warm(said.append)
    loaded.close()
    assert said == [f"warming gear {i} of 3 ({s} s)" for i, s in enumerate((6, 4, 2), 1)]


class Losing(OrtBackend):
    """Loses every tensor at the run after `is_lost` was set, as a replaced graph server does."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[OrtTensor] = []
        self.is_lost = False

    def load(self, path: Path, *, threads: int) -> OrtSession:
        session = super().load(path, threads=threads)
        allocate, bind = session.allocate, session.bind

        def noted(shape: tuple[int, ...], dtype: npt.DTypeLike) -> OrtTensor:
            self.tensors.append(allocate(shape, dtype))
            return self.tensors[-1]

        def guarded(inputs: Tensors, outputs: Tensors) -> OrtCall:
            call = bind(inputs, outputs)
            run = call.run
            call.run = lambda: run() if not self.is_lost else self.fail()  # type: ignore[method-assign]
            return call

        session.allocate, session.bind = noted, guarded  # type: ignore[method-assign]
        return session

    def fail(self) -> None:
        for tensor in self.tensors:
            tensor.array.fill(0)
        self.is_lost = False
        raise StateLost("the graph server was killed")


def test_a_request_that_is_begun_again_finds_its_constants_on_the_device(
    resident_bundle: Path, clips: dict[str, np.ndarray]
) -> None:
    backend = Losing()
    loaded = load_recognizer(EngineConfig(bundle_dir=str(resident_bundle)), backend)
    expected = ask(loaded, clips[LAMP], "en")
    for _ in range(2):
        backend.is_lost = True
        with pytest.raises(StateLost):
            ask(loaded, clips[LAMP], "en")
        again = ask(loaded, clips[LAMP], "en")
        assert (again.text, again.confidence) == (expected.text, expected.confidence)
    loaded.close()


def test_one_gear_is_lent_at_a_time(recognizer: Recognizer) -> None:
    model = recognizer.model  # type: ignore[attr-defined]
    with model.lend(Gear(200)), pytest.raises(LeaseError, match="still lent"):
        model.lend(Gear(400)).__enter__()


def test_the_manifest_says_what_stays_on_the_device(resident_bundle: Path) -> None:
    manifest = json.loads((resident_bundle / "manifest.json").read_text())
    resident = manifest["model"]["resident"]
    assert resident["rows"] == 5
    longest = [span["positions"] for span in resident["spans"]][-1]
    assert longest == manifest["model"]["encoder_positions"]
    assert manifest["quantisation"] == "none"
