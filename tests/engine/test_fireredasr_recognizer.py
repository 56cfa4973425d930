"""FireRedASR behind the engine's contract, with generated models: sound in, transcripts out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.fireredasr_cases import ENCODED, MODELS, SEARCHES, stored_goldens, unpacked
from tests.engine.tiny_fireredasr import Tiny

from voiced.audio.frames import RATE_HZ, Segment
from voiced.engine import golden
from voiced.engine.bundle import Bundle
from voiced.engine.errors import (
    BundleError,
    SegmentTooLong,
    TextPolicyUnavailable,
    UnknownLanguage,
)
from voiced.engine.families.ctc import align, greedy
from voiced.engine.families.fireredasr_model import FireRedModel
from voiced.engine.families.fireredasr_recognizer import FireRedRecognizer
from voiced.engine.families.fireredasr_words import token_times
from voiced.engine.recognizer import load_recognizer
from voiced.engine.split import split_quietly
from voiced.engine.types import EngineConfig, Request, RequestKind, Transcript

Pcm = npt.NDArray[np.int16]

V1 = Tiny(2, 1, end_bias=4.0)
V2 = Tiny(2, 2, end_bias=5.0)


def sound(seconds: float, seed: int = 0) -> Pcm:
    """Syllables of harmonics in some noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch = np.cumsum(random.uniform(90, 250, len(time) // 3200 + 1).repeat(3200)[: len(time)])
    tone = sum(np.sin(2 * np.pi * k * pitch / RATE_HZ) / k for k in range(1, 20))
    loud = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time)
    return np.rint(4000 * loud * tone + random.normal(0, 300, len(time))).astype(np.int16)


def request(pcm: Pcm, kind: RequestKind = RequestKind.FINAL, start: int = 0) -> Request:
    return Request(Segment(7, "desk", start, pcm, None), kind, revision=3)


def ask(recognizer: FireRedRecognizer, *requests: Request) -> list[Transcript]:
    answers = recognizer.recognize(requests)
    assert all(isinstance(answer, Transcript) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Transcript)]


def placed(answer: Transcript) -> list[tuple[str, int, int]]:
    return [(word.text, word.start_ms, word.end_ms) for word in answer.words]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        tiny.version: build_bundle(folder / tiny.name, tiny, gears_s=(1, 2, 4)) for tiny in (V1, V2)
    }


def load(folder: Path, **changes: object) -> FireRedRecognizer:
    config = EngineConfig(str(folder), max_batch=3, n_best=3, max_segment_s=4, **changes)  # type: ignore[arg-type]
    recognizer = load_recognizer(config)
    assert isinstance(recognizer, FireRedRecognizer)
    return recognizer


@pytest.fixture(scope="module")
def v1(bundles: dict[int, Path]) -> Iterator[FireRedRecognizer]:
    recognizer = load(bundles[1])
    yield recognizer
    recognizer.close()


@pytest.fixture(scope="module")
def v2(bundles: dict[int, Path]) -> Iterator[FireRedRecognizer]:
    recognizer = load(bundles[2])
    yield recognizer
    recognizer.close()


def test_it_says_what_it_is_and_warms_its_gears(v2: FireRedRecognizer) -> None:
    told: list[str] = []
    v2.warm(told.append)
    assert told == ["warming gear 1 of 2 (4 s)", "warming gear 2 of 2 (1 s)"]
    assert v2.info.languages == ("zh", "en")
    assert v2.info.warm_ms > 0
    assert v2.info.max_segment_s == pytest.approx(4, abs=0.05)


def test_a_segment_becomes_a_text_with_its_words(v2: FireRedRecognizer) -> None:
    (answer,) = ask(v2, request(sound(1.7), start=5 * RATE_HZ))
    assert (answer.segment, answer.revision, answer.is_final) == (7, 3, True)
    assert answer.text
    assert answer.text == answer.text.lower()  # version 2
    assert 0 < answer.confidence < 1
    assert answer.timings.steps > 3
    assert answer.bundle == v2.info.bundle
    assert "".join(w.text for w in answer.words) == answer.text.replace(" ", "")
    starts = [w.start_ms for w in answer.words]
    assert starts == sorted(starts)
    assert all(5000 <= w.start_ms <= w.end_ms <= 6700 for w in answer.words)
    weights = [w.confidence for w in answer.words]
    assert min(weights) <= answer.confidence <= max(weights)


