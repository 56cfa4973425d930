"""FireRedASR behind the engine's contract: requests in, transcripts out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from voiced.audio.features.kaldi import HOP, WINDOW, frames_of
from voiced.audio.frames import RATE_HZ
from voiced.engine.backends.base import Backend
from voiced.engine.batch import LockstepKey
from voiced.engine.buffers import Float
from voiced.engine.bundle import Bundle
from voiced.engine.errors import EngineError, SegmentTooLong, UnknownLanguage
from voiced.engine.families.ctc import greedy
from voiced.engine.families.fireredasr_graphs import Loan
from voiced.engine.families.fireredasr_model import FireRedModel
from voiced.engine.families.fireredasr_options import FireRedOptions
from voiced.engine.families.fireredasr_search import FireRedHypothesis
from voiced.engine.families.fireredasr_text import Writing, language_of
from voiced.engine.families.fireredasr_words import TimedToken, timed_words
from voiced.engine.split import split_quietly
from voiced.engine.tally import GearTally
from voiced.engine.text import load_policy
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineTotals,
    Gear,
    Request,
    RequestKind,
    Timings,
    Transcript,
    Word,
)

Pcm = npt.NDArray[np.int16]

LANGUAGES = ("zh", "en")
"""What the model writes; it never says which, and cannot be told."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was found in one piece of audio, no longer than a gear."""

    hypotheses: Sequence[FireRedHypothesis]
    """Best first; none for a piece too short to have a frame."""
    words: Sequence[TimedToken] = ()
    """Seconds count from the segment's begin."""


