"""What the engine works on at a moment: requests that come, are worked on step by step, and go.

`Batch` is what the engine's thread drives. A recogniser that can let a request join others that
are half done opens its own; `Lockstep` makes one of any other recogniser.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from voiced.engine.errors import BackendFailed, EngineError
from voiced.engine.recognizer import Recognizer
from voiced.engine.types import BatchLoad, Request, Transcript

Answer = Transcript | EngineError


class Batch(Protocol):
    """Requests that a recogniser works on. Owned by the engine's thread.

    Between any two calls requests may join and leave; no answer depends on who shares the batch.
    """

    def __len__(self) -> int:
        """Requests inside."""
        ...

    def admits(self, request: Request) -> bool:
        """Whether it can join now; always true of an empty batch."""
        ...

    def join(self, ticket: int, request: Request) -> None:
        """Take a request in, under a number that its answer will carry.

        Raises:
            EngineError: It cannot be worked on; it is not inside.
        """
        ...

    def step(self) -> list[tuple[int, Answer]]:
        """Do one bounded piece of work for all inside; whoever is answered has left.

        Raises:
            EngineError: The piece failed; all are inside still, and can only be cleared.
        """
        ...

    def leave(self, ticket: int) -> None:
        """Take a request out unanswered."""
        ...

    def clear(self) -> None:
        """Take all out unanswered."""
        ...

    def load(self) -> BatchLoad:
        """Say how full it is."""
        ...


@runtime_checkable
class Continuous(Protocol):
    """A recogniser whose requests can join and leave at any step."""

    def open_batch(self) -> Batch | None:
        """Return the batch of this recogniser; None when its model cannot do it."""
        ...


def batch_of(recognizer: Recognizer) -> Batch:
    """Return what drives a recogniser, its own way or in lockstep."""
    batch = recognizer.open_batch() if isinstance(recognizer, Continuous) else None
    return Lockstep(recognizer) if batch is None else batch


_KEY_FRAMES = 100
"""Feature frames (1 s) that the gears of one lockstep may differ by."""


@dataclass(frozen=True, slots=True)
class LockstepKey:
    """Requests with equal keys are recognised together: gears of one second, one kind of search."""

    seconds: int
    beam: int

    @classmethod
    def of(cls, gear_frames: int, beam: int) -> LockstepKey:
        """Return the key of a request for a gear of this length, and what its search keeps."""
        return cls(-(-gear_frames // _KEY_FRAMES), beam)


class Lockstep:
    """Requests of one key, recognised together from beginning to end in one step."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._inside: dict[int, Request] = {}
        self._key: Hashable = None

    def __len__(self) -> int:
        return len(self._inside)

    def admits(self, request: Request) -> bool:
        """Whether it has the key of those inside, and there is room."""
        if not self._inside:
            return True
        return len(self._inside) < self._recognizer.max_batch and self._of(request) == self._key

    def _of(self, request: Request) -> Hashable:
        try:
            return self._recognizer.batch_key(request)
        except EngineError:  # fits no gear: runs alone, and `recognize` says why it cannot
            return id(request)

    def join(self, ticket: int, request: Request) -> None:
        """Take a request in."""
        self._key = self._of(request)
        self._inside[ticket] = request

    def step(self) -> list[tuple[int, Answer]]:
        """Answer all that are inside."""
        if not self._inside:
            return []
        tickets, requests = zip(*self._inside.items(), strict=True)
        outcomes = self._recognizer.recognize(requests)
        if len(outcomes) != len(requests):
            text = f"recogniser gave {len(outcomes)} answers to {len(requests)} requests"
            raise BackendFailed(text)
        self._inside.clear()
        return list(zip(tickets, outcomes, strict=True))

    def leave(self, ticket: int) -> None:
        """Take a request out."""
        del self._inside[ticket]

    def clear(self) -> None:
        """Take all out."""
        self._inside.clear()

    def load(self) -> BatchLoad:
        """Say how full it is; how the decoder is padded is not known here."""
        return BatchLoad(running=len(self._inside))
