"""Whisper's two graphs with their buffers: features in, hypotheses out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from voiced.audio.features.whisper import log_mel
from voiced.engine.backends.base import Backend, Traffic
from voiced.engine.buffers import Float
from voiced.engine.bundle import Manifest
from voiced.engine.decode import BeamSearch, Decoder, Hypothesis, StepDecoder
from voiced.engine.errors import BundleError
from voiced.engine.families.whisper import (
    LanguageChoice,
    Vocabulary,
    WhisperModelInfo,
    WhisperTailInfo,
    WhisperTokenInfo,
    choose_language,
    max_tokens,
    tail_length,
)
from voiced.engine.families.whisper_graphs import (
    PROMPT,
    HostGraphs,
    Loan,
    ResidentGraphs,
    Tail,
    WhisperGraphs,
)
from voiced.engine.families.whisper_hotwords import WhisperSpelling
from voiced.engine.graphs import open_graphs
from voiced.engine.hotwords import CANDIDATES, HotwordGraphs, HotwordSearch
from voiced.engine.slots import SlotDecoder
from voiced.engine.types import Gear, Hotword


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is to be decoded, next to its place in the loan."""

    samples: int
    language: str | None
    hotwords: tuple[Hotword, ...] = ()


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the search of one utterance found."""

    language: LanguageChoice
    hypotheses: list[Hypothesis]
    """Best first; tokens are columns of the projection."""
    no_speech: float
    steps: int


@dataclass(frozen=True, slots=True)
class Begun:
    """An utterance whose prompt has run."""

    search: BeamSearch
    language: LanguageChoice
    no_speech: float

    def decoded(self, steps: int) -> Decoded:
        """What was found, once the search is done."""
        return Decoded(self.language, self.search.results(), self.no_speech, steps)


class WhisperModel:
    """One bundle's graphs, and the search over them. One thread only.

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
        self.spelling = WhisperSpelling(self.vocabulary)
        self._hotwords = HotwordGraphs(self.spelling.ways, self.spelling.joins)
        self._graphs = open_graphs(root, manifest, backend, threads=threads)
        self._memory = self._open(root, manifest, max_batch, max_beam, tail_frames)
        self.gears = self._memory.gears
        self.max_batch = self._memory.max_batch
        """Most utterances decoded together."""

    def _open(
        self,
        root: Path,
        manifest: Manifest,
        max_batch: int,
        max_beam: int,
        tail_frames: int | None,
    ) -> WhisperGraphs:
        info, resident = self.info, self.info.resident
        tail = Tail(root, self._tail_info, info)
        wanted = self._tail_info.frames if tail_frames is None else tail_frames
        specials = 2 + len(self.languages)

        def length(gear: Gear) -> int:
            return tail_length(gear.frames, wanted, info)

        if resident is None:
            return HostGraphs(
                self._graphs,
                sorted({g.frames for g in manifest.gears}),
                info,
                tail,
                ids=self.vocabulary.ids,
                specials=specials,
                tail_frames=length,
                max_batch=max_batch,
                max_beam=max_beam,
            )
        resident.refuse_wider(max_beam, root)
        places = resident.read_places(root, info.d_model)
        return ResidentGraphs(
            self._graphs,
            [Gear(g.frames, g.batch) for g in manifest.gears],
            info,
            resident,
            tail,
            places,
            specials=specials,
            tail_frames=length,
            max_batch=max_batch,
        )

    @property
    def slots(self) -> SlotDecoder | None:
        """Where utterances that came at different times are decoded; None: in lockstep only."""
        return self._memory.slots if isinstance(self._memory, HostGraphs) else None

    def span(self, gear: Gear) -> int:
        """Places that an utterance at this gear takes in `slots`."""
        assert isinstance(self._memory, HostGraphs)
        return self._memory.span(gear)

    @property
    def traffic(self) -> Traffic:
        """Bytes that crossed between host arrays and the runtime since the start."""
        return self._graphs.traffic

    def lend(self, gear: Gear) -> AbstractContextManager[Loan]:
        """Borrow the memory of a gear, for use in a `with` statement."""
        return self._memory.lend(gear)

    def features(self, pcm: npt.NDArray[np.int16], gear: Gear) -> Float:
        """Compute log-mel features float32[1, mels, frames] of one utterance."""
        return log_mel(pcm, gear.frames, mels=self.info.mels)

    def first_tokens(
        self, loan: Loan, *, language: str, top: int
    ) -> tuple[Float, npt.NDArray[np.int32]]:
        """Candidates for the first token of row 0: (float32[top], columns int32[top])."""
        t = self.tokens
        prompt = [[t.start, t.languages[language], t.transcribe, t.no_timestamps]]
        result = loan.begin(1).step(
            prompt, np.arange(4)[None], causal=True, rows=[3], scores=[[0.0]], top=top
        )
        return result.best_scores[0].copy(), result.best_tokens[0].copy()

    def decode(
        self,
        loan: Loan,
        utterances: Sequence[Utterance],
        *,
        beam: int,
        configured: Sequence[str],
    ) -> list[Decoded]:
        """Search the text of the first len(`utterances`) rows of the loan, in lockstep."""
        decoder = loan.begin(len(utterances))
        begun = self._prompt(decoder, utterances, beam=beam, configured=configured)
        steps = self._search(decoder, [each.search for each in begun])
        return [each.decoded(taken) for each, taken in zip(begun, steps, strict=True)]

    def join(
        self, loan: Loan, utterance: Utterance, *, beam: int, configured: Sequence[str]
    ) -> Begun:
        """Run the prompt of the only utterance of a loan and let it join `slots` as the last."""
        decoder = loan.begin(1)
        assert self.slots is not None
        assert isinstance(decoder, StepDecoder)
        (begun,) = self._prompt(decoder, [utterance], beam=beam, configured=configured)
        self.slots.join(decoder, rows=len(begun.search.rows))
        return begun

    def _prompt(
        self,
        decoder: Decoder,
        utterances: Sequence[Utterance],
        *,
        beam: int,
        configured: Sequence[str],
    ) -> list[Begun]:
        """Choose languages where none is pinned, and take the first tokens."""
        n, tokens = len(utterances), self.tokens
        searches = [self._open_search(each, beam) for each in utterances]
        top = 1 + max(each.top for each in searches)
        begin = partial(decoder.step, causal=True, scores=np.zeros((n, 1)), top=top)

        def codes(choices: Sequence[LanguageChoice]) -> list[list[int]]:
            tail = [tokens.transcribe, tokens.no_timestamps]
            return [[tokens.languages[c.code], *tail] for c in choices]

        pinned = [u.language for u in utterances if u.language is not None]
        if len(pinned) == n:
            languages = [LanguageChoice(code, 1.0) for code in pinned]
            prompt = [[tokens.start, *rest] for rest in codes(languages)]
            result = begin(prompt, np.arange(PROMPT)[None], rows=[3])
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
            result = begin(codes(languages), np.arange(1, PROMPT)[None], rows=[2])

        for i, search in enumerate(searches):
            first = slice(0, search.top + 1)
            search.begin(
                result.best_scores[i, first],
                result.best_tokens[i, first],
                banned=frozenset({tokens.blank}),
            )
        return [Begun(*each) for each in zip(searches, languages, no_speech, strict=True)]

    def _open_search(self, utterance: Utterance, beam: int) -> BeamSearch:
        limit = max_tokens(utterance.samples, self.info.decoder_positions)
        graph = self._hotwords.of(utterance.hotwords) if utterance.hotwords else None
        if graph is None:
            return BeamSearch(beam=beam, max_tokens=limit)
        most = CANDIDATES if self.info.resident is None else self.info.resident.rows
        return HotwordSearch(beam=beam, max_tokens=limit, graph=graph, top=max(beam, most))

    def _search(self, decoder: Decoder, searches: Sequence[BeamSearch]) -> list[int]:
        """Step all searches until each is done; returns the steps that each took."""
        ids = np.asarray(self.vocabulary.ids, np.int32)
        taken = [0] * len(searches)
        beam, top = searches[0].beam, max(s.top for s in searches)
        position = PROMPT
        while not all(s.done for s in searches):
            last = np.array([[row[-1] for row in s.rows] for s in searches])
            result = decoder.step(
                ids[last],
                np.full(last.shape, position),
                causal=False,
                rows=range(beam),
                scores=[s.scores for s in searches],
                top=top,
            )
            parents = result.best_rows[:, :beam].copy()
            for i, search in enumerate(searches):
                if not search.done:
                    taken[i] += 1
                    search.advance(
                        result.best_scores[i, : search.top],
                        result.best_rows[i, : search.top],
                        result.best_tokens[i, : search.top],
                        result.end_scores[i],
                    )
                    parents[i] = search.parents
            decoder.follow(parents)
            position += 1
        return taken

    def _no_speech(self, specials: Float) -> list[float]:
        """Probability of the no-speech token at the start token, where text has no mass."""
        odds = np.exp(specials - specials.max(axis=1, keepdims=True))
        return [float(p) for p in odds[:, 1] / odds.sum(axis=1)]
