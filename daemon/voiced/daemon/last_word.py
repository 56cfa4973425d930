"""The last message on a segment, `final` or `failed`: how it is made, and counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from voiced.daemon.asking import Failure
from voiced.daemon.metrics import Metrics
from voiced.daemon.segment_text import SegmentText
from voiced.daemon.wire import Failed, Final
from voiced.engine.types import Transcript

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `final` is made of, when its turn comes."""

    text: SegmentText
    transcript: Transcript
    arrived_ns: int | None
    """When the segment's last audio arrived; None: nobody waited."""


class LastWordMaker:
    """Makes the last messages on one stream's segments. Time is an argument."""

    def __init__(self, stream: str, metrics: Metrics, *, include_text: bool) -> None:
        """`include_text`: log what people said, at DEBUG."""
        self._stream, self._metrics, self._include_text = stream, metrics, include_text
        self.finals = self.failures = 0
        """How many were made."""

    def final(self, answer: Answer, now_ns: int) -> Final:
        """Make the message, and count it. Latency is that of this moment."""
        text, transcript = answer.text, answer.transcript
        latency_ns = 0
        if answer.arrived_ns is not None:
            latency_ns = max(0, now_ns - answer.arrived_ns)
            self._metrics.latency_s.observe(latency_ns / 1e9)
        if not transcript.text.startswith(text.promised):
            self._metrics.finals_corrected.inc()
        self.finals += 1
        self._metrics.finals.inc()
        if self._include_text:
            logger.debug(
                "final stream=%s segment=%d text=%s", self._stream, text.segment, transcript.text
            )
        return text.final(transcript, latency_ns // 1_000_000)

    def failed(self, segment: int, failure: Failure) -> Failed:
        """Make the message, and count it."""
        self.failures += 1
        self._metrics.failed.labels(code=failure.code).inc()
        logger.error(
            "segment failed stream=%s segment=%d code=%s", self._stream, segment, failure.code
        )
        return Failed(
            stream=self._stream, segment=segment, code=failure.code, message=failure.message
        )
