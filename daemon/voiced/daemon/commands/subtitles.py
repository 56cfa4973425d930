"""Timed texts → SubRip and WebVTT. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start_s: float
    end_s: float
    text: str


def to_srt(cues: Iterable[Cue]) -> str:
    """Write SubRip: cues numbered from 1, `HH:MM:SS,mmm`, a blank line after each.

    The format has no escapes: an arrow inside a text would be read as a timing line, so it becomes
    one character.
    """
    blocks = [
        f"{number}\n{_timing(cue, ',')}\n{_one_line(cue.text).replace('-->', '→')}\n"
        for number, cue in enumerate(_worth_showing(cues), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(cues: Iterable[Cue]) -> str:
    """Write WebVTT (W3C, 2019): header, `HH:MM:SS.mmm`, `&`, `<` and `>` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in _worth_showing(cues):
        text = _one_line(cue.text)
        for char, escape in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(char, escape)
        blocks.append(f"{_timing(cue, '.')}\n{text}\n")
    return "\n".join(blocks)


def _worth_showing(cues: Iterable[Cue]) -> list[Cue]:
    return [cue for cue in cues if cue.text.strip()]


def _one_line(text: str) -> str:
    """A blank line inside a text would end its cue."""
    return " ".join(text.split())


def _timing(cue: Cue, point: str) -> str:
    start_ms = round(cue.start_s * 1000)
    end_ms = max(round(cue.end_s * 1000), start_ms + 1)  # a cue of no length is never shown
    return f"{_clock(start_ms, point)} --> {_clock(end_ms, point)}"


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"
