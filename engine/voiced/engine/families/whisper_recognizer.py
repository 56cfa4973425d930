"""Whisper behind the engine's contract: requests in, transcripts out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from voiced.audio.features.whisper import HOP
from voiced.audio.frames import RATE_HZ
from voiced.engine.backends.base import Backend
from voiced.engine.batch import LockstepKey
from voiced.engine.bundle import Bundle
from voiced.engine.decode import Hypothesis
from voiced.engine.errors import EngineError, UnknownLanguage
from voiced.engine.families.whisper import (
    clean_text,
    frames_needed,
    is_no_speech,
    join_pieces,
    least_gear,
)
from voiced.engine.families.whisper_batch import WhisperBatch
from voiced.engine.families.whisper_model import Decoded, Utterance, WhisperModel
from voiced.engine.split import split_quietly
from voiced.engine.stable import chances_of
from voiced.engine.tally import GearTally
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineTotals,
    Gear,
    Request,
    RequestKind,
    Timings,
    Transcript,
)

Pcm = npt.NDArray[np.int16]

PUBLISHED_BEAM = 5
"""Of the published figures of the family."""


class WhisperRecognizer:
    """Recognises segments with one Whisper bundle. One thread only.

    `EngineConfig.options`: `pad_30s` = "1" pads everything to the longest gear without a tail (the
    published way, kept as the baseline of benchmarks); `tail` = frames overrides the bundle's tail.
    """

    def __init__(self, bundle: Bundle, config: EngineConfig, backend: Backend) -> None:
        started = time.perf_counter()
        options = config.options
        tail = options.get("tail")
        self._pad_30s = options.get("pad_30s") == "1"
        self._beam = config.beam or PUBLISHED_BEAM
        self._n_best = config.n_best
        self._languages = config.languages
        self._live_s = config.max_segment_s
        self._backend = backend
        self.model = WhisperModel(
            bundle.root,
            bundle.manifest,
            backend,
            threads=config.threads,
            max_batch=config.max_batch,
            max_beam=self._beam,
            tail_frames=None if tail is None else int(tail),
        )
        self._max_batch = self.model.max_batch
        known = set(self.model.languages)
        unknown = [code for code in config.languages if code not in known]
        if unknown:
            raise UnknownLanguage(
                f"engine.languages has {', '.join(unknown)}; "
                f"{bundle.id} knows {', '.join(sorted(known))}"
            )
        gears = self.model.gears
        self._max_samples = gears.max_frames * HOP
        self._tally = GearTally()
        self._info = EngineInfo(
            bundle=bundle.id,
            backend=backend.name,
            languages=self.model.languages,
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
        return self._max_batch

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
        silence = np.zeros(0, np.int16)
        language = self._languages[0]
        with self.model.lend(gear) as loan:
            loan.prefill([self.model.features(silence, gear)])
            for beam in (self._beam, 1):
                self.model.decode(loan, [Utterance(0, language)], beam=beam, configured=())

    def batch_key(self, request: Request) -> LockstepKey:
        """Equal for requests whose gears end in the same second, and of one beam width.

        The batch runs at the longest of them: sharing a decoder saves more than padding costs.
        """
        frames = self._gear_frames(len(request.segment.pcm))
        return LockstepKey.of(frames, self._beam_of(request))

    def _beam_of(self, request: Request) -> int:
        return self._beam if request.kind.is_searched else 1

    def _gear_frames(self, samples: int) -> int:
        gears = self.model.gears
        if self._pad_30s:
            return gears.max_frames
        return gears.pick(1, min(least_gear(samples), gears.max_frames)).frames

    def recognize(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        """Answer each request, in order; in lockstep those of one call must have equal keys."""
        batch = self.open_batch()
        if batch is not None:
            return _run_all(batch, requests)
        frames = max((self._gear_frames(len(r.segment.pcm)) for r in requests), default=0)
        # long gears take fewer than max_batch: the cross-attention arena is bounded
        most = max(1, min(self._max_batch, self.model.gears.largest_batch(frames)))
        answers: list[Transcript | EngineError] = []
        for start in range(0, len(requests), most):
            answers += self._batch(requests[start : start + most])
        return answers

    def open_batch(self) -> WhisperBatch | None:
        """Return the batch in which requests come and go; None for graphs that run in lockstep.

        One is in use at a time: all of them share the model's slots.
        """
        if self.model.slots is None:
            return None
        return WhisperBatch(
            self.model,
            gear_of=lambda samples: self.model.gears.pick(1, self._gear_frames(samples)),
            beam_of=self._beam_of,
            languages=self._languages,
            answer=self._transcript,
            tally=self._tally,
        )

    def _batch(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        answers: dict[int, Transcript | EngineError] = {}
        ready: list[int] = []
        for i, request in enumerate(requests):
            language = request.segment.language
            if language is not None and language not in self.model.languages:
                answers[i] = UnknownLanguage(f"{self._info.bundle} does not know {language!r}")
            elif not request.segment.pcm.any():  # Whisper invents credits for digital silence
                answers[i] = self._transcript(request, [], Timings())
            elif len(request.segment.pcm) > self._max_samples:
                answers[i] = self._long(request)
            else:
                ready.append(i)
        if ready:
            pieces = [requests[i].segment.pcm for i in ready]
            results = self._run(pieces, [requests[i] for i in ready])
            for i, (decoded, timings) in zip(ready, results, strict=True):
                answers[i] = self._transcript(requests[i], [decoded], timings)
        return [answers[i] for i in range(len(requests))]

    def _long(self, request: Request) -> Transcript:
        """Recognise what no gear holds piece by piece, cut where it is quietest."""
        decoded: list[Decoded] = []
        spent = Timings()
        for piece in split_quietly(request.segment.pcm, self._max_samples):
            (found, timings) = self._run([piece], [request])[0]
            decoded.append(found)
            spent += timings
        return self._transcript(request, decoded, spent)

    def _run(
        self, pieces: Sequence[Pcm], requests: Sequence[Request]
    ) -> list[tuple[Decoded, Timings]]:
        frames = max(self._gear_frames(len(piece)) for piece in pieces)
        gear = self.model.gears.pick(len(pieces), frames)
        moved = self.model.traffic
        with self.model.lend(gear) as loan:
            features, features_ms = [], []
            for piece in pieces:
                begun = time.perf_counter()
                features.append(self.model.features(piece, gear))
                features_ms.append(_ms_since(begun))
            begun = time.perf_counter()
            loan.prefill(features)
            prefill_ms = _ms_since(begun) / len(pieces)
            begun = time.perf_counter()
            utterances = [
                Utterance(len(piece), each.segment.language, each.hotwords)
                for piece, each in zip(pieces, requests, strict=True)
            ]
            beam = self._beam_of(requests[0])
            found = self.model.decode(loan, utterances, beam=beam, configured=self._languages)
            decode_ms = _ms_since(begun)
        self._tally.note(gear, [frames_needed(len(piece)) for piece in pieces])
        moved = self.model.traffic - moved
        return [
            (
                d,
                Timings(
                    features_ms=features_ms[i],
                    prefill_ms=prefill_ms,
                    decode_ms=decode_ms,
                    steps=d.steps,
                    to_device_bytes=moved.to_device,
                    from_device_bytes=moved.from_device,
                ),
            )
            for i, d in enumerate(found)
        ]

    def _transcript(
        self, request: Request, parts: Sequence[Decoded], timings: Timings
    ) -> Transcript:
        kept = [p for p in parts if not is_no_speech(p.hypotheses[0], p.no_speech)]
        texts = [(self._text(p, 0), p.language.code) for p in kept]
        pinned = request.segment.language or self._languages[0]
        language = max(texts, key=lambda t: len(t[0]))[1] if texts else pinned
        text = join_pieces(texts)
        scores = [p.hypotheses[0].score for p in kept]
        alternatives: tuple[tuple[str, float], ...] = ()
        if len(kept) == 1 and len(parts) == 1:
            alternatives = tuple(
                (self._text(kept[0], i), hypothesis.score)
                for i, hypothesis in enumerate(kept[0].hypotheses[: self._n_best])
            )
        is_final = request.kind is RequestKind.FINAL
        return Transcript(
            segment=request.segment.id,
            revision=request.revision,
            text=text,
            is_final=is_final,
            language=language,
            confidence=math.exp(sum(scores) / len(scores)) if text else 0.0,
            chances=() if is_final else self._chances(text, [p.hypotheses[0] for p in kept]),
            n_best=alternatives,
            timings=timings,
            bundle=self._info.bundle,
        )

    def _text(self, decoded: Decoded, index: int) -> str:
        raw = self.model.vocabulary.text(decoded.hypotheses[index].tokens)
        return clean_text(raw, decoded.language.code)

    def _chances(self, text: str, found: Sequence[Hypothesis]) -> tuple[float, ...]:
        bytes_of = self.model.vocabulary.pieces
        pieces: list[tuple[bytes, float]] = []
        for each in found:
            pieces.append((b" ", 1.0))  # `join_pieces` may have put none
            pieces += [
                (bytes_of[token], min(1.0, math.exp(log_prob)))
                for token, log_prob in zip(each.tokens, each.log_probs, strict=True)
            ]
        return chances_of(text, pieces)

    def close(self) -> None:
        """Drop sessions and buffers."""
        del self.model


def _run_all(batch: WhisperBatch, requests: Sequence[Request]) -> list[Transcript | EngineError]:
    """Answer requests through a batch that nobody else uses."""
    answers: dict[int, Transcript | EngineError] = {}
    waiting = deque(enumerate(requests))
    try:
        while waiting or len(batch):
            while waiting and batch.admits(waiting[0][1]):
                batch.join(*waiting.popleft())
            answers.update(batch.step())
    except BaseException:
        batch.clear()
        raise
    return [answers[i] for i in range(len(requests))]


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
