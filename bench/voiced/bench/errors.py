"""Errors of the benchmarks.

BenchError              base
├── CorpusError         corpus: a folder of recordings that cannot be used
├── PeerUnavailable     peer_unavailable: another recogniser is not installed
├── RecogniserFailed    recogniser_failed: a clip got no text, so there is no time to compare
└── CrashRunFailed      crash_run: processes that were killed did not come back (crash.py)
"""

from __future__ import annotations


class BenchError(Exception):
    """Base class of the benchmarks' errors; the text names the next step."""

    code = "bench"


class CorpusError(BenchError):
    """A folder of recordings is missing, empty or damaged."""

    code = "corpus"


class PeerUnavailable(BenchError):
    """The recogniser to compare with is not installed or has no model."""

    code = "peer_unavailable"


class RecogniserFailed(BenchError):
    """A recogniser failed on a clip that is timed: a failure is quick, and no speed."""

    code = "recogniser_failed"

    def __init__(self, system: str, clip: str, reason: str) -> None:
        super().__init__(system, clip, reason)
        self.system, self.clip, self.reason = system, clip, reason

    def __str__(self) -> str:
        return f"{self.system} failed on clip {self.clip}: {self.reason}"
