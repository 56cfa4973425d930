"""Clips through the daemon's session in simulated time, and what is counted of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.front import FrontSettings
from voiced.audio.pcm import float_to_int16
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadFactory, VadKind
from voiced.bench.corpus import Clip
from voiced.bench.normalise import best_normaliser
from voiced.bench.partials import Spoken, hear, spoken, summarise, tables
from voiced.bench.replay import Played, Replay, texts_of, with_quiet
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.wire import (
    EagerFinal,
    Ended,
    Final,
    Partial,
    Ready,
    Resumed,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
)
from voiced.engine.errors import EngineError
from voiced.engine.types import EngineInfo, Request, Transcript

VOICE = float_to_int16(synthetic.buzz(1.5, seed=1))


class Parrot:
    """Says one word for each half second of sound."""

    info = EngineInfo(
        bundle="parrot@0",
        backend="none",
        languages=("en",),
        max_segment_s=16.0,
        load_ms=0.0,
        warm_ms=0.0,
        worker_pid=0,
    )
    max_batch = 1

    def recognize(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        (request,) = requests
        words = [f"word{n}" for n in range(len(request.segment.pcm) // 8_000)]
        return [
            Transcript(
                segment=request.segment.id,
                revision=request.revision,
                text=" ".join(words),
                is_final=True,
                language="en",
                confidence=0.9,
            )
        ]


def play(*, eager_ms: int) -> Played:
    replay = Replay(
        Parrot(),  # type: ignore[arg-type]
        VadFactory(None),
        front=FrontSettings(grown_ms=200, eager_ms=eager_ms),
        session=SessionSettings(publishes_eager=True),
        kind=VadKind.WEBRTC,
        slowdown=0.0,
    )
    return replay.play(VOICE, "en")


def test_a_clip_is_one_stream_with_quiet_around_it() -> None:
    played = play(eager_ms=0)
    kinds = [type(message) for _, message in played.messages]
    assert kinds[0] is Ready
    assert kinds[-1] is Ended
    assert kinds.count(SpeechStarted) == kinds.count(Final) == 1
    times = [at for at, _ in played.messages]
    assert times == sorted(times)
    (begin, end), *_ = played.speech
    assert begin == pytest.approx(500, abs=100)
    assert 1_500 <= played.speech[-1][1] <= 2_200
    assert end <= played.speech[-1][1]
    assert len(with_quiet(VOICE, seed=1)) == len(VOICE) + 40_000
    np.testing.assert_array_equal(with_quiet(VOICE, seed=1), with_quiet(VOICE, seed=1))


def test_a_final_begun_early_is_there_when_the_silence_is_over() -> None:
    (late,), (early,) = spoken(play(eager_ms=0)), spoken(play(eager_ms=200))
    assert early.final_ms == 0
    assert early.final_ms <= late.final_ms
    assert (early.offered, early.was_right) == (1, True)
    assert early.early_ms is not None
    assert 200 <= early.early_ms <= 450
    assert (late.offered, late.early_ms) == (0, None)
    assert early.words == late.words


def message_list() -> list[tuple[float, ServerMessage]]:
    def partial(revision: int, text: str, stable: int) -> Partial:
        return Partial(
            stream="s",
            segment=1,
            revision=revision,
            text=text,
            stable_chars=stable,
            start_ms=0,
            end_ms=0,
            language="en",
        )

    eager = EagerFinal(
        stream="s", segment=1, revision=3, text="a b c", language="en", confidence=1.0,
        start_ms=0, end_ms=0,
    )  # fmt: skip
    final = Final(
        stream="s", segment=1, revision=4, text="a x c d.", language="en", confidence=1.0,
        start_ms=500, end_ms=3_000, latency_ms=0,
    )  # fmt: skip
    return [
        (0.0, Ready(stream="s", bundle="b", rate_hz=16_000)),
        (1_200.0, SpeechStarted(stream="s", segment=1, start_ms=500)),
        (1_400.0, partial(1, "a b", 0)),
        (1_800.0, partial(2, "a b c", 3)),
        (2_000.0, eager),
        (2_100.0, Resumed(stream="s", segment=1)),
        (2_400.0, partial(3, "a z c", 1)),  # breaks the promise of "a b"
        (3_100.0, SpeechEnded(stream="s", segment=1, start_ms=500, end_ms=3_000, reason="silence")),
        (3_150.0, final),
    ]


def test_what_a_receiver_saw_is_taken_apart() -> None:
    played = Played(tuple(message_list()), ((1_000.0, 2_500.0),))
    (seen,) = spoken(played)
    assert seen == Spoken(
        seconds=2.5,
        words=4,
        first_partial_ms=400.0,
        stable_at_speech_end=1,
        stable_at_end=1,
        wrong=0,
        partials=3,
        broken_promises=1,
        final_ms=50.0,
        speech_to_final_ms=650.0,
        offered=1,
        early_ms=None,
        was_right=False,
    )
    assert texts_of(played.messages) == "a x c d."


def test_clips_are_summed_up_by_policy_and_language() -> None:
    clip = Clip(
        id="c",
        path=Path("c.wav"),
        text="a x c d",
        language="en",
        tags=frozenset(),
        seconds=2.0,
        set="s",
    )
    heard = hear(clip, Played(tuple(message_list()), ((1_000.0, 2_500.0),)), best_normaliser())
    assert heard.score.errors == 0
    summary = summarise("p", "en", [heard])
    assert (summary.segments, summary.instant, summary.broken_promises) == (1, 0.0, 1)
    assert summary.first_partial_ms == (400.0, 400.0)
    assert summary.stable_at_speech_end == 25.0
    titles = [table.title for table in tables([("at the end", [heard]), ("begun early", [heard])])]
    assert len(titles) == 3
