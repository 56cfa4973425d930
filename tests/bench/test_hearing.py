"""From messages to what became of each utterance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Placed, Spoken
from voiced.bench.hearing import Fate, Hearing, Judge, Outcome, infix_distance
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.scoring import edit_distance
from voiced.daemon import wire

TEXTS = {"lamp": "turn on the lamp", "door": "please close the door now"}


def spoken(clip: str) -> Spoken:
    """Two seconds, of which 1.5 are speech."""
    pcm = np.zeros(2 * RATE_HZ, np.int16)
    return Spoken(clip, "en", TEXTS.get(clip), pcm, RATE_HZ // 4, RATE_HZ * 7 // 4)


def judge(**offline: str) -> Judge:
    return Judge(builtin_normaliser(), TEXTS | offline)


class Talk:
    """A stream that began at 100 s on the client's clock; times here are those of the stream."""

    def __init__(self, *said: tuple[str, float], judge: Judge | None = None) -> None:
        self.hearing = Hearing(3, 100.0, judge)
        for number, (clip, start_s) in enumerate(said):
            self.hearing.say(Placed(number, spoken(clip), round(start_s * RATE_HZ)))

    def started(self, at_s: float, segment: int, start_s: float) -> list[Outcome]:
        message = wire.SpeechStarted(stream="s", segment=segment, start_ms=round(start_s * 1000))
        return self.hearing.take(message, 100 + at_s)

    def partial(self, at_s: float, segment: int, text: str) -> list[Outcome]:
        message = wire.Partial(
            stream="s", segment=segment, revision=1, text=text, start_ms=0, end_ms=0, language="en"
        )
        return self.hearing.take(message, 100 + at_s)

    def ended(self, at_s: float, segment: int, end_s: float) -> list[Outcome]:
        message = wire.SpeechEnded(
            stream="s", segment=segment, start_ms=0, end_ms=round(end_s * 1000), reason="silence"
        )
        return self.hearing.take(message, 100 + at_s)

    def final(
        self, at_s: float, segment: int, text: str, span: tuple[float, float]
    ) -> list[Outcome]:
        start_s, end_s = span
        message = wire.Final(
            stream="s",
            segment=segment,
            revision=9,
            text=text,
            language="en",
            confidence=1,
            start_ms=round(start_s * 1000),
            end_ms=round(end_s * 1000),
            latency_ms=1,
        )
        return self.hearing.take(message, 100 + at_s)


def test_an_utterance_is_timed_from_the_true_end_of_its_speech() -> None:
    talk = Talk(("lamp", 1.0), judge=judge())
    talk.started(1.5, 7, 0.8)
    talk.partial(2.0, 7, " ")
    talk.partial(2.25, 7, "turn on")
    talk.partial(2.6, 7, "Turn on the lamp.")
    talk.ended(3.4, 7, 3.2)
    talk.final(3.55, 7, "Turn on the lamp.", (0.8, 3.2))
    (outcome,) = talk.hearing.close()
    assert (outcome.stream, outcome.clip, outcome.fate) == (3, "lamp", Fate.RIGHT)
    assert outcome.spoken_s == pytest.approx(2.75)
    assert outcome.final_ms == pytest.approx(800)
    assert outcome.ended_ms == pytest.approx(650)
    assert outcome.after_ended_ms == pytest.approx(150)
    assert outcome.first_partial_ms == pytest.approx(1000)
    assert outcome.on_screen_ms == pytest.approx(-150)
    assert outcome.segments == 1


def test_a_final_offered_early_counts_until_it_is_taken_back() -> None:
    def offer(at_s: float) -> None:
        message = wire.EagerFinal(
            stream="s",
            segment=1,
            revision=1,
            text="turn on the lamp",
            language="en",
            confidence=1.0,
            start_ms=800,
            end_ms=2_700,
        )
        talk.hearing.take(message, 100 + at_s)

    for is_kept in (True, False):
        talk = Talk(("lamp", 1.0), judge=judge())
        talk.started(1.5, 1, 0.8)
        offer(2.5)
        talk.hearing.take(wire.Resumed(stream="s", segment=1), 102.6)
        if is_kept:
            offer(3.0)
        talk.final(3.5, 1, "turn on the lamp", (0.8, 3.2))
        (outcome,) = talk.hearing.close()
        assert outcome.eager_ms == (pytest.approx(250) if is_kept else None)
        assert outcome.on_screen_ms == pytest.approx(-250)


