"""From what was said and what a server wrote to what became of each utterance. Pure.

A server may cut one utterance into two segments or join two into one, so an utterance is matched
with all segments that overlap its speech, by position in the stream. It is settled as soon as a
later utterance has been answered, and forgotten then: only its figures stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Placed, Spoken
from voiced.bench.normalise import Normaliser
from voiced.bench.scoring import edit_distance
from voiced.daemon import wire

MOST_WRONG = 0.5
"""Share of words (Mandarin: characters) that may be wrong in a text that counts as right."""


class Fate(StrEnum):
    """What became of an utterance."""

    RIGHT = "right"
    """A final with at most half of it wrong."""
    MISHEARD = "misheard"
    """The same weights get it right offline; here its text is missing or mostly wrong."""
    HARD = "hard"
    """The same weights do not get it right offline either: timed, not judged."""
    FAILED = "failed"
    """The server said that there will be no text."""
    UNJUDGED = "unjudged"
    """There is nothing to compare with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One utterance; times in ms, from the true place of speech on the client's own clock."""

    stream: int
    clip: str
    language: str
    spoken_s: float
    """When its speech ended, since the start of the run."""
    fate: Fate
    final_ms: float | None
    """End of speech → the final that covers it."""
    ended_ms: float | None
    """End of speech → `speech_ended`: the server's silence wait."""
    after_ended_ms: float | None
    """`speech_ended` → final."""
    first_partial_ms: float | None
    """Start of speech → first partial with text."""
    eager_ms: float | None
    """End of speech → the `eager_final` that was not taken back, where such were asked for."""
    on_screen_ms: float | None
    """End of speech → a text as good as the final is shown at all, as a partial or as the final;
    negative before the speaker ends. Of utterances that came right only."""
    text: str
    segments: int
    """How many segments it was cut into."""


class Judge:
    """Tells right texts from wrong ones: what the same weights get right offline counts."""

    def __init__(self, normaliser: Normaliser, offline: Mapping[str, str]) -> None:
        """Take over the offline texts.

        Args:
            normaliser: Makes words or characters of a text.
            offline: Clip → what the same weights write of the whole clip.
        """
        self._normaliser = normaliser
        self._offline = offline
        self._expected: dict[str, tuple[list[str], bool] | None] = {}

    def expected(self, spoken: Spoken) -> tuple[list[str], bool] | None:
        """Return the units to compare with and whether offline gets them right; None: nothing."""
        if spoken.clip not in self._expected:
            self._expected[spoken.clip] = self._look_up(spoken)
        return self._expected[spoken.clip]

    def is_right(self, spoken: Spoken, text: str, *, is_shared: bool = False) -> bool:
        """Whether a text says what was said; `is_shared`: it says other things too."""
        expected = self.expected(spoken)
        errors = self.errors(spoken, text, is_shared=is_shared)
        return expected is not None and errors <= MOST_WRONG * len(expected[0])

    def errors(self, spoken: Spoken, text: str, *, is_shared: bool = False) -> int:
        """How many words or characters of a text are wrong; 0 with nothing to compare with."""
        expected = self.expected(spoken)
        said = expected[0] if expected else []
        heard = self._normaliser.units(text, spoken.language)
        return infix_distance(said, heard) if is_shared else edit_distance(said, heard)

    def fate(self, spoken: Spoken, text: str, *, is_shared: bool) -> Fate:
        """Return what a final text is worth."""
        expected = self.expected(spoken)
        if expected is None:
            return Fate.UNJUDGED
        if not expected[1]:
            return Fate.HARD
        return Fate.RIGHT if self.is_right(spoken, text, is_shared=is_shared) else Fate.MISHEARD

    def _look_up(self, spoken: Spoken) -> tuple[list[str], bool] | None:
        offline = self._offline.get(spoken.clip)
        units = self._normaliser.units
        said = units(spoken.reference, spoken.language) if spoken.reference else []
        if offline is None:
            return (said, True) if said else None
        written = units(offline, spoken.language)
        if not said:
            return (written, True) if written else None
        return said, edit_distance(said, written) <= MOST_WRONG * len(said)


def infix_distance(said: Sequence[str], heard: Sequence[str]) -> int:
    """Return the fewest edits that make `said` of some stretch of `heard` (Sellers 1980)."""
    row = [0] * (len(heard) + 1)  # beginning anywhere costs nothing
    for count, unit in enumerate(said, start=1):
        before, row = row, [count]
        for column, other in enumerate(heard, start=1):
            row.append(min(before[column - 1] + (unit != other), before[column] + 1, row[-1] + 1))
    return min(row)  # ending anywhere neither


@dataclass(slots=True)
class _Segment:
    """What the server said about one segment."""

    number: int
    start: int
    """Samples of the stream."""
    end: int | None = None
    ended_s: float | None = None
    final_s: float | None = None
    text: str = ""
    is_failed: bool = False
    first_partial_s: float | None = None
    eager_s: float | None = None
    partials: tuple[tuple[float, str], ...] = ()
    """The newest, with the time of their arrival."""


_KEPT_PARTIALS = 40


