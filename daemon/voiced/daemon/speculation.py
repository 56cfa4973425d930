"""A final begun when silence began, before it is known that the segment ends there."""

from __future__ import annotations

import asyncio

from voiced.audio.frames import Segment, SegmentPaused
from voiced.daemon.asking import Failure
from voiced.engine.types import Transcript


class Speculation:
    """One segment's eager request: under way or answered, until it is used or withdrawn."""

    def __init__(self, paused: SegmentPaused, task: asyncio.Task[Transcript | Failure]) -> None:
        self.task = task
        self._start_sample = paused.segment.start_sample
        self._speech_end = paused.speech_end
        self.is_asked = False
        """The engine knows of it."""
        self.is_offered = False
        """Receivers were told its text."""

    @property
    def transcript(self) -> Transcript | None:
        """The text, where it is here already."""
        if not self.task.done() or self.task.cancelled():
            return None
        outcome = self.task.result()
        return outcome if isinstance(outcome, Transcript) else None

    def is_of(self, segment: Segment) -> bool:
        """Whether the segment, closed without more speech, has all the speech that was heard.

        One that was cut at its maximum length may end before the silence began.
        """
        starts_there = segment.start_sample == self._start_sample
        return starts_there and segment.end_sample >= self._speech_end

    def withdraw(self) -> None:
        """Nobody wants it any more."""
        self.task.cancel()
