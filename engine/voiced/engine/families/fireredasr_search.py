"""FireRedASR's beam search, decided on the host from what the step graph answers.

It chooses the tokens that the published search chooses: each live row offers its best
continuations, the end of text among them; a row that has ended offers itself, unchanged; the best
`beam` of all go on, until every row has ended or the limit is reached. Only then are scores divided
by the length penalty. Sums are float32, as there, so that they round alike.

Pure: no graph is run here. The limit is the utterance's own, so a text does not depend on who
shares its batch; the published code takes the limit of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

OUT = np.float32(-1e9)
"""Score that the graph is given for a row that has ended: nothing it offers is ever the best."""


@dataclass(frozen=True, slots=True)
class FireRedHypothesis:
    """One way to read the utterance."""

    tokens: tuple[int, ...]
    """Without start and end."""
    score: float
    """Sum of log-probabilities, divided by the length penalty."""
    chances: tuple[float, ...]
    """Probability of each token when it was chosen, after smoothing."""
    ended: bool
    """The model ended it by itself; False at the limit."""

    @property
    def confidence(self) -> float:
        """Mean chance of the tokens; 0 without any."""
        return sum(self.chances) / len(self.chances) if self.chances else 0.0


@dataclass(frozen=True, slots=True)
class _Row:
    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    score: np.float32
    ended: bool


class FireRedBeamSearch:
    """The search of one utterance; begins with one row, the start token.

    Args:
        beam: Rows that are kept.
        max_tokens: Most tokens, the end included: the utterance's encoder frames.
        end: Id of the end token.
        eos_penalty: Factor of the end token's log-probability.
        length_penalty: Exponent of the final division; 0 for none.
    """

    def __init__(
        self,
        *,
        beam: int,
        max_tokens: int,
        end: int,
        eos_penalty: float = 1.0,
        length_penalty: float = 0.0,
    ) -> None:
        self._beam = beam
        self._max_tokens = max_tokens
        self._end = end
        self._eos_penalty = np.float32(eos_penalty)
        self._length_penalty = np.float32(length_penalty)
        self._rows = [_Row((), (), np.float32(0), ended=False)]
        self._steps = 0
        self.parents: list[int] = [0]
        """For the decoder: the row of the last step that each row continues. A row that has ended
        stands on the history of a live one, so that its own cells can be given away."""
        self.done = max_tokens <= 0

    @property
    def last(self) -> list[int]:
        """Last token of each row, the end token for one that has ended. Not before the first."""
        return [self._end if row.ended else row.tokens[-1] for row in self._rows]

    @property
    def scores(self) -> list[float]:
        """What the graph is given: the sum of each row, `OUT` for one that has ended."""
        return [float(OUT if row.ended else row.score) for row in self._rows]

    def advance(self, scores: Float, parents: Int, tokens: Int, ends: Float) -> None:
        """Take one step's answer.

        Args:
            scores: float32[>= beam], sums of the best continuations by other than the end token.
            parents: int32, the row that each continues.
            tokens: int32, the token that each adds.
            ends: float32[rows], the sum of ending each row here.
        """
        rows = self._rows
        offers: list[tuple[np.float32, int, int]] = [
            (np.float32(score), int(parent), int(token))
            for score, parent, token in zip(scores, parents, tokens, strict=True)
            if not rows[int(parent)].ended
        ]
        for i, row in enumerate(rows):
            total = row.score if row.ended else self._ending(row, np.float32(ends[i]))
            offers.append((total, i, self._end))
        offers.sort(key=lambda offer: -offer[0])
        chosen = offers[: self._beam]
        self._rows = [self._follow(rows[parent], token, total) for total, parent, token in chosen]
        self._steps += 1
        live = next(
            (p for (_, p, _), row in zip(chosen, self._rows, strict=True) if not row.ended), 0
        )
        self.parents = [
            live if row.ended else parent
            for (_, parent, _), row in zip(chosen, self._rows, strict=True)
        ]
        self.done = self._steps >= self._max_tokens or all(row.ended for row in self._rows)

    def _ending(self, row: _Row, end: np.float32) -> np.float32:
        if self._eos_penalty == 1:
            return end
        return np.float32(row.score + np.float32(end - row.score) * self._eos_penalty)

    def _follow(self, row: _Row, token: int, total: np.float32) -> _Row:
        if row.ended:
            return row
        if token == self._end:
            return _Row(row.tokens, row.chances, total, ended=True)
        chance = float(np.exp(float(total) - float(row.score)))
        return _Row((*row.tokens, token), (*row.chances, min(chance, 1.0)), total, ended=False)

    def results(self) -> list[FireRedHypothesis]:
        """Hypotheses, best first."""
        found = [
            FireRedHypothesis(row.tokens, float(self._penalised(row)), row.chances, row.ended)
            for row in self._rows
        ]
        return sorted(found, key=lambda each: -each.score)

    def _penalised(self, row: _Row) -> np.float32:
        length = np.float32(len(row.tokens) + 1)
        return np.float32(row.score / ((5 + length) / np.float32(6)) ** self._length_penalty)
