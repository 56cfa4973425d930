"""Errors of the benchmarks.

BenchError              base
├── CorpusError         corpus: a folder of recordings that cannot be used
└── PeerUnavailable     peer_unavailable: another recogniser is not installed
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
