"""Whisper's two graphs with their buffers: features in, hypotheses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from voiced.audio.features.whisper import log_mel
from voiced.engine.backends.base import Backend
from voiced.engine.buffers import BufferPool, Float, Lease
from voiced.engine.bundle import Manifest
from voiced.engine.decode import BeamSearch, DecoderShape, Hypothesis, StepDecoder
from voiced.engine.errors import BundleError
from voiced.engine.families.whisper import (
    LanguageChoice,
    Vocabulary,
    WhisperModelInfo,
    WhisperTailInfo,
    WhisperTokenInfo,
    choose_language,
    max_tokens,
)
from voiced.engine.gears import GearSet
from voiced.engine.types import Gear

CELLS = (64, 128, 192, 256, 384, 512, 768)
"""Cache lengths of the decoder, before the one that holds the longest text in separate rows."""

MAX_AREA = 3200
"""Most feature frames, batch x gear, that the cross-attention arena is planned for (79 MB)."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is to be decoded, next to its place in the lease."""

    samples: int
    language: str | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the search of one utterance found."""

    language: LanguageChoice
    hypotheses: list[Hypothesis]
    """Best first; tokens are columns of the projection."""
    no_speech: float
    steps: int


class WhisperModel:
    """Sessions and device buffers of one bundle. One thread only.

    Args:
        root: The bundle's folder (a staged one while it is being built).
        manifest: Its manifest.
        backend: Runtime for the graphs.
        threads: Threads of one graph call.
        max_batch: Most utterances decoded together.
        tail_frames: Overrides the bundle's length of the silence tail; 0 switches it off.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        backend: Backend,
        *,
        threads: int,
        max_batch: int,
        max_beam: int,
        tail_frames: int | None = None,
    ) -> None:
        try:
            self.info = msgspec.convert(manifest.model, WhisperModelInfo)
            self.tokens = msgspec.convert(manifest.tokens, WhisperTokenInfo)
            self._tail_info = msgspec.convert(manifest.tail, WhisperTailInfo)
        except msgspec.ValidationError as error:
            raise BundleError(
                root / "manifest.json", found=str(error), expected="a Whisper manifest"
            ) from error
        self.languages = tuple(self.tokens.languages)
        self.vocabulary = Vocabulary.read(root / self.tokens.text)
        info = self.info
        self._tail_frames = self._tail_info.frames if tail_frames is None else tail_frames
        self._tail = np.memmap(root / self._tail_info.file, np.float32, mode="r").reshape(
            len(self._tail_info.names), info.encoder_positions, info.d_model
        )
        lengths = sorted({g.frames for g in manifest.gears})
        self.gears = GearSet(
            Gear(frames, batch)
            for frames in lengths
            for batch in range(1, max_batch + 1)
            if batch == 1 or batch * frames <= MAX_AREA
        )
        self._pool = BufferPool({g: self._cross_shapes(g) for g in self.gears})
        self._prefill = backend.load(root / manifest.graphs["prefill"], threads=threads)
        shape = DecoderShape(
            info.decoder_layers, info.heads, info.d_head, 2 + len(self.tokens.languages)
        )
        self._decoder = StepDecoder(
            backend.load(root / manifest.graphs["step"], threads=threads),
            shape,
            cells=cell_lengths(max_beam, info.decoder_positions // 2),
            max_batch=max_batch,
            max_rows=max(4, max_beam),
        )

    def _cross_shapes(self, gear: Gear) -> dict[str, tuple[int, ...]]:
        info = self.info
        places = gear.frames // 2 + self._tail_length(gear)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(info.decoder_layers):
            shapes[f"cross_k_{layer}"] = (gear.batch, info.heads, info.d_head, places)
            shapes[f"cross_v_{layer}"] = (gear.batch, info.heads, places, info.d_head)
        return shapes

    def _tail_length(self, gear: Gear) -> int:
        return min(self._tail_frames, self.info.encoder_positions - gear.frames // 2)

    def lease(self, gear: Gear) -> Lease:
        """Borrow the cross-attention buffers of a gear."""
        return self._pool.lease(gear)

    def features(self, pcm: npt.NDArray[np.int16], gear: Gear) -> Float:
        """Compute log-mel features float32[1, mels, frames] of one utterance."""
        return log_mel(pcm, gear.frames, mels=self.info.mels)

    def prefill(self, lease: Lease, place: int, features: Float) -> None:
        """Encode one utterance into row `place` of the leased buffers.

        Utterances are encoded one by one: the encoder is compute-bound, a batch gains nothing on
        a CPU (facts: 58-61 ms a segment at any batch), and no utterance sees its neighbours.
        """
        start = lease.gear.frames // 2
        stop = start + self._tail_length(lease.gear)
        rows = zip(self._tail_info.names, self._tail, strict=True)
        inputs = {"mel": features} | {name: row[start:stop] for name, row in rows}
        outputs = {name: lease[name][place : place + 1] for name in self._cross_shapes(lease.gear)}
        self._prefill.bind(inputs, outputs).run()

    def first_tokens(
        self, lease: Lease, *, language: str, top: int
    ) -> tuple[Float, npt.NDArray[np.int32]]:
        """Candidates for the first token of row 0: (float32[top], columns int32[top])."""
        t = self.tokens
        prompt = [[t.start, t.languages[language], t.transcribe, t.no_timestamps]]
        self._decoder.start({name: lease[name][:1] for name in self._cross_shapes(lease.gear)})
        result = self._decoder.step(
            prompt, np.arange(4)[None], causal=True, rows=[3], scores=[[0.0]], top=top
        )
        return result.best_scores[0].copy(), result.best_tokens[0].copy()

    def decode(
        self,
        lease: Lease,
        utterances: Sequence[Utterance],
        *,
        beam: int,
        configured: Sequence[str],
    ) -> list[Decoded]:
        """Search the text of the first len(`utterances`) rows of the lease, in lockstep."""
        n = len(utterances)
        tokens, decoder = self.tokens, self._decoder
        decoder.start({name: lease[name][:n] for name in self._cross_shapes(lease.gear)})
        begin = partial(decoder.step, causal=True, scores=np.zeros((n, 1)), top=beam + 1)

        def codes(choices: Sequence[LanguageChoice]) -> list[list[int]]:
            tail = [tokens.transcribe, tokens.no_timestamps]
            return [[tokens.languages[c.code], *tail] for c in choices]

        pinned = [u.language for u in utterances if u.language is not None]
        if len(pinned) == n:
            languages = [LanguageChoice(code, 1.0) for code in pinned]
            prompt = [[tokens.start, *rest] for rest in codes(languages)]
            result = begin(prompt, np.arange(4)[None], rows=[3])
            no_speech = self._no_speech(result.specials[:, 0])
        else:
            result = begin([[tokens.start]] * n, [[0]], rows=[0])
            no_speech = self._no_speech(result.specials[:, 0])
            languages = [
                LanguageChoice(u.language, 1.0)
                if u.language is not None
                else choose_language(row[2:], self.languages, configured)
                for u, row in zip(utterances, result.specials[:, 0], strict=True)
            ]
            result = begin(codes(languages), np.arange(1, 4)[None], rows=[2])

        searches = []
        for i, utterance in enumerate(utterances):
            limit = max_tokens(utterance.samples, self.info.decoder_positions)
            search = BeamSearch(beam=beam, max_tokens=limit)
            search.begin(
                result.best_scores[i], result.best_tokens[i], banned=frozenset({tokens.blank})
            )
            searches.append(search)
        steps = self._search(searches, beam)
        return [
            Decoded(language, search.results(), chance, taken)
            for language, search, chance, taken in zip(
                languages, searches, no_speech, steps, strict=True
            )
        ]

    def _search(self, searches: Sequence[BeamSearch], beam: int) -> list[int]:
        """Step all searches until each is done; returns the steps that each took."""
        ids = np.asarray(self.vocabulary.ids, np.int32)
        taken = [0] * len(searches)
        position = 4
        while not all(s.done for s in searches):
            last = np.array([[row[-1] for row in s.rows] for s in searches])
            result = self._decoder.step(
                ids[last],
                np.full(last.shape, position),
                causal=False,
                rows=range(beam),
                scores=[s.scores for s in searches],
                top=beam,
            )
            for i, search in enumerate(searches):
                if not search.done:
                    taken[i] += 1
                    search.advance(
                        result.best_scores[i],
                        result.best_rows[i],
                        result.best_tokens[i],
                        result.end_scores[i],
                    )
            self._decoder.follow(result.best_rows)
            position += 1
        return taken

    def _no_speech(self, specials: Float) -> list[float]:
        """Probability of the no-speech token at the start token, where text has no mass."""
        odds = np.exp(specials - specials.max(axis=1, keepdims=True))
        return [float(p) for p in odds[:, 1] / odds.sum(axis=1)]


def cell_lengths(beam: int, tokens: int) -> tuple[int, ...]:
    """Cache lengths for texts of at most `tokens` tokens in `beam` rows that share nothing."""
    longest = 4 + beam * (tokens + 4)  # the prompt; room for a few steps after a compaction
    return (*(c for c in CELLS if c < longest), longest)