def test_it_is_settled_by_the_answer_to_a_later_one_and_forgotten() -> None:
    talk = Talk(("lamp", 1.0), ("door", 5.0), judge=judge())
    talk.started(1.5, 1, 0.8)
    assert talk.final(3.5, 1, "turn on the lamp", (0.8, 3.2)) == []
    talk.started(5.5, 2, 4.8)
    (first,) = talk.final(7.5, 2, "please close the door now", (4.8, 7.0))
    assert (first.clip, first.fate) == ("lamp", Fate.RIGHT)
    (second,) = talk.hearing.close()
    assert (second.clip, second.fate) == ("door", Fate.RIGHT)
    assert talk.hearing.close() == []


def test_one_cut_in_two_is_joined_and_timed_by_its_last_part() -> None:
    talk = Talk(("door", 1.0), judge=judge())
    talk.started(1.5, 1, 1.0)
    talk.final(2.4, 1, "please close", (1.0, 2.0))
    talk.started(2.5, 2, 2.0)
    talk.final(4.0, 2, "the door now", (2.0, 3.2))
    (outcome,) = talk.hearing.close()
    assert (outcome.fate, outcome.text, outcome.segments) == (
        *(Fate.RIGHT, "please close the door now"),
        2,
    )
    assert outcome.final_ms == pytest.approx(1250)


def test_two_joined_in_one_segment_are_both_found_in_its_text() -> None:
    talk = Talk(("lamp", 1.0), ("door", 3.2), judge=judge())
    talk.started(1.5, 1, 0.8)
    talk.final(6.0, 1, "turn on the lamp please close the door now", (0.8, 5.6))
    first, second = talk.hearing.close()
    assert (first.fate, second.fate) == (Fate.RIGHT, Fate.RIGHT)


def test_missing_and_wrong_texts_are_lost_unless_the_model_cannot_do_it_at_all() -> None:
    talk = Talk(("lamp", 1.0), judge=judge())
    (nothing,) = talk.hearing.close()
    assert (nothing.fate, nothing.final_ms, nothing.on_screen_ms) == (Fate.MISHEARD, None, None)

    talk = Talk(("lamp", 1.0), judge=judge())
    talk.started(1.5, 1, 0.8)
    talk.final(3.5, 1, "thank you", (0.8, 3.2))
    (wrong,) = talk.hearing.close()
    assert (wrong.fate, wrong.on_screen_ms) == (Fate.MISHEARD, None)

    talk = Talk(("lamp", 1.0), judge=judge(lamp="thank you very much"))
    talk.started(1.5, 1, 0.8)
    talk.final(3.5, 1, "thank you", (0.8, 3.2))
    (hard,) = talk.hearing.close()
    assert hard.fate is Fate.HARD


def test_a_failed_segment_fails_its_utterance() -> None:
    talk = Talk(("lamp", 1.0), judge=judge())
    talk.started(1.5, 1, 0.8)
    talk.ended(3.4, 1, 3.2)
    talk.hearing.take(wire.Failed(stream="s", segment=1, code="busy", message=""), 104.0)
    (outcome,) = talk.hearing.close()
    assert outcome.fate is Fate.FAILED


def test_without_a_judge_or_anything_to_compare_with_it_stays_unjudged() -> None:
    (outcome,) = Talk(("lamp", 1.0)).hearing.close()
    assert outcome.fate is Fate.UNJUDGED
    (outcome,) = Talk(("unknown", 1.0), judge=Judge(builtin_normaliser(), {})).hearing.close()
    assert outcome.fate is Fate.UNJUDGED


def test_without_a_reference_what_the_model_writes_offline_is_the_reference() -> None:
    talk = Talk(("unknown", 1.0), judge=Judge(builtin_normaliser(), {"unknown": "good morning"}))
    talk.started(1.5, 1, 0.8)
    talk.final(3.5, 1, "Good morning!", (0.8, 3.2))
    (outcome,) = talk.hearing.close()
    assert outcome.fate is Fate.RIGHT


WORDS = st.lists(st.sampled_from("abc"), max_size=6)


@given(WORDS, WORDS)
def test_the_infix_distance_is_the_best_over_all_stretches(
    said: list[str], heard: list[str]
) -> None:
    stretches = [heard[a:b] for a in range(len(heard) + 1) for b in range(a, len(heard) + 1)]
    assert infix_distance(said, heard) == min(edit_distance(said, each) for each in stretches)