def test_version_1_writes_upper_case_and_no_words(v1: FireRedRecognizer) -> None:
    texts = [ask(v1, request(sound(1.8, seed)))[0] for seed in range(4)]
    assert all(t.words == () and t.text == t.text.upper() for t in texts)
    assert any(c.isascii() and c.isalpha() for t in texts for c in t.text)
    assert all(t.confidence > 0 for t in texts if t.text)


def test_alternatives_come_best_first_and_begin_with_the_text(v2: FireRedRecognizer) -> None:
    (answer,) = ask(v2, request(sound(1.2)))
    assert len(answer.n_best) == 3
    assert answer.n_best[0][0] == answer.text
    scores = [score for _, score in answer.n_best]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 0


def test_a_batch_of_mixed_lengths_answers_what_each_gets_alone(v2: FireRedRecognizer) -> None:
    several = [request(sound(seconds, seed)) for seed, seconds in enumerate((0.4, 1.9, 0.9, 1.1))]
    alone = [ask(v2, each)[0] for each in several]
    together = ask(v2, *several)
    assert [a.text for a in together] == [a.text for a in alone]
    assert [placed(a) for a in together] == [placed(a) for a in alone]
    assert [a.confidence for a in together] == pytest.approx([a.confidence for a in alone])
    assert len({a.text for a in alone}) == 4


@pytest.mark.parametrize("samples", [0, 1, 399, 8000])
def test_too_little_sound_and_digital_silence_have_no_text(
    v2: FireRedRecognizer, samples: int
) -> None:
    pcm = np.zeros(samples, np.int16) if samples >= 400 else sound(1)[:samples]
    (answer,) = ask(v2, request(pcm))
    assert (answer.text, answer.words, answer.confidence, answer.n_best) == ("", (), 0.0, ())


def test_one_window_is_enough_for_an_answer(v2: FireRedRecognizer) -> None:
    (answer,) = ask(v2, request(sound(1)[:400]))
    assert answer.timings.steps == 1  # one encoder frame: one token, or the end


