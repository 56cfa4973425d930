"""Dialogues for live benches: clips with pauses between them, on and on, the same for one seed.

About 40 % of a stream is speech, the rest a quiet room. What is spoken, and where its speech ends,
is known before the clock starts: the true end of speech is Silero's last window of speech in the
clip, found offline, never a server's own idea of it. A dialogue is made block by block, so that
one of two hours takes no more memory than one of a minute.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import float_to_int16
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadModel
from voiced.bench.corpus import Clip
from voiced.bench.errors import CorpusError
from voiced.bench.peers import LengthClass, pick

Pcm = npt.NDArray[np.int16]

SPEECH_SHARE = 0.4
"""Of a stream: what one of two people who talk to each other says."""
LEAST_PAUSE_S = 1.2
"""Between two utterances: twice the silence that ends a segment, so that they stay apart."""
ROOM_DBFS = -72.0
"""Level of the noise in the pauses."""
LENGTH = LengthClass("dialogue", 1.5, 8.0, 0)
"""Clips that are taken for utterances."""
LANGUAGES = ("en", "zh")
"""Of even and of odd streams, where there are clips of both."""
_ROOM_S = 7.3
_LAST_PAUSE_S = 1.5
"""Silence at the end of a dialogue: the last segment ends as the others do."""


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """One utterance as it can be played."""

    clip: str
    """Id of the recording."""
    language: str
    reference: str | None
    """What is said, where somebody wrote it down."""
    pcm: Pcm
    """int16[n] at 16 kHz, shared by all streams."""
    speech_start: int
    """Sample of the clip at which speech begins."""
    speech_end: int
    """Sample behind the last speech of the clip."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An utterance in a stream; positions are samples of the stream."""

    number: int
    """0, 1, … within the stream."""
    spoken: Spoken
    start: int
    """Where the clip begins."""

    @property
    def speech_start(self) -> int:
        """Where its speech begins."""
        return self.start + self.spoken.speech_start

    @property
    def speech_end(self) -> int:
        """Where its speech ends."""
        return self.start + self.spoken.speech_end


def choose(clips: Sequence[Clip], per_language: int) -> dict[str, list[Clip]]:
    """Choose the clips of the dialogues, the same ones on every machine, sets in turn.

    Raises:
        CorpusError: There is no speech clip of a suitable length.
    """
    found = {
        language: pick([c for c in clips if c.language == language], LENGTH, per_language)
        for language in sorted({c.language for c in clips if c.language})
    }
    found = {language: chosen for language, chosen in found.items() if chosen}
    if not found:
        raise CorpusError(
            f"no speech clip of {LENGTH.least_s:g} to {LENGTH.most_s:g} s with a language found; "
            "dialogues are made of such"
        )
    return found


def languages_of(streams: int, available: Sequence[str]) -> list[str]:
    """Return the language of each stream: even ones English, odd ones Mandarin where there is."""
    turns = [language for language in LANGUAGES if language in available] or sorted(available)
    return [turns[number % len(turns)] for number in range(streams)]


def mark_speech(pcm: Pcm, detector: VadModel, *, threshold: float = 0.5) -> tuple[int, int]:
    """Return where speech begins and ends in a clip; all of it where the detector hears none."""
    size = detector.window_samples
    whole = len(pcm) // size * size
    windows = np.divide(pcm[:whole], 32768, dtype=np.float32).reshape(-1, size)
    probabilities = detector.feed_many(windows) if whole else []
    places = [place for place, p in enumerate(probabilities) if p > threshold]
    return (places[0] * size, (places[-1] + 1) * size) if places else (0, len(pcm))


