"""Folders of the public test sets, as they are downloaded → what is said in which file.

Each layout finds its sets first, cheaply, and reads only those that are wanted. Names of sets are
those under which figures are published: `aishell1-test`, `wenetspeech-test-net` ...

librispeech  `*.trans.txt` anywhere below, lines `<id> <text>`, `<id>.flac` beside it
aishell1     `*transcript*.txt` anywhere below, lines `<id> <text>`; `wav/<split>/.../<id>.wav`
aishell2     `trans.txt` and `wav.scp` in `<channel>/<split>`: iOS, Android or Mic; dev or test
wenetspeech  `WenetSpeech.json`: long recordings, of which segments are cut
kespeech     `Tasks/ASR/<split>` with `text` and `wav.scp`, paths from the top
kaldi        any folders with `text` and `wav.scp`, and `segments` where recordings are cut
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from voiced.bench.errors import CorpusError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm")


class Layout(StrEnum):
    """How a folder of recordings is laid out."""

    AUTO = "auto"
    MANIFESTS = "manifests"
    LIBRISPEECH = "librispeech"
    AISHELL1 = "aishell1"
    AISHELL2 = "aishell2"
    WENETSPEECH = "wenetspeech"
    KESPEECH = "kespeech"
    KALDI = "kaldi"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Entry:
    """One utterance."""

    path: Path
    text: str
    language: str
    id: str | None = None
    """None: its path below the folder."""
    begin_s: float = 0.0
    end_s: float | None = None
    """None: the whole file."""


Sets = Mapping[str, Callable[[], Iterator[Entry]]]
"""Name of a set → its utterances, read when called."""


def find_layout(folder: Path) -> Layout | None:
    """Tell which public layout a folder has; None for none of them."""
    return next((layout for layout, find in _FINDERS.items() if find(folder)), None)


def find_sets(folder: Path, layout: Layout) -> Sets:
    """Return the sets of a folder in a public layout; empty where it has none."""
    return _FINDERS[layout](folder)


# ---- lists of id and text ----------------------------------------------------------------------

_LIBRI = re.compile(r"(?:dev|test|train)-(?:clean|other)(?:-\d+)?")


def _librispeech(folder: Path) -> Sets:
    lists: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.trans.txt")):
        split = next((part for part in path.resolve().parts if _LIBRI.fullmatch(part)), None)
        name = f"librispeech-{split}" if split else folder.resolve().name
        lists.setdefault(name, []).append(path)

    def read(paths: list[Path]) -> Iterator[Entry]:
        for path in paths:
            yield from _of_list(path, _beside(path), "en")

    return {name: _bound(read, paths) for name, paths in lists.items()}


def _aishell1(folder: Path) -> Sets:
    lists = sorted(folder.rglob("*transcript*.txt"))
    if not lists:
        return {}
    splits = [p for p in sorted(folder.rglob("wav/*")) if p.name in {"train", "dev", "test"}]

    def read(audio: Path) -> Iterator[Entry]:
        below = {path.stem: path for path in _audio_files(audio)}
        for path in lists:
            yield from _of_list(path, below.get, "zh")

    if not splits:
        return {folder.resolve().name: _bound(read, folder)}
    return {f"aishell1-{split.name}": _bound(read, split) for split in splits}


def _of_list(path: Path, find: Callable[[str], Path | None], language: str) -> Iterator[Entry]:
    """Read lines `<id> <text>`; lines without a recording are left out (partial downloads)."""
    for name, text in _pairs(path):
        audio = find(name)
        if audio is not None and text:
            yield Entry(audio, text, language)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        name, _, rest = line.strip().replace("\t", " ").partition(" ")
        if name:
            yield name, rest.strip()


def _beside(path: Path) -> Callable[[str], Path | None]:
    def find(name: str) -> Path | None:
        candidates = (path.parent / f"{name}{suffix}" for suffix in AUDIO_SUFFIXES)
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    return find


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


# ---- Kaldi's files ------------------------------------------------------------------------------

_ALIASES = {
    "test_net": "wenetspeech-test-net",
    "test_meeting": "wenetspeech-test-meeting",
    "test_clean": "librispeech-test-clean",
    "test_other": "librispeech-test-other",
}
"""Folders of the usual recipes → published names."""
_TAG = re.compile(r"<[^<>]*>")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def _kaldi(folder: Path) -> Sets:
    found = sorted(
        path.parent for path in folder.rglob("wav.scp") if (path.parent / "text").is_file()
    )
    return {
        _ALIASES.get(each.name, each.resolve().name): _bound(_of_kaldi, folder, each, "text")
        for each in found
    }


def _kespeech(folder: Path) -> Sets:
    found = sorted((folder / "Tasks" / "ASR").glob("*/wav.scp"))
    return {
        f"kespeech-{path.parent.name}": _bound(_of_kaldi, folder, path.parent, "text")
        for path in found
        if (path.parent / "text").is_file()
    }


def _aishell2(folder: Path) -> Sets:
    sets = {}
    for path in sorted(folder.rglob("trans.txt")):
        if (path.parent / "wav.scp").is_file():
            channel, split = path.resolve().parts[-3:-1]
            known = channel.lower() in {"ios", "android", "mic"}
            name = f"aishell2-{split}-{channel}".lower() if known else f"aishell2-{split}"
            sets[name] = _bound(_of_kaldi, folder, path.parent, "trans.txt")
    return sets


def _of_kaldi(top: Path, folder: Path, texts: str) -> Iterator[Entry]:
    scp = folder / "wav.scp"
    recordings: dict[str, Path] = {}
    for name, place in _pairs(scp):
        if place.endswith("|"):
            raise CorpusError(
                f"{scp}: found a command for {name}, expected a file; write the recordings out and "
                "name them there"
            )
        candidates = (folder / place, top / place)
        recordings[name] = next((c for c in candidates if c.is_file()), folder / place)
    cuts: dict[str, tuple[str, float, float | None]] = {}
    if (folder / "segments").is_file():
        cuts = dict(_segments(folder / "segments"))
    for name, text in _pairs(folder / texts):
        said = " ".join(_TAG.sub(" ", text).split())
        recording, begin_s, end_s = cuts.get(name, (name, 0.0, None))
        audio = recordings.get(recording)
        if said and audio is not None and audio.is_file():
            language = "zh" if _HAN.search(said) else "en"
            yield Entry(audio, said, language, name, begin_s, end_s)


def _segments(path: Path) -> Iterator[tuple[str, tuple[str, float, float | None]]]:
    for name, rest in _pairs(path):
        try:
            recording, begin, end = rest.split()
            yield name, (recording, float(begin), float(end))
        except ValueError as error:
            raise CorpusError(
                f"{path}: found {rest!r} for {name}, expected `<recording> <begin s> <end s>`"
            ) from error


# ---- WenetSpeech -------------------------------------------------------------------------------

_SUBSETS = {
    "DEV": "wenetspeech-dev",
    "TEST_NET": "wenetspeech-test-net",
    "TEST_MEETING": "wenetspeech-test-meeting",
}
_READ_CHARS = 1 << 20


def _wenetspeech(folder: Path) -> Sets:
    path = folder / "WenetSpeech.json"
    if not path.is_file():
        return {}
    return {name: _bound(_of_wenetspeech, path, tag) for tag, name in _SUBSETS.items()}


def _of_wenetspeech(path: Path, subset: str) -> Iterator[Entry]:
    """Read one subset; the file has gigabytes, so one recording at a time."""
    with path.open(encoding="utf-8") as file:
        for recording in _objects(file, path):
            try:
                for segment in recording["segments"]:
                    audio = path.parent / recording["path"]
                    if subset in segment.get("subsets", ()) and audio.is_file():
                        text, begin, end = (
                            segment[key] for key in ("text", "begin_time", "end_time")
                        )
                        yield Entry(audio, text, "zh", segment["sid"], float(begin), float(end))
            except (KeyError, TypeError, ValueError) as error:
                raise CorpusError(
                    f"{path}: found a recording without {error}, expected path and segments with "
                    "sid, text, begin_time, end_time and subsets"
                ) from error


def _objects(file: TextIO, path: Path) -> Iterator[Any]:
    """Decode the objects of the array `audios` one by one."""
    decoder = json.JSONDecoder()
    buffer, at = "", -1
    while at < 0:
        more = file.read(_READ_CHARS)
        buffer += more
        begin = re.search(r'"audios"\s*:\s*\[', buffer)
        at = begin.end() if begin else -1
        if begin is None and not more:
            raise CorpusError(f'{path}: found no array "audios"')
    while True:
        rest = buffer[at:].lstrip(" \t\r\n,")
        if rest.startswith("]"):
            return
        try:
            found, used = decoder.raw_decode(rest)
            buffer, at = rest, used
            yield found
        except ValueError as error:
            more = file.read(max(_READ_CHARS, len(rest)))  # so that long objects are not re-read
            if not more:
                raise CorpusError(
                    f"{path}: found a damaged end ({error}), expected JSON"
                ) from error
            buffer, at = rest + more, 0


def _bound(
    read: Callable[..., Iterator[Entry]], *arguments: object
) -> Callable[[], Iterator[Entry]]:
    return lambda: read(*arguments)


_FINDERS: dict[Layout, Callable[[Path], Sets]] = {
    Layout.WENETSPEECH: _wenetspeech,
    Layout.KESPEECH: _kespeech,
    Layout.AISHELL2: _aishell2,
    Layout.LIBRISPEECH: _librispeech,
    Layout.AISHELL1: _aishell1,
    Layout.KALDI: _kaldi,
}
"""In the order in which a folder is tried."""