class Hearing:
    """One stream: takes utterances and messages, gives outcomes."""

    def __init__(self, stream: int, begin_s: float, judge: Judge | None) -> None:
        """Begin a stream.

        Args:
            stream: Its number, for the outcomes.
            begin_s: When its sample 0 was due, on the clock of `take`.
            judge: Compares texts; None leaves them unjudged.
        """
        self._stream, self._begin_s, self._judge = stream, begin_s, judge
        self._said: deque[Placed] = deque()
        self._segments: deque[_Segment] = deque()

    def say(self, placed: Placed) -> None:
        """An utterance begins to be played."""
        self._said.append(placed)

    def take(self, message: wire.ServerMessage, now_s: float) -> list[Outcome]:
        """Enter a message that came at `now_s`; return what is settled by it."""
        match message:
            case wire.SpeechStarted():
                self._segments.append(_Segment(message.segment, _sample(message.start_ms)))
            case wire.Partial():
                if (segment := self._find(message.segment)) and message.text.strip():
                    if segment.first_partial_s is None:
                        segment.first_partial_s = now_s
                    kept = (*segment.partials, (now_s, message.text))
                    segment.partials = kept[-_KEPT_PARTIALS:]
            case wire.EagerFinal():
                if segment := self._find(message.segment):
                    segment.eager_s = now_s
                    kept = (*segment.partials, (now_s, message.text))
                    segment.partials = kept[-_KEPT_PARTIALS:]
            case wire.Resumed():
                if segment := self._find(message.segment):
                    segment.eager_s = None
            case wire.SpeechEnded():
                if segment := self._find(message.segment):
                    segment.ended_s, segment.end = now_s, _sample(message.end_ms)
            case wire.Final():
                if segment := self._find(message.segment):
                    segment.final_s, segment.text = now_s, message.text
                    segment.end = _sample(message.end_ms)
                return self._settle(_sample(message.start_ms))
            case wire.Failed():
                if segment := self._find(message.segment):
                    segment.final_s, segment.is_failed = now_s, True
                    segment.end = segment.start if segment.end is None else segment.end
            case _:
                pass
        return []

    def close(self) -> list[Outcome]:
        """Nothing more will come: settle everything."""
        return self._settle(None)

    def _find(self, number: int) -> _Segment | None:
        return next((each for each in self._segments if each.number == number), None)

    def _settle(self, answered: int | None) -> list[Outcome]:
        """Settle utterances whose speech ended before the segment that was answered began."""
        done: list[Outcome] = []
        while self._said and (answered is None or self._said[0].speech_end <= answered):
            placed = self._said.popleft()
            done.append(self._outcome(placed))
            begin = self._said[0].speech_start if self._said else None
            while self._segments and (segment := self._segments[0]).final_s is not None:
                if begin is not None and (segment.end or segment.start) > begin:
                    break  # the next utterance needs it too
                self._segments.popleft()
        return done

    def _outcome(self, placed: Placed) -> Outcome:
        mine = [
            each
            for each in self._segments
            if each.start < placed.speech_end and (each.end or each.start) > placed.speech_start
        ]
        answered = [each for each in mine if each.final_s is not None]
        text = " ".join(each.text for each in answered if each.text)
        after = self._said[0].speech_start if self._said else None
        is_shared = any(
            each.start < placed.start
            or (after is not None and each.end is not None and each.end > after)
            for each in mine
        )
        end_s = self._begin_s + placed.speech_end / RATE_HZ
        last = next((e for e in reversed(answered) if e.text), answered[-1] if answered else None)
        final_s = last.final_s if last else None
        ended_s = last.ended_s if last else None
        partial_s = next((e.first_partial_s for e in mine if e.first_partial_s is not None), None)
        return Outcome(
            stream=self._stream,
            clip=placed.spoken.clip,
            language=placed.spoken.language,
            spoken_s=placed.speech_end / RATE_HZ,
            fate=self._fate(placed, mine, text, is_shared=is_shared),
            final_ms=_ms(end_s, final_s),
            ended_ms=_ms(end_s, ended_s),
            after_ended_ms=_ms(ended_s, final_s),
            first_partial_ms=_ms(self._begin_s + placed.speech_start / RATE_HZ, partial_s),
            eager_ms=_ms(end_s, last.eager_s if last else None),
            on_screen_ms=_ms(end_s, self._on_screen_s(placed, mine, text, is_shared=is_shared)),
            text=text,
            segments=len(mine),
        )

    def _fate(
        self, placed: Placed, mine: Sequence[_Segment], text: str, *, is_shared: bool
    ) -> Fate:
        if any(each.is_failed for each in mine):
            return Fate.FAILED
        if self._judge is None:
            return Fate.UNJUDGED
        return self._judge.fate(placed.spoken, text, is_shared=is_shared)

    def _on_screen_s(
        self, placed: Placed, mine: Sequence[_Segment], final: str, *, is_shared: bool
    ) -> float | None:
        """When a text as good as the final was first shown; None where the final is not right."""
        judge, spoken = self._judge, placed.spoken
        if judge is None or not mine or not judge.is_right(spoken, final, is_shared=is_shared):
            return None
        most = judge.errors(spoken, final, is_shared=is_shared)
        before = " ".join(each.text for each in mine[:-1])
        for at_s, text in mine[-1].partials:
            if judge.errors(spoken, f"{before} {text}", is_shared=is_shared) <= most:
                return at_s
        return mine[-1].final_s


def _sample(at_ms: int) -> int:
    return at_ms * RATE_HZ // 1000


def _ms(since_s: float | None, at_s: float | None) -> float | None:
    return None if since_s is None or at_s is None else (at_s - since_s) * 1000