class Dialogue:
    """One stream's sound: utterances of one language in a random order, pauses between them."""

    def __init__(
        self,
        spoken: Sequence[Spoken],
        *,
        seed: int,
        seconds: float,
        share: float = SPEECH_SHARE,
    ) -> None:
        """Prepare a stream.

        Args:
            spoken: What can be said; each is said once before any is said again.
            seed: The same seed gives the same stream.
            seconds: Length. No utterance begins that would not end before it.
            share: How much of the time is speech.
        """
        if not spoken:
            raise ValueError("a dialogue needs at least one utterance")
        self.samples = round(seconds * RATE_HZ)
        self.placed: deque[Placed] = deque()
        """What has begun since the reader last looked: take it from the left."""
        self._rng = np.random.default_rng(seed)
        self._share = share
        room = synthetic.noise(_ROOM_S, seed=seed, level_dbfs=ROOM_DBFS)
        self._room = float_to_int16(room)
        self._parts = self._make(spoken)
        self._rest: Pcm = np.zeros(0, np.int16)
        self._position = 0

    def block(self, samples: int) -> bytes | None:
        """Return the next s16 block, shorter at the end; None when the dialogue is over."""
        wanted = min(samples, self.samples - self._position)
        if wanted <= 0:
            return None
        got: list[Pcm] = []
        missing = wanted
        while missing:
            if not len(self._rest):
                self._rest = next(self._parts)
            piece, self._rest = self._rest[:missing], self._rest[missing:]
            got.append(piece)
            missing -= len(piece)
        self._position += wanted
        return np.concatenate(got).astype("<i2").tobytes()

    def _make(self, spoken: Sequence[Spoken]) -> Iterator[Pcm]:
        """Yield pauses and clips without end; note each clip when it is asked for."""
        position, said = 0, 0
        cycle_s = float(np.mean([len(each.pcm) for each in spoken])) / RATE_HZ / self._share
        pause_s = float(self._rng.uniform(0.1, 0.6)) * cycle_s  # streams do not begin together
        for number, each in enumerate(self._order(spoken)):
            for piece in self._quiet(round(pause_s * RATE_HZ)):
                position += len(piece)
                yield piece
            if position + len(each.pcm) > self.samples - round(_LAST_PAUSE_S * RATE_HZ):
                break
            self.placed.append(Placed(number, each, position))
            yield each.pcm
            position += len(each.pcm)
            said += each.speech_end - each.speech_start
            pause_s = self._pause_s(position, said)
        while True:
            yield from self._quiet(len(self._room))

    def _order(self, spoken: Sequence[Spoken]) -> Iterator[Spoken]:
        while True:
            for index in self._rng.permutation(len(spoken)):
                yield spoken[index]

    def _pause_s(self, position: int, said: int) -> float:
        """A pause, half to one and a half of what brings the share of speech back to its aim."""
        missing_s = (said / self._share - position) / RATE_HZ
        return max(missing_s * float(self._rng.uniform(0.5, 1.5)), LEAST_PAUSE_S)

    def _quiet(self, samples: int) -> Iterator[Pcm]:
        while samples > 0:
            piece = self._room[:samples]
            samples -= len(piece)
            yield piece


def dialogues(
    spoken: dict[str, list[Spoken]], streams: int, *, seconds: float, seed: int = 0
) -> list[tuple[str, Dialogue]]:
    """Return language and dialogue of each stream."""
    languages = languages_of(streams, list(spoken))
    return [
        (language, Dialogue(spoken[language], seed=1_000 * seed + number, seconds=seconds))
        for number, language in enumerate(languages)
    ]


def prepare(
    chosen: dict[str, list[Clip]],
    read: Callable[[Clip], Pcm],
    detector: Callable[[], VadModel],
) -> dict[str, list[Spoken]]:
    """Decode the clips and find where their speech begins and ends.

    Args:
        chosen: Clips of each language.
        read: Decodes one.
        detector: Makes a fresh detector for each clip.
    """
    ready: dict[str, list[Spoken]] = {}
    for clip in itertools.chain.from_iterable(chosen.values()):
        pcm = read(clip)
        start, end = mark_speech(pcm, detector())
        language = str(clip.language)
        ready.setdefault(language, []).append(Spoken(clip.id, language, clip.text, pcm, start, end))
    return ready
