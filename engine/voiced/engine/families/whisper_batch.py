"""Whisper utterances that are decoded together though they came at different times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from voiced.engine.batch import Answer
from voiced.engine.errors import UnknownLanguage
from voiced.engine.families.whisper import frames_needed
from voiced.engine.families.whisper_graphs import PROMPT
from voiced.engine.families.whisper_model import Begun, Decoded, Utterance, WhisperModel
from voiced.engine.slots import Rows, SlotDecoder
from voiced.engine.split import split_quietly
from voiced.engine.tally import GearTally
from voiced.engine.types import BatchLoad, Gear, Request, Timings, Transcript

Pcm = npt.NDArray[np.int16]


@dataclass(slots=True, eq=False)
class _Work:
    """One request inside."""

    ticket: int
    request: Request
    pieces: deque[Pcm]
    """Not yet begun: one, or several where no gear holds the segment."""
    gear: Gear
    """Of the longest piece."""
    decoded: list[Decoded] = field(default_factory=list)
    spent: Timings = field(default_factory=Timings)


@dataclass(slots=True, eq=False)
class _Live:
    """One piece in a slot of the decoder."""

    work: _Work
    begun: Begun
    steps: int = 0


class WhisperBatch:
    """Requests in the slots of a packed decoder; see `voiced.engine.batch.Batch`.

    A request that joins is encoded and runs its prompt at once; its steps are shared. Those that
    cannot be worked on, and silence, are answered by the next step.

    Args:
        model: The model; its slots are used by nobody else meanwhile.
        gear_of: Chooses the gear of a piece of so many samples.
        beam_of: Chooses the width of a request's search.
        languages: Candidates where none is pinned.
        answer: Makes the transcript of what was decoded.
        tally: Is told of every use of a gear.
    """

    def __init__(
        self,
        model: WhisperModel,
        *,
        gear_of: Callable[[int], Gear],
        beam_of: Callable[[Request], int],
        languages: Sequence[str],
        answer: Callable[[Request, Sequence[Decoded], Timings], Transcript],
        tally: GearTally,
    ) -> None:
        assert model.slots is not None
        self._model = model
        self._slots: SlotDecoder = model.slots
        self._gear_of = gear_of
        self._beam_of = beam_of
        self._languages = languages
        self._answer = answer
        self._longest = model.gears.max_frames * 160
        self._work: dict[int, _Work] = {}
        self._live: list[_Live] = []
        """By slot."""
        self._answered: list[tuple[int, Answer]] = []
        self._tally = tally

    def __len__(self) -> int:
        return len(self._work) + len(self._answered)

    def admits(self, request: Request) -> bool:
        """Whether a slot is free for it, and the memory for its cross-attention."""
        if any(work.pieces for work in self._work.values()):
            return False  # a piece of one inside comes first
        return not self._work or self._holds(self._gear(request))

    def _holds(self, gear: Gear) -> bool:
        return self._slots.n == 0 or self._slots.holds(self._model.span(gear))

    def _gear(self, request: Request) -> Gear:
        return self._gear_of(min(len(request.segment.pcm), self._longest))

    def join(self, ticket: int, request: Request) -> None:
        """Encode a request and run its prompt."""
        segment = request.segment
        if segment.language is not None and segment.language not in self._model.languages:
            error = UnknownLanguage(f"the model does not know {segment.language!r}")
            self._answered.append((ticket, error))
        elif not segment.pcm.any():  # Whisper invents credits for digital silence
            self._answered.append((ticket, self._answer(request, [], Timings())))
        else:
            pieces = deque([segment.pcm])
            if len(segment.pcm) > self._longest:
                pieces = deque(split_quietly(segment.pcm, self._longest))
            work = _Work(ticket, request, pieces, self._gear(request))
            self._begin(work)
            self._work[ticket] = work

    def _begin(self, work: _Work) -> None:
        """Bring the next piece of a request into a slot."""
        piece, moved = work.pieces.popleft(), self._model.traffic
        gear = self._gear_of(len(piece))
        times = [time.perf_counter()]
        with self._model.lend(gear) as loan:
            features = self._model.features(piece, gear)
            times.append(time.perf_counter())
            loan.prefill([features])
            times.append(time.perf_counter())
            utterance = Utterance(len(piece), work.request.segment.language, work.request.hotwords)
            begun = self._model.join(
                loan, utterance, beam=self._beam_of(work.request), configured=self._languages
            )
            times.append(time.perf_counter())
        self._tally.note(gear, [frames_needed(len(piece))])
        features_ms, prefill_ms, prompt_ms = np.diff(times) * 1000
        moved = self._model.traffic - moved
        work.spent += Timings(
            features_ms=features_ms,
            prefill_ms=prefill_ms,
            decode_ms=prompt_ms,
            to_device_bytes=moved.to_device,
            from_device_bytes=moved.from_device,
        )
        self._live.append(_Live(work, begun))

    def step(self) -> list[tuple[int, Answer]]:
        """Add a token to every row of every utterance."""
        for work in self._work.values():
            if work.pieces and self._is_idle(work) and self._holds(work.gear):
                self._begin(work)
        if self._live:
            self._step()
        for slot in reversed(range(len(self._live))):
            if self._live[slot].begun.search.done:
                self._finish(slot)
        answered, self._answered = self._answered, []
        return answered

    def _is_idle(self, work: _Work) -> bool:
        return all(live.work is not work for live in self._live)

    def _step(self) -> None:
        began, moved = time.perf_counter(), self._model.traffic
        self._slots.step([Rows(each.begun.search, PROMPT + each.steps) for each in self._live])
        step_ms = (time.perf_counter() - began) * 1000
        moved = self._model.traffic - moved
        spent = Timings(
            decode_ms=step_ms,
            steps=1,
            to_device_bytes=moved.to_device,
            from_device_bytes=moved.from_device,
        )
        for each in self._live:
            each.steps += 1
            each.work.spent += spent

    def _finish(self, slot: int) -> None:
        live = self._remove(slot)
        work = live.work
        work.decoded.append(live.begun.decoded(live.steps))
        if not work.pieces:
            del self._work[work.ticket]
            answer = self._answer(work.request, work.decoded, work.spent)
            self._answered.append((work.ticket, answer))

    def _remove(self, slot: int) -> _Live:
        """Free a slot; the last one moves into it."""
        self._slots.leave(slot)
        live, last = self._live[slot], self._live.pop()
        if last is not live:
            self._live[slot] = last
        return live

    def leave(self, ticket: int) -> None:
        """Take a request out."""
        work = self._work.pop(ticket, None)
        self._answered = [each for each in self._answered if each[0] != ticket]
        for slot, live in enumerate(self._live):
            if live.work is work:
                self._remove(slot)
                return

    def clear(self) -> None:
        """Take all out."""
        self._slots.clear()
        self._live.clear()
        self._work.clear()
        self._answered.clear()

    def load(self) -> BatchLoad:
        """Say how full the slots are."""
        positions = self._slots.n * self._slots.span
        return BatchLoad(
            running=len(self._work),
            positions=positions,
            padding=self._slots.padding if positions else 0,
        )
