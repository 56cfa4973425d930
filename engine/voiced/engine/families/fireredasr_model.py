"""FireRedASR's graphs with their buffers: features in, hypotheses out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from voiced.audio.features.kaldi import Cmvn, features
from voiced.engine.backends.base import Backend, Traffic
from voiced.engine.buffers import Float
from voiced.engine.bundle import Manifest
from voiced.engine.decode import Decoder, StepResult
from voiced.engine.errors import BundleError
from voiced.engine.families.fireredasr import (
    FireRedFrontendInfo,
    FireRedModelInfo,
    FireRedTokenInfo,
)
from voiced.engine.families.fireredasr_graphs import FireRedGraphs, HostGraphs, Loan
from voiced.engine.families.fireredasr_hotwords import FireRedHotwordSearch, FireRedSpelling
from voiced.engine.families.fireredasr_resident import ResidentGraphs
from voiced.engine.families.fireredasr_search import (
    FireRedBeamSearch,
    FireRedHypothesis,
    SearchRules,
)
from voiced.engine.families.fireredasr_text import Tokens
from voiced.engine.graphs import open_graphs
from voiced.engine.hotwords import CANDIDATES, HotwordGraphs
from voiced.engine.types import Gear, Hotword


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the search of one utterance found."""

    hypotheses: list[FireRedHypothesis]
    """Best first."""
    steps: int


class FireRedModel:
    """One bundle's graphs, and the search over them. One thread only.

    Args:
        root: The bundle's folder (a staged one while it is being built).
        manifest: Its manifest.
        backend: Runtime for the graphs.
        threads: Threads of one graph call.
        max_batch: Most utterances decoded together.
        max_beam: Widest search; None for the bundle's own.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        backend: Backend,
        *,
        threads: int,
        max_batch: int,
        max_beam: int | None = None,
    ) -> None:
        try:
            self.info = msgspec.convert(manifest.model, FireRedModelInfo)
            self.tokens = msgspec.convert(manifest.tokens, FireRedTokenInfo)
            self.frontend = msgspec.convert(manifest.frontend, FireRedFrontendInfo)
            self._cmvn = Cmvn.read(root / self.frontend.cmvn, self.frontend.mels)
        except (msgspec.ValidationError, ValueError) as error:
            raise BundleError(
                root / "manifest.json", found=str(error), expected="a FireRedASR manifest"
            ) from error
        self.written = Tokens.read(root / self.tokens.text)
        if len(self.written) != self.info.vocabulary:
            raise BundleError(
                root / self.tokens.text,
                found=f"{len(self.written)} tokens",
                expected=f"{self.info.vocabulary}",
            )
        self.spelling = FireRedSpelling(self.written)
        self._hotwords = HotwordGraphs(self.spelling.ways, self.spelling.joins)
        self._graphs = open_graphs(root, manifest, backend, threads=threads)
        beam = self.info.search.beam if max_beam is None else max_beam
        self._memory = self._open(root, manifest, max_batch, beam)
        self.gears = self._memory.gears
        self.max_batch = self._memory.max_batch
        """Most utterances decoded together."""

    def _open(self, root: Path, manifest: Manifest, max_batch: int, max_beam: int) -> FireRedGraphs:
        info, resident, pad = self.info, self.info.resident, self.tokens.pad
        if resident is None:
            lengths = sorted({g.frames for g in manifest.gears})
            return HostGraphs(
                self._graphs, lengths, info, pad=pad, max_batch=max_batch, max_beam=max_beam
            )
        resident.refuse_wider(max_beam, root)
        places = resident.read_places(root, info.d_model)
        gears = [Gear(g.frames, g.batch) for g in manifest.gears]
        return ResidentGraphs(
            self._graphs, gears, info, resident, places, pad=pad, max_batch=max_batch
        )

    @property
    def traffic(self) -> Traffic:
        """What the graphs have moved."""
        return self._graphs.traffic

    def features(self, pcm: npt.NDArray[np.int16]) -> Float:
        """Normalised float32[frames, mels]; none for less than one window."""
        return features(pcm, self._cmvn)

    def lend(self, gear: Gear) -> AbstractContextManager[Loan]:
        """Lend the memory of a gear; see `FireRedGraphs.lend`."""
        return self._memory.lend(gear)

    def limit(self, frames: int) -> int:
        """Most tokens of an utterance of so many feature frames, the end token counted."""
        return min(self.info.encoder_frames(frames), self.info.decoder_positions - 1)

    def first_tokens(self, loan: Loan, *, top: int) -> tuple[Float, npt.NDArray[np.int32]]:
        """Candidates for the first token of row 0: (float32[top], ids int32[top])."""
        result = self._begin(loan.begin(1), 1, top)
        return result.best_scores[0].copy(), result.best_tokens[0].copy()

    def decode(
        self,
        loan: Loan,
        frames: Sequence[int],
        *,
        beam: int,
        eos_penalty: float | None = None,
        length_penalty: float | None = None,
        hotwords: Sequence[tuple[Hotword, ...]] = (),
    ) -> list[Decoded]:
        """Search the text of the first len(`frames`) rows of the loan, in lockstep.

        Args:
            loan: With the utterances encoded.
            frames: Feature frames of each; its own limit comes of them.
            beam: Rows of each search.
            eos_penalty: Instead of the bundle's.
            length_penalty: Instead of the bundle's.
            hotwords: Of each utterance; none for any without.
        """
        chosen = self.info.search
        rules = [
            SearchRules(
                beam=beam,
                max_tokens=self.limit(each),
                end=self.tokens.end,
                eos_penalty=chosen.eos_penalty if eos_penalty is None else eos_penalty,
                length_penalty=(
                    chosen.length_penalty if length_penalty is None else length_penalty
                ),
            )
            for each in frames
        ]
        lists = hotwords or [()] * len(frames)
        searches = [self._open_search(*each) for each in zip(rules, lists, strict=True)]
        decoder, n = loan.begin(len(frames)), len(frames)
        top = max(search.top for search in searches)
        result = self._begin(decoder, n, top)
        steps = [0] * n
        position = 0
        while True:
            for i, search in enumerate(searches):
                if not search.done:
                    steps[i] += 1
                    search.advance(
                        result.best_scores[i, : search.top],
                        result.best_rows[i, : search.top],
                        result.best_tokens[i, : search.top],
                        result.end_scores[i],
                    )
            if all(search.done for search in searches):
                return [
                    Decoded(s.results(), taken) for s, taken in zip(searches, steps, strict=True)
                ]
            position += 1
            decoder.follow([search.parents for search in searches])
            result = decoder.step(
                [search.last for search in searches],
                np.full((n, beam), position),
                causal=False,
                rows=range(beam),
                scores=[search.scores for search in searches],
                top=top,
            )

    def _open_search(self, rules: SearchRules, hotwords: tuple[Hotword, ...]) -> FireRedBeamSearch:
        graph = self._hotwords.of(hotwords) if hotwords else None
        if graph is None:
            return FireRedBeamSearch(rules)
        most = CANDIDATES if self.info.resident is None else self.info.resident.rows
        return FireRedHotwordSearch(rules, graph, candidates=most)

    def _begin(self, decoder: Decoder, n: int, top: int) -> StepResult:
        return decoder.step(
            [[self.tokens.start]] * n,
            [[0]],
            causal=True,
            rows=[0],
            scores=np.zeros((n, 1)),
            top=top,
        )
