"""A bundle converted for a card and recognised on the stand-in for one: the whole path.

The text must be what ONNX Runtime gives for the same bundle, and what crosses is stated in bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.engine.tiny_whisper import MELS, build_tiny_whisper

from voiced.audio.frames import RATE_HZ, Segment
from voiced.audio.sources.media import read_all
from voiced.daemon.commands.convert import model_convert_ascend
from voiced.engine.backends.mindspore_lite import fake_api
from voiced.engine.backends.mindspore_lite.ascend import AscendBackend
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.graph import Precision
from voiced.engine.build.mindspore import ascend
from voiced.engine.build.mindspore.ascend_config import (
    VARIANTS,
    Aoe,
    AscendGraph,
    AscendOptions,
    Chip,
    ConversionRefused,
    variant_options,
)
from voiced.engine.build.mindspore.tools import ConversionFailed
from voiced.engine.bundle import Bundle
from voiced.engine.decode import Hypothesis
from voiced.engine.errors import BundleError
from voiced.engine.families.whisper import frames_needed
from voiced.engine.families.whisper_model import Utterance
from voiced.engine.families.whisper_recognizer import WhisperRecognizer
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.types import EngineConfig, Gear, Request, RequestKind, Transcript

BEAM = 5
STEP_UP = 4 * BEAM * 4 + BEAM * BEAM * 4 + BEAM * 4
"""Bytes to the card per step: tokens, positions, parents, cells; who sees whom; scores."""
STEP_DOWN = 3 * (BEAM + 1) * 4 + BEAM * 4
"""Bytes from it: scores, rows and tokens of the best, and the scores of stopping."""


def fused(graph: AscendGraph) -> AscendOptions:
    return variant_options(graph, Chip.ASCEND_910B, VARIANTS[1])


def convert(bundle: Path, gears: list[Gear], options: object = fused) -> Bundle:
    ascend.convert_ascend(
        Bundle.open(bundle, verify="size"),
        gears,
        options,  # type: ignore[arg-type]
        ascend.library_runner(fake_api),
        AscendBackend("ascend:0", fake_api),
        lambda _: None,
        library="stand-in",
    )
    return Bundle.open(bundle, verify="size")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = build_tiny_whisper(tmp_path_factory.mktemp("models") / "tiny")
    return convert(folder, [Gear(200), Gear(400), Gear(800)])


@pytest.fixture
def card() -> Iterator[fake_api.FakeDevice]:
    fake_api.card.reset()
    yield fake_api.card
    fake_api.card.reset()


def config(bundle: Bundle) -> EngineConfig:
    return EngineConfig(
        str(bundle.root), backend="mindspore_lite", beam=BEAM, max_batch=1, max_segment_s=8.0
    )


def sound(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tone = np.sin(2 * np.pi * rng.uniform(100, 900) * t) + rng.normal(size=len(t)) * 0.3
    return np.rint(tone * 6000).astype(np.int16)


def ask(
    recognizer: Recognizer, pcm: np.ndarray, kind: RequestKind = RequestKind.FINAL
) -> Transcript:
    (answer,) = recognizer.recognize([Request(Segment(1, "test", 0, pcm, "en"), kind=kind)])
    assert isinstance(answer, Transcript)
    return answer


def test_one_artifact_per_graph_holds_all_gears_with_a_report_of_its_numbers(tiny: Bundle) -> None:
    target = tiny.target(ascend.TARGET)
    assert [a.role for a in target.artifacts] == ["prefill", "step"]
    for artifact in target.artifacts:
        assert artifact.axes == {}
        assert artifact.options["optimize"] == "ascend_oriented:910b"
        assert artifact.parity.samples > 0
        assert all(artifact.parity.ids_equal.values())
        assert max(artifact.parity.max_abs_diff.values()) < 1e-5
    assert "ge.dynamicDims" in (tiny.root / target.log).read_text()


def hypotheses(recognizer: Recognizer, pcm: np.ndarray, beam: int) -> list[Hypothesis]:
    """Everything the search found; random weights rarely end a text, so texts would be empty."""
    assert isinstance(recognizer, WhisperRecognizer)
    model = recognizer.model
    gear = model.gears.pick(1, frames_needed(len(pcm)))
    with model.lend(gear) as loan:
        loan.prefill([model.features(pcm, gear)])
        (found,) = model.decode(loan, [Utterance(len(pcm), None)], beam=beam, configured=("en",))
    return found.hypotheses


def test_sounds_of_all_gears_in_turn_give_what_onnx_runtime_gives(
    tiny: Bundle, card: fake_api.FakeDevice
) -> None:
    ours = load_recognizer(config(tiny), AscendBackend("ascend:0", fake_api))
    theirs = load_recognizer(config(tiny), OrtBackend())
    ours.warm(lambda _: None)
    texts = set()
    for seconds in (1.5, 7.0, 3.5, 1.2, 7.9):  # gears that ONNX Runtime would choose too
        pcm = sound(seconds, seed=int(seconds * 10))
        for beam in (BEAM, 1):
            found, expected = hypotheses(ours, pcm, beam), hypotheses(theirs, pcm, beam)
            assert [h.tokens for h in found] == [h.tokens for h in expected]
            assert [h.score for h in found] == pytest.approx([h.score for h in expected])
            texts.add(found[0].tokens)
    assert len(texts) > 3
    assert card.implicit_bytes == 0
    names = [name for name, _ in card.calls if name in {"add_model", "build"}]
    assert names[0] == "add_model"  # one workspace for both, told before either was built
    assert card.counts["add_model"] == 1
    ours.close()
    theirs.close()


def test_what_crosses_is_the_features_once_and_a_handful_of_numbers_per_step(
    tiny: Bundle, card: fake_api.FakeDevice
) -> None:
    recognizer = load_recognizer(config(tiny), AscendBackend("ascend:0", fake_api))
    recognizer.warm(lambda _: None)
    for seconds, frames, cells in ((1.5, 200, 128), (7.0, 800, 224)):
        pcm = sound(seconds, seed=1)
        ask(recognizer, pcm)
        card.reset()
        answer = ask(recognizer, pcm)
        runs = card.counts["predict"] - 1  # one is the prefill
        specials = (2 + 2) * BEAM * 4  # end, no speech, two languages; of the prompt's call
        assert runs == answer.timings.steps + 1
        up = MELS * frames * 4 + cells * 4 + runs * STEP_UP
        down = runs * STEP_DOWN + specials
        assert (card.to_device, card.from_device) == (up, down)
        assert (answer.timings.to_device_bytes, answer.timings.from_device_bytes) == (up, down)
        assert card.implicit_bytes == 0
        assert card.counts["Tensor"] == 0
    recognizer.close()


def test_memory_of_the_card_is_flat_over_many_utterances(
    tiny: Bundle, card: fake_api.FakeDevice
) -> None:
    recognizer = load_recognizer(config(tiny), AscendBackend("ascend:0", fake_api))
    recognizer.warm(lambda _: None)
    for seconds in (1.5, 3.5, 7.0):
        ask(recognizer, sound(seconds, seed=2))
    gc.collect()  # recognisers of other tests
    held = card.tensor_bytes
    for number in range(30):
        ask(recognizer, sound((1.5, 3.5, 7.0)[number % 3], seed=number), RequestKind.PARTIAL)
    assert card.tensor_bytes == held
    recognizer.close()


def test_a_gear_that_was_not_converted_is_not_offered(tiny: Bundle) -> None:
    recognizer = load_recognizer(config(tiny), AscendBackend("ascend:0", fake_api))
    assert recognizer.info.max_segment_s == 8.0
    recognizer.close()


def test_a_bundle_without_artifacts_for_the_card_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(build_tiny_whisper(tmp_path / "plain"))
    with pytest.raises(BundleError, match="no converted artifacts"):
        load_recognizer(config(bundle), AscendBackend("ascend:0", fake_api))


def test_a_refused_or_failed_conversion_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    folder = build_tiny_whisper(tmp_path / "tiny")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}

    def wrong(graph: AscendGraph) -> AscendOptions:
        return AscendOptions(Chip.ASCEND_910B, aoe=Aoe.API)

    started = []

    def runner(*_: object) -> None:
        started.append(1)
        raise ConversionFailed("the converter ended with status 1")

    arguments = (Bundle.open(folder), [Gear(200)])
    rest = (runner, AscendBackend("ascend:0", fake_api), lambda _: None)
    with pytest.raises(ConversionRefused, match="aoe-provider"):
        ascend.convert_ascend(*arguments, wrong, *rest, library="x")
    assert not started
    with pytest.raises(ConversionFailed, match="status 1"):
        ascend.convert_ascend(*arguments, fused, *rest, library="x")
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"tiny", ".tiny.lock"}


def test_an_artifact_that_computes_wrongly_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_whisper(tmp_path / "tiny")
    good = ascend.library_runner(fake_api)

    def damaging(run, config, source, output, log):  # type: ignore[no-untyped-def]
        model = onnx.load(str(source))
        kept = next(t for t in model.graph.initializer if len(t.dims) == 2)
        values = np.frombuffer(kept.raw_data, np.float32) * 1.5
        kept.raw_data = values.astype(np.float32).tobytes()
        other = config.with_name(source.name)
        onnx.save(model, str(other))
        good(run, config, other, output, log)

    with pytest.raises(ConversionFailed, match="is not what ONNX Runtime computes"):
        ascend.convert_ascend(
            Bundle.open(folder),
            [Gear(200)],
            fused,
            damaging,
            AscendBackend("ascend:0", fake_api),
            lambda _: None,
            library="x",
        )
    assert not Bundle.open(folder).manifest.targets


def test_without_the_tool_it_is_said_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = build_tiny_whisper(tmp_path / "tiny")
    with pytest.raises(ascend.BackendUnavailable, match="no converter_lite on PATH"):
        ascend.convert_ascend(
            Bundle.open(folder),
            [Gear(200)],
            fused,
            ascend.run_tool,
            AscendBackend("ascend:0", fake_api),
            lambda _: None,
            library="x",
        )


def test_the_mask_and_the_types_are_read_off_the_graph(tiny: Bundle) -> None:
    axes = {"N": 1, "C": 128, "S": 700}
    graph = ascend.describe(tiny.path("step"), [axes, {**axes, "S": 1200, "C": 224}])
    assert (graph.body, graph.fp32_tail, graph.lowest_constant) == ("fp32", True, -1e4)
    assert len(graph.gears) == 2
    with pytest.raises(ValueError, match="open axis 'S'"):
        ascend.describe(tiny.path("step"), [{"N": 1, "C": 128}])


@pytest.mark.model
def test_real_speech_is_read_as_onnx_runtime_reads_it(
    tmp_path: Path, speech_dir: Path, resident_bundle: Path, card: fake_api.FakeDevice
) -> None:
    target = tmp_path / resident_bundle.name
    target.mkdir()
    for path in resident_bundle.iterdir():
        (target / path.name).symlink_to(path)
    bundle = convert(target, [Gear(400)])
    ours = load_recognizer(config(bundle), AscendBackend("ascend:0", fake_api))
    theirs = load_recognizer(config(bundle), OrtBackend())
    for name, words in (
        ("en_commands_misc/turn_on_the_living_room_lamp", "living room lamp"),
        ("zh_multispeaker/SSB02000375", "销售过程管理"),
    ):
        pcm = np.rint(read_all(speech_dir / f"{name}.flac") * 32767).astype(np.int16)[:64_000]
        requests = [Request(Segment(1, "test", 0, pcm, name[:2]))]
        (found,), (expected,) = ours.recognize(requests), theirs.recognize(requests)
        assert isinstance(found, Transcript)
        assert isinstance(expected, Transcript)
        assert found.n_best == expected.n_best
        assert words in found.text.lower()
    assert card.implicit_bytes == 0
    ours.close()
    theirs.close()


def test_configurations_are_written_where_there_is_no_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, configs = build_tiny_whisper(tmp_path / "tiny"), tmp_path / "configs"
    status = model_convert_ascend(
        str(bundle), gears_s=[2, 8], chip="310P", variant="aoe", device="ascend:0",
        config_dir=configs,
    )  # fmt: skip
    assert status == 0
    assert {path.name for path in configs.iterdir()} == {"prefill-1.cfg", "step-1.cfg"}
    text = (configs / "step-1.cfg").read_text(encoding="utf-8")
    assert 'aoe_mode="subgraph tuning, operator tuning"' in text
    assert 'ge.dynamicDims="128,' in text
    commands = capsys.readouterr().out.splitlines()
    assert [command.split()[0] for command in commands] == ["converter_lite"] * 2
    assert not Bundle.open(bundle).manifest.targets


def test_a_bundle_in_fp16_keeps_its_scores_in_fp32_and_its_memory_in_fp16(
    tmp_path: Path, card: fake_api.FakeDevice
) -> None:
    bundle = convert(
        build_tiny_whisper(tmp_path / "half", precision=Precision.FP16), [Gear(200), Gear(800)]
    )
    step = ascend.describe(bundle.path("step"), [{"N": 1, "C": 128, "S": 700}])
    assert (step.body, step.fp32_tail) == ("fp16", True)
    assert abs(step.lowest_constant) <= 65504
    log = (bundle.root / bundle.target(ascend.TARGET).log).read_text()
    assert log.count("precision_mode=enforce_origin") == 2
    ours = load_recognizer(config(bundle), AscendBackend("ascend:0", fake_api))
    theirs = load_recognizer(config(bundle), OrtBackend())
    pcm = sound(1.5, seed=4)
    found, expected = hypotheses(ours, pcm, BEAM), hypotheses(theirs, pcm, BEAM)
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    kinds = {detail.split()[0] for name, detail in card.calls if name == "Tensor"}
    assert kinds == {"FLOAT16", "FLOAT32", "INT32"}
    assert card.implicit_bytes == 0
    ours.close()
    theirs.close()
