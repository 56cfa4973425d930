"""What is said about one segment: its revisions, from the first partial to the final. Pure."""

from __future__ import annotations

from voiced.audio.frames import samples_to_ms
from voiced.daemon.wire import Alternative, EagerFinal, Final, Partial, WordInfo
from voiced.engine.stable import PartialTracker
from voiced.engine.types import Transcript


class SegmentText:
    """Numbers a segment's revisions and holds its partials to what they call stable."""

    def __init__(self, stream: str, segment: int, start_sample: int) -> None:
        self.stream, self.segment = stream, segment
        self.start_sample = self.end_sample = start_sample
        self.revision = 0
        """The last one made."""
        self._tracker = PartialTracker()
        self._last: tuple[str, int] = ("", 0)
        """Text and stable characters of the last partial."""

    @property
    def promised(self) -> str:
        """The text that partials called stable."""
        text, stable_chars = self._last
        return text[:stable_chars]

    def partial(
        self, transcript: Transcript, end_sample: int, *, is_searched: bool = False
    ) -> Partial | None:
        """Take the newest text of the segment up to `end_sample`; None: it says nothing new.

        One that was searched as a final will be the final, if nothing more is said.
        """
        text, stable_chars = self._tracker.update(
            transcript.text,
            transcript.language,
            transcript.confidence,
            transcript.chances,
            is_searched=is_searched,
        )
        if not text or (text, stable_chars) == self._last:
            return None
        self._last = text, stable_chars
        self.revision += 1
        return Partial(
            stream=self.stream,
            segment=self.segment,
            revision=self.revision,
            text=text,
            stable_chars=stable_chars,
            start_ms=samples_to_ms(self.start_sample),
            end_ms=samples_to_ms(end_sample),
            language=transcript.language,
        )

    def eager(self, transcript: Transcript, end_sample: int) -> EagerFinal:
        """Make the offer of what will be the final if nothing is said any more."""
        return EagerFinal(
            stream=self.stream,
            segment=self.segment,
            revision=self.revision + 1,
            text=transcript.text,
            language=transcript.language,
            confidence=transcript.confidence,
            start_ms=samples_to_ms(self.start_sample),
            end_ms=samples_to_ms(end_sample),
        )

    def final(self, transcript: Transcript, latency_ms: int) -> Final:
        """Make the last word."""
        return Final(
            stream=self.stream,
            segment=self.segment,
            revision=self.revision + 1,
            text=transcript.text,
            language=transcript.language,
            confidence=transcript.confidence,
            start_ms=samples_to_ms(self.start_sample),
            end_ms=samples_to_ms(self.end_sample),
            latency_ms=latency_ms,
            words=tuple(
                WordInfo(word.text, word.start_ms, word.end_ms, word.confidence)
                for word in transcript.words
            ),
            n_best=tuple(Alternative(text, score) for text, score in transcript.n_best),
        )