class FireRedRecognizer:
    """Recognises segments with one FireRedASR bundle. One thread only."""

    def __init__(self, bundle: Bundle, config: EngineConfig, backend: Backend) -> None:
        started = time.perf_counter()
        unknown = [code for code in config.languages if code not in LANGUAGES]
        if unknown:
            raise UnknownLanguage(
                f"engine.languages has {', '.join(unknown)}; "
                f"{bundle.id} knows {', '.join(sorted(LANGUAGES))}"
            )
        self._options = FireRedOptions.of(config.options)
        self._policy = load_policy(self._options.steps)
        self.model = FireRedModel(
            bundle.root,
            bundle.manifest,
            backend,
            threads=config.threads,
            max_batch=config.max_batch,
            max_beam=config.beam or None,
        )
        info = self.model.info
        self._beam = config.beam or info.search.beam
        self._n_best = config.n_best
        self._language = config.languages[0]
        self._live_s = config.max_segment_s
        self._backend = backend
        self._writing = Writing(self._options.casing, info.version, self._options.spaces)
        self._partials_by_ctc = info.has_ctc and self._options.partials == "ctc"
        # all samples that still give no more frames than the longest gear has
        longest = (self.model.gears.max_frames - 1) * HOP + WINDOW + HOP - 1
        self._max_samples = min(longest, info.max_s * RATE_HZ)
        self._refuse_samples = info.refuse_s * RATE_HZ
        self._tally = GearTally()
        self._info = EngineInfo(
            bundle=bundle.id,
            backend=backend.name,
            languages=LANGUAGES,
            max_segment_s=self._max_samples / RATE_HZ,
            load_ms=_ms_since(started),
            warm_ms=0.0,
            worker_pid=0,
            has_hotwords=True,
        )

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        return self._info

    @property
    def totals(self) -> EngineTotals:
        """What was encoded, and what crossed to the device and back."""
        moved = self.model.traffic
        return EngineTotals(
            gears=self._tally.uses,
            to_device_bytes=moved.to_device,
            from_device_bytes=moved.from_device,
        )

    @property
    def max_batch(self) -> int:
        """Most requests that `recognize` takes at once."""
        return self.model.max_batch

    def warm(self, progress: Callable[[str], None]) -> None:
        """Make every gear that live streams use as fast as it will ever be."""
        started = time.perf_counter()
        longest = self._gear_frames(round(self._live_s * RATE_HZ))
        gears = self.model.gears.to_warm(longest, compiles_shapes=self._backend.compiles_shapes)
        for done, gear in enumerate(gears, 1):
            progress(f"warming gear {done} of {len(gears)} ({gear.frames / 100:g} s)")
            self._warm_gear(gear)
        self._info = replace(self._info, warm_ms=_ms_since(started))

    def _warm_gear(self, gear: Gear) -> None:
        quiet = np.zeros((gear.frames, self.model.info.mels), np.float32)
        few = 4 * self.model.info.subsampling  # an utterance of a few frames ends soon
        with self.model.lend(gear) as loan:
            loan.prefill([quiet])
            for beam in {self._beam, 1}:
                self.model.decode(loan, [few], beam=beam)

    def batch_key(self, request: Request) -> LockstepKey:
        """Equal for requests whose gears end in the same second, and of one kind of search."""
        frames = self._gear_frames(len(request.segment.pcm))
        return LockstepKey.of(frames, self._beam_of(request))

    def _beam_of(self, request: Request) -> int:
        """Hypotheses kept; 0: read off the CTC head."""
        if request.kind.is_searched:
            return self._beam
        return 0 if self._partials_by_ctc else 1

    def _gear_frames(self, samples: int) -> int:
        gears = self.model.gears
        wanted = max(1, min(frames_of(samples), gears.max_frames))
        return gears.pick(1, wanted).frames

    def recognize(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        """Answer each request, in order; those of one batch must have equal keys."""
        frames = max((self._gear_frames(len(r.segment.pcm)) for r in requests), default=0)
        # long gears take fewer than max_batch: the arenas are bounded
        most = max(1, min(self.max_batch, self.model.gears.largest_batch(frames)))
        answers: list[Transcript | EngineError] = []
        for start in range(0, len(requests), most):
            answers += self._batch(requests[start : start + most])
        return answers

    def _batch(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        answers: dict[int, Transcript | EngineError] = {}
        ready: list[int] = []
        for i, request in enumerate(requests):
            pcm, language = request.segment.pcm, request.segment.language
            if language is not None and language not in LANGUAGES:
                answers[i] = UnknownLanguage(f"{self._info.bundle} does not know {language!r}")
            elif len(pcm) > self._refuse_samples:
                answers[i] = self._too_long(len(pcm))
            elif frames_of(len(pcm)) == 0 or not pcm.any():
                answers[i] = self._transcript(request, [], Timings())
            elif len(pcm) > self._max_samples:
                answers[i] = self._long(request)
            else:
                ready.append(i)
        if ready:
            pieces = [requests[i].segment.pcm for i in ready]
            found = self._run(pieces, [requests[i] for i in ready])
            for i, (piece, timings) in zip(ready, found, strict=True):
                answers[i] = self._transcript(requests[i], [piece], timings)
        return [answers[i] for i in range(len(requests))]

    def _too_long(self, samples: int) -> SegmentTooLong:
        info = self.model.info
        return SegmentTooLong(
            f"segment of {samples / RATE_HZ:.0f} s; expected at most {info.refuse_s} s: the model "
            f"has no positions beyond, and was trained up to {info.max_s} s; "
            "set vad.max_segment_s lower"
        )

    def _long(self, request: Request) -> Transcript:
        """Recognise what no gear holds piece by piece, cut where it is quietest."""
        pieces: list[_Piece] = []
        spent, begun = Timings(), 0
        for pcm in split_quietly(request.segment.pcm, self._max_samples):
            if frames_of(len(pcm)):
                ((piece, timings),) = self._run([pcm], [request], begin_s=begun / RATE_HZ)
                pieces.append(piece)
                spent += timings
            begun += len(pcm)
        return self._transcript(request, pieces, spent)

    def _run(
        self, pieces: Sequence[Pcm], requests: Sequence[Request], *, begin_s: float = 0.0
    ) -> list[tuple[_Piece, Timings]]:
        """Recognise a piece of each request, all of one gear and one kind of search."""
        frames = max(self._gear_frames(len(piece)) for piece in pieces)
        gear = self.model.gears.pick(len(pieces), frames)
        beam = self._beam_of(requests[0])
        moved = self.model.traffic
        with self.model.lend(gear) as loan:
            features, features_ms = [], []
            for piece in pieces:
                begun = time.perf_counter()
                features.append(self.model.features(piece))
                features_ms.append(_ms_since(begun))
            begun = time.perf_counter()
            loan.prefill(features)
            prefill_ms = _ms_since(begun) / len(pieces)
            begun = time.perf_counter()
            if beam:
                found, steps = self._decode(loan, pieces, features, beam, requests, begin_s)
            else:
                found, steps = self._first_pass(loan, len(pieces)), [0] * len(pieces)
            decode_ms = _ms_since(begun)
        self._tally.note(gear, [len(each) for each in features])
        moved = self.model.traffic - moved
        return [
            (
                piece,
                Timings(
                    features_ms=features_ms[i],
                    prefill_ms=prefill_ms,
                    decode_ms=decode_ms,
                    steps=steps[i],
                    to_device_bytes=moved.to_device,
                    from_device_bytes=moved.from_device,
                ),
            )
            for i, piece in enumerate(found)
        ]

    def _decode(
        self,
        loan: Loan,
        pieces: Sequence[Pcm],
        features: Sequence[Float],
        beam: int,
        requests: Sequence[Request],
        begin_s: float,
    ) -> tuple[list[_Piece], list[int]]:
        decoded = self.model.decode(
            loan,
            [len(each) for each in features],
            beam=beam,
            eos_penalty=self._options.eos_penalty,
            length_penalty=self._options.length_penalty,
            hotwords=[each.hotwords for each in requests],
        )
        found = []
        for i, each in enumerate(decoded):
            words: Sequence[TimedToken] = ()
            if self.model.info.has_ctc and requests[i].kind.is_searched:
                words = self._words(loan.ctc(i), each.hypotheses[0], len(pieces[i]), begin_s)
            found.append(_Piece(each.hypotheses, words))
        return found, [each.steps for each in decoded]

    def _first_pass(self, loan: Loan, count: int) -> list[_Piece]:
        """Read texts off the CTC head, without a decoder step."""
        found = []
        for i in range(count):
            text = greedy(loan.ctc(i), self.model.tokens.blank)
            score = sum(math.log(max(chance, 1e-30)) for chance in text.chances)
            found.append(_Piece([FireRedHypothesis(text.tokens, score, text.chances, True)]))
        return found

    def _words(
        self, log_probs: Float, best: FireRedHypothesis, samples: int, begin_s: float
    ) -> list[TimedToken]:
        blank = self.model.tokens.blank
        kept = [i for i, token in enumerate(best.tokens) if token != blank]
        tokens = [best.tokens[i] for i in kept]
        timed = timed_words(
            log_probs,
            tokens,
            self.model.written.written(tokens),
            [best.chances[i] for i in kept],
            seconds=samples / RATE_HZ,
            blank=blank,
        )
        return [
            TimedToken(w.text, begin_s + w.start_s, begin_s + w.end_s, w.chance)
            for w in self._writing.words(timed)
        ]

    def _transcript(
        self, request: Request, pieces: Sequence[_Piece], timings: Timings
    ) -> Transcript:
        searched = request.kind.is_searched
        best = [piece.hypotheses[0] for piece in pieces]
        texts = [text for each in best if (text := self._raw(each))]
        text = self._join(texts)
        language = request.segment.language or language_of(text) or self._language
        if searched:
            text = self._policy(text, language)
        alternatives: tuple[tuple[str, float], ...] = ()
        if searched and len(pieces) == 1:
            alternatives = tuple(
                (self._policy(self._raw(each), language), each.score)
                for each in pieces[0].hypotheses[: self._n_best]
            )
        chances = [chance for each in best for chance in each.chances]
        start_ms = 1000 * request.segment.start_sample / RATE_HZ
        return Transcript(
            segment=request.segment.id,
            revision=request.revision,
            text=text,
            is_final=request.kind is RequestKind.FINAL,
            language=language,
            confidence=sum(chances) / len(chances) if text else 0.0,
            words=tuple(
                Word(
                    word.text,
                    round(start_ms + 1000 * word.start_s),
                    round(start_ms + 1000 * word.end_s),
                    word.chance,
                )
                for piece in pieces
                for word in piece.words
            ),
            n_best=alternatives,
            timings=timings,
            bundle=self._info.bundle,
        )

    def _raw(self, hypothesis: FireRedHypothesis) -> str:
        return self._writing.text(self.model.written.written(hypothesis.tokens))

    def _join(self, texts: Sequence[str]) -> str:
        """Join texts of pieces: nothing between Mandarin, a space elsewhere."""
        joined = ""
        for text in texts:
            between = "" if language_of(joined[-1:]) == language_of(text[:1]) == "zh" else " "
            joined = f"{joined}{between}{text}" if joined else text
        return joined

    def close(self) -> None:
        """Drop sessions and buffers."""
        del self.model


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
