"""The real model on real speech: few clips, every promise of the recogniser once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.frames import Segment
from voiced.audio.sources.media import read_all
from voiced.engine import golden
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, UnknownLanguage
from voiced.engine.families.whisper_graphs import cell_lengths
from voiced.engine.families.whisper_model import WhisperModel
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.stable import tokens_of
from voiced.engine.types import EngineConfig, Gear, Request, RequestKind, Transcript

pytestmark = pytest.mark.model

EN = "en_commands_misc/turn_on_the_living_room_lamp"
EN_LONG = "en_misc/jfk"
ZH = "zh_multispeaker/SSB02000375"


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Iterator[Recognizer]:
    loaded = load_recognizer(EngineConfig(bundle_dir=str(bundle), max_batch=3, n_best=2))
    loaded.warm(lambda _: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def clips(speech_dir: Path) -> dict[str, np.ndarray]:
    names = (EN, EN_LONG, ZH)
    return {n: np.rint(read_all(speech_dir / f"{n}.flac") * 32767).astype(np.int16) for n in names}


def ask(
    pcm: np.ndarray, language: str | None = None, kind: RequestKind = RequestKind.FINAL
) -> Request:
    return Request(Segment(7, "test", 0, pcm, language), kind=kind, revision=3)


def one(recognizer: Recognizer, request: Request) -> Transcript:
    (answer,) = recognizer.recognize([request])
    assert isinstance(answer, Transcript)
    return answer


def test_english_and_mandarin_are_read(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    answer = one(recognizer, ask(clips[EN], "en"))
    assert "turn on the living room lamp" in answer.text.lower()
    assert (answer.segment, answer.revision, answer.is_final) == (7, 3, True)
    assert 0.5 < answer.confidence <= 1
    assert answer.n_best[0][0] == answer.text
    assert len(answer.n_best) == 2
    assert answer.timings.steps > 3
    answer = one(recognizer, ask(clips[ZH], "zh"))
    assert "销售过程管理" in answer.text


def test_the_language_is_found_among_those_configured(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    assert one(recognizer, ask(clips[EN_LONG])).language == "en"
    answer = one(recognizer, ask(clips[ZH]))
    assert answer.language == "zh"
    assert "销售过程管理" in answer.text


def test_a_batch_gives_each_its_own_text(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    quiet = (clips[EN] // 3).astype(np.int16)
    requests = [ask(clips[ZH][:47_000], "zh"), ask(clips[EN], None), ask(quiet, "en")]
    assert len({recognizer.batch_key(request) for request in requests}) == 1
    alone = [one(recognizer, r).text for r in requests]
    together = [a.text for a in recognizer.recognize(requests) if isinstance(a, Transcript)]
    assert together == alone


def test_a_partial_is_greedy_and_says_the_same(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    answer = one(recognizer, ask(clips[EN], "en", RequestKind.PARTIAL))
    assert "living room lamp" in answer.text.lower()
    assert not answer.is_final
    final = ask(clips[EN], "en")
    assert recognizer.batch_key(final) != recognizer.batch_key(
        ask(clips[EN], "en", RequestKind.PARTIAL)
    )


def test_partials_and_early_texts_say_how_sure_each_word_is(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    for kind in (RequestKind.PARTIAL, RequestKind.EAGER):
        for name, language in ((EN, "en"), (EN_LONG, "en"), (ZH, "zh")):
            answer = one(recognizer, ask(clips[name], language, kind))
            assert len(answer.chances) == len(tokens_of(answer.text)) > 5
            assert all(0 < chance <= 1 for chance in answer.chances)
            assert min(answer.chances) < answer.confidence < max(answer.chances)
    assert one(recognizer, ask(clips[EN], "en")).chances == ()
    pieces = one(recognizer, ask(np.tile(clips[EN_LONG], 4), "en", RequestKind.PARTIAL))
    assert len(pieces.chances) == len(tokens_of(pieces.text))


def test_what_no_gear_holds_is_read_piece_by_piece(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    long = np.tile(clips[EN_LONG], 4)  # 44 s
    answer = one(recognizer, ask(long, "en"))
    assert answer.text.lower().count("fellow americans") == 4


@pytest.mark.parametrize("language", ["en", "zh", None])
def test_digital_silence_gives_no_text(recognizer: Recognizer, language: str | None) -> None:
    for samples in (0, 1, 399, 160_000, 40 * 16_000):
        assert one(recognizer, ask(np.zeros(samples, np.int16), language)).text == ""


def test_a_full_batch_of_long_segments_is_read(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    requests = [ask(clips[EN_LONG], "en")] * 3  # 11 s: the arena takes fewer together
    answers = recognizer.recognize(requests)
    assert [a.text for a in answers if isinstance(a, Transcript)] == [
        one(recognizer, requests[0]).text
    ] * 3


def test_a_beam_of_sixteen_has_room_for_every_row() -> None:
    assert cell_lengths(16, 224)[-1] >= 4 + 16 * 224
    assert list(cell_lengths(1, 224)) == sorted(cell_lengths(1, 224))


def test_a_language_that_the_model_does_not_know_fails_alone(
    recognizer: Recognizer, clips: dict[str, np.ndarray]
) -> None:
    bad, good = recognizer.recognize([ask(clips[EN], "qq"), ask(clips[EN], "en")])
    assert isinstance(bad, UnknownLanguage)
    assert isinstance(good, Transcript)
    assert "lamp" in good.text.lower()


def test_an_unknown_configured_language_is_refused_at_load(bundle: Path) -> None:
    with pytest.raises(UnknownLanguage, match="qq"):
        load_recognizer(EngineConfig(bundle_dir=str(bundle), languages=("en", "qq")))


def test_the_golden_pair_holds_and_a_wrong_one_is_noticed(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle, verify="size")
    assert "golden pair ok" in golden.check(opened)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with np.load(copy / golden.GOLDEN_OUTPUT) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["cross_k"] = arrays["cross_k"] * 1.2
    np.savez(copy / golden.GOLDEN_OUTPUT, **arrays)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["files"][golden.GOLDEN_OUTPUT]
    entry["bytes"] = (copy / golden.GOLDEN_OUTPUT).stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="numbers off by"):
        golden.check(Bundle.open(copy, verify="size"))


def test_the_golden_pair_bears_features_that_differ_in_their_last_bits(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, noise = WhisperModel.features, np.random.default_rng(0)

    def rounded(self: WhisperModel, pcm: np.ndarray, gear: Gear) -> np.ndarray:
        features = exact(self, pcm, gear)
        return (features + 1e-6 * noise.standard_normal(features.shape)).astype(np.float32)

    monkeypatch.setattr(WhisperModel, "features", rounded)
    opened = Bundle.open(bundle, verify="size")
    for _ in range(5):
        assert "golden pair ok" in golden.check(opened)
