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
class Row:
    """One hypothesis while it is searched."""

    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    score: np.float32
    ended: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to go on."""

    total: np.float32
    parent: int
    token: int
    step: np.float32
    """Its own log-probability."""


@dataclass(frozen=True, slots=True)
class SearchRules:
    """How one utterance is searched."""

    beam: int
    """Rows that are kept."""
    max_tokens: int
    """Most tokens, the end included: the utterance's encoder frames."""
    end: int
    """Id of the end token."""
    eos_penalty: float = 1.0
    """Factor of the end token's log-probability."""
    length_penalty: float = 0.0
    """Exponent of the final division; 0 for none."""


class FireRedBeamSearch:
    """The search of one utterance; begins with one row, the start token."""

    def __init__(self, rules: SearchRules) -> None:
        self._beam = rules.beam
        self.top = rules.beam
        """Continuations that `advance` wants."""
        self._max_tokens = rules.max_tokens
        self._end = rules.end
        self._eos_penalty = np.float32(rules.eos_penalty)
        self._length_penalty = np.float32(rules.length_penalty)
        self._rows = [Row((), (), np.float32(0), ended=False)]
        self._steps = 0
        self.parents: list[int] = [0]
        """For the decoder: the row of the last step that each row continues. A row that has ended
        stands on the history of a live one, so that its own cells can be given away."""
        self.done = rules.max_tokens <= 0

    @property
    def last(self) -> list[int]:
        """Last token of each row, the end token for one that has ended. Not before the first."""
        return [self._end if row.ended else row.tokens[-1] for row in self._rows]

    @property
    def scores(self) -> list[float]:
        """What the graph is given: how far each row lies behind the best live one, `OUT` for one
        that has ended. Near 0, a float32 tells a token's own log-probability; near -60 not."""
        return [float(given) for given in self._given()]

    def _given(self) -> list[np.float32]:
        worth = [self._worth(i) for i in range(len(self._rows))]
        live = [each for each, row in zip(worth, self._rows, strict=True) if not row.ended]
        best = max(live, default=np.float32(0))
        return [
            OUT if row.ended else np.float32(each - best)
            for each, row in zip(worth, self._rows, strict=True)
        ]

    def _worth(self, i: int) -> np.float32:
        """What a row is compared by while it grows."""
        return self._rows[i].score

    def advance(self, scores: Float, parents: Int, tokens: Int, ends: Float) -> None:
        """Take one step's answer.

        Args:
            scores: float32[top], of the best continuations by other than the end token: what
                the graph was given for the row and the token's log-probability.
            parents: int32, the row that each continues.
            tokens: int32, the token that each adds.
            ends: float32[rows], of ending each row here.
        """
        rows, given = self._rows, self._given()
        offers: list[Offer] = []
        for score, parent, token in zip(scores, parents, tokens, strict=True):
            row = rows[int(parent)]
            if not row.ended:
                step = np.float32(score - given[int(parent)])
                offers.append(Offer(np.float32(row.score + step), int(parent), int(token), step))
        for i, row in enumerate(rows):
            step = np.float32(0)
            if not row.ended:
                step = np.float32(np.float32(ends[i] - given[i]) * self._eos_penalty)
            offers.append(Offer(np.float32(row.score + step), i, self._end, step))
        chosen = self._choose(offers)
        self._rows = [self._follow(rows[offer.parent], offer) for offer in chosen]
        self._steps += 1
        pairs = list(zip(chosen, self._rows, strict=True))
        live = next((offer.parent for offer, row in pairs if not row.ended), 0)
        self.parents = [live if row.ended else offer.parent for offer, row in pairs]
        self.done = self._steps >= self._max_tokens or all(row.ended for row in self._rows)

    def _choose(self, offers: list[Offer]) -> list[Offer]:
        """The offers that go on, best first; of equal ones the first."""
        return sorted(offers, key=lambda offer: -offer.total)[: self._beam]

    def _follow(self, row: Row, offer: Offer) -> Row:
        if row.ended:
            return row
        if offer.token == self._end:
            return Row(row.tokens, row.chances, offer.total, ended=True)
        chances = (*row.chances, min(float(np.exp(offer.step)), 1.0))
        return Row((*row.tokens, offer.token), chances, offer.total, ended=False)

    def results(self) -> list[FireRedHypothesis]:
        """Hypotheses, best first."""
        rows = self._rows
        order = sorted(range(len(rows)), key=lambda i: -self._penalised(rows[i], self._worth(i)))
        return [
            FireRedHypothesis(
                row.tokens, float(self._penalised(row, row.score)), row.chances, row.ended
            )
            for row in (rows[i] for i in order)
        ]

    def _penalised(self, row: Row, score: np.float32) -> np.float32:
        length = np.float32(len(row.tokens) + 1)
        return np.float32(score / ((5 + length) / np.float32(6)) ** self._length_penalty)
