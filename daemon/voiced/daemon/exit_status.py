"""What the exit status of `voiced` says.

| status | meaning                                                                              |
|--------|--------------------------------------------------------------------------------------|
| 0      | done; for `run`: stopped by a signal, everything accepted was answered               |
| 1      | failed, also in part (one of several files); for `run`: the end was not a clean one  |
| 2      | wrong use: arguments or configuration                                                |
| 3      | something needed is missing or taken: a model, a library, a device, a port, a daemon |
| 130    | interrupted by Ctrl-C (`run`, `listen` and `plugins run` end that way: 0)            |
| 141    | nobody reads standard output any more                                                |
"""

from __future__ import annotations

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_READER_GONE = 130, 141
"""What a shell reports for a program that SIGINT or SIGPIPE ended: 128 and the signal's number."""

UNAVAILABLE = frozenset(
    {
        "backend_unavailable",
        "bundle",
        "device_busy",
        "device_not_found",
        "endpoint_in_use",
        "fetch",
        "journal_busy",
        "journal_damaged",
        "journal_missing",
        "journal_unusable",
        "peer_unavailable",
        "port_in_use",
        "portaudio_missing",
        "socket_in_use",
        "unreachable",
        "vad_unavailable",
    }
)
"""Codes of errors that mean: what is needed is not there. Their exit status is 3."""

USAGE = frozenset(
    {
        "address",
        "config",
        "corpus",
        "hotwords_unused",
        "output",
        "plan",
        "plugin_config",
        "plugin_not_found",
        "time",
    }
)
"""Codes of errors that only other arguments or settings can mend. Their exit status is 2."""


def exit_status(code: str) -> int:
    """The exit status for the code of an error of ours."""
    if code in USAGE:
        return EXIT_USAGE
    return EXIT_UNAVAILABLE if code in UNAVAILABLE else EXIT_FAILED