def test_what_no_gear_holds_is_cut_and_the_words_go_on(v2: FireRedRecognizer) -> None:
    pcm = np.concatenate([sound(3, 1), np.zeros(RATE_HZ // 4, np.int16), sound(3, 2)])
    (answer,) = ask(v2, request(pcm, start=RATE_HZ))
    pieces = split_quietly(pcm, round(v2.info.max_segment_s * RATE_HZ))
    assert len(pieces) == 2
    first = ask(v2, request(pieces[0], start=RATE_HZ))[0]
    second = ask(v2, request(pieces[1], start=RATE_HZ + len(pieces[0])))[0]
    assert answer.text.replace(" ", "") == (first.text + second.text).replace(" ", "")
    assert placed(answer) == placed(first) + placed(second)
    assert answer.timings.steps == first.timings.steps + second.timings.steps
    assert answer.n_best == ()


def test_beyond_200_s_a_segment_is_refused_and_its_neighbour_is_not(v2: FireRedRecognizer) -> None:
    long, short = v2.recognize([request(np.ones(200 * RATE_HZ + 1, np.int16)), request(sound(1))])
    assert isinstance(long, SegmentTooLong)
    assert "segment of 200 s; expected at most 200 s" in str(long)
    assert isinstance(short, Transcript)


def test_partials_of_version_2_come_from_the_ctc_head_without_a_step(
    v2: FireRedRecognizer,
) -> None:
    pcm = sound(1.5)
    (answer,) = ask(v2, request(pcm, RequestKind.PARTIAL))
    assert (answer.is_final, answer.timings.steps, answer.n_best, answer.words) == (
        False,
        0,
        (),
        (),
    )
    features = v2.model.features(pcm)
    with v2.model.lend(v2.model.gears.pick(1, len(features))) as loan:
        loan.prefill([features])
        tokens = greedy(loan.ctc(0), v2.model.tokens.blank).tokens
    written = "".join(v2.model.written.written(tokens)).replace("\u2581", " ").lower()
    assert answer.text.replace(" ", "") == written.replace(" ", "") != ""
    key, other = (v2.batch_key(request(pcm, kind)) for kind in RequestKind if kind != "eager")
    assert key != other


def test_partials_can_be_decoded_greedily(bundles: dict[int, Path], v1: FireRedRecognizer) -> None:
    partial = request(sound(1.5), RequestKind.PARTIAL)
    assert ask(v1, partial)[0].timings.steps > 0
    decoding = load(bundles[2], options={"fireredasr.partials": "beam"})
    assert ask(decoding, partial)[0].timings.steps > 0


def test_an_eager_request_is_searched_like_a_final(v2: FireRedRecognizer) -> None:
    eager, final = ask(
        v2, request(sound(1.5), RequestKind.EAGER), request(sound(1.5), RequestKind.FINAL)
    )
    assert eager.text == final.text
    assert placed(eager) == placed(final) != []
    assert [text for text, _ in eager.n_best] == [text for text, _ in final.n_best]
    assert (eager.is_final, final.is_final) == (False, True)


def test_languages_are_those_of_the_model(bundles: dict[int, Path], v2: FireRedRecognizer) -> None:
    with pytest.raises(UnknownLanguage, match=r"engine\.languages has fr; .* knows en, zh"):
        load(bundles[2], languages=("zh", "fr"))
    pinned = Request(Segment(1, "desk", 0, sound(1), "fr"))
    (answer,) = v2.recognize([pinned])
    assert isinstance(answer, UnknownLanguage)
    (answer,) = ask(v2, Request(Segment(1, "desk", 0, sound(1), "en")))
    assert answer.language == "en"


def test_the_settings_of_the_family_reach_text_and_search(
    bundles: dict[int, Path], v2: FireRedRecognizer
) -> None:
    given = {
        "fireredasr.casing": "upper",
        "fireredasr.spaces": "0",
        "fireredasr.eos_penalty": "0.2",
        "fireredasr.length_penalty": "0",
        "fireredasr.text_steps": "itn",
    }
    other = load(bundles[2], options=given)
    pcm = sound(1.9)
    plain, changed = ask(v2, request(pcm))[0], ask(other, request(pcm))[0]
    assert changed.text == changed.text.upper()
    assert len(changed.text) < len(plain.text)  # the end costs a fifth
    with pytest.raises(TextPolicyUnavailable, match="no text step 'dots'"):
        load(bundles[2], options={"fireredasr.text_steps": "dots"})


def test_the_published_beam_is_used_unless_another_is_set(
    bundles: dict[int, Path], v2: FireRedRecognizer
) -> None:
    pcm = sound(1.9)
    three = load(bundles[2], beam=3)
    assert ask(three, request(pcm))[0].n_best == ask(v2, request(pcm))[0].n_best
    assert len(ask(load(bundles[2], beam=1), request(pcm))[0].n_best) == 1


def test_a_changed_answer_of_the_golden_pair_refuses_the_bundle(
    bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundles[2])
    assert golden.check(bundle).startswith("golden pair ok, error 0.0")
    plain = FireRedModel.features
    monkeypatch.setattr(FireRedModel, "features", lambda self, pcm: plain(self, pcm) + 1)
    with pytest.raises(BundleError, match="numbers off by"):
        golden.check(bundle)


@pytest.mark.parametrize("tiny", [t for t in MODELS if t.version == 2], ids=lambda t: t.name)
def test_times_of_tokens_are_those_of_the_published_code(tiny: Tiny) -> None:
    compared = 0
    for index in ENCODED:
        stored = stored_goldens()[tiny.name]["utterances"][index]
        answer = stored["searches"][SEARCHES[1].name]
        tokens, log_probs = answer["tokens"][0], unpacked(stored["ctc"])
        found = align(log_probs, tokens, blank=0)
        if answer["times"] is None:
            assert found is None
            continue
        assert found is not None
        starts, ends = answer["times"]
        times = token_times(found, len(log_probs))
        assert [start for start, _ in times] == pytest.approx(starts, abs=1e-9)
        assert [end for _, end in times] == pytest.approx(ends, abs=1e-9)
        compared += len(tokens)
    assert compared >= 1
