"""Folders of recorded speech → clips with their reference texts.

Four layouts are read; the first that is found in the folder counts:

1. manifests: `<set>.jsonl`, one object per line with `id, audio, text, lang, seconds, tags`,
   `audio` relative to the manifest, `text` null without a transcript, `lang` `none` for noise;
2. LibriSpeech: `*.trans.txt` anywhere below, lines `<id> <text>`, `<id>.flac` beside it;
3. AISHELL: `*transcript*.txt` anywhere below, lines `<id> <text>`, `<id>.wav` anywhere below;
4. plain: `<name>.txt` beside `<name>.wav` (or another audio file), the whole file is the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiced.audio.errors import MediaError
from voiced.audio.sources.media import probe
from voiced.bench.errors import CorpusError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm")
NON_SPEECH = "non-speech"
VOCALS = "vocals"
"""Music that is sung: lyrics are a right answer, so its texts are not counted as false."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording."""

    id: str
    path: Path
    text: str | None
    """What is said in it; None when nobody wrote it down, or nothing is said."""
    language: str | None
    """ISO 639-1; None for sounds without speech."""
    tags: frozenset[str]
    seconds: float
    set: str
    """Name of the set it belongs to."""

    @property
    def is_speech(self) -> bool:
        """Somebody speaks in it; noise and music are the rest."""
        return NON_SPEECH not in self.tags


def load_corpus(
    folder: Path, *, sets: Sequence[str] = (), limit: int | None = None, language: str | None = None
) -> list[Clip]:
    """Read the clips of a folder, sets in order of name, clips in the order of their manifest.

    Args:
        folder: One of the layouts above.
        sets: Only these sets; empty for all.
        limit: At most this many clips of each set, the first ones.
        language: Language of the plain layouts; without it Han characters mean `zh`, else `en`.

    Raises:
        CorpusError: No such folder, no known layout, a damaged manifest, an unknown set.
    """
    if not folder.is_dir():
        raise CorpusError(f"no folder {folder}")
    grouped: dict[str, list[Clip]] = {}
    for clip in _read_layout(folder, sets, language):
        grouped.setdefault(clip.set, []).append(clip)
    unknown = [name for name in sets if name not in grouped]
    if unknown:
        known = ", ".join(_set_names(folder) or sorted(grouped)) or "none"
        raise CorpusError(f"{folder}: no set {', '.join(unknown)}; it has {known}")
    if not grouped:
        raise CorpusError(
            f"{folder}: no recordings with texts found; expected <set>.jsonl manifests, "
            "*.trans.txt (LibriSpeech), *transcript*.txt (AISHELL) or .txt files beside audio"
        )
    return [clip for name in sorted(grouped) for clip in grouped[name][:limit]]


def _set_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def _read_layout(folder: Path, sets: Sequence[str], language: str | None) -> Iterator[Clip]:
    if manifests := sorted(folder.glob("*.jsonl")):
        for manifest in manifests:
            if not sets or manifest.stem in sets:
                yield from _read_manifest(manifest)
    elif lists := sorted(folder.rglob("*.trans.txt")):
        for path in lists:
            yield from _read_list(folder, path, _beside(path), language or "en")
    elif lists := sorted(folder.rglob("*transcript*.txt")):
        for path in lists:
            yield from _read_list(folder, path, _anywhere(folder), language or "zh")
    else:
        yield from _read_plain(folder, language)


def _read_manifest(manifest: Path) -> Iterator[Clip]:
    lines = manifest.read_text(encoding="utf-8").split("\n")  # not at U+2028, as splitlines
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            yield Clip(
                id=str(row["id"]),
                path=manifest.parent / row["audio"],
                text=row["text"],
                language=None if row["lang"] in (None, "none") else str(row["lang"]),
                tags=frozenset(row.get("tags", ())),
                seconds=float(row["seconds"]),
                set=manifest.stem,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise CorpusError(
                f"{manifest}:{number}: found {type(error).__name__}: {error}; "
                "expected an object with id, audio, text, lang and seconds"
            ) from error


def _read_list(
    folder: Path, path: Path, find: Callable[[str], Path | None], language: str
) -> Iterator[Clip]:
    """Read lines `<id> <text>`; lines without a recording are left out (partial downloads)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.strip().partition(" ")
        audio = find(name) if text else None
        if audio is not None:
            yield _probed(folder, audio, text.strip(), language)


def _beside(path: Path) -> Callable[[str], Path | None]:
    def find(name: str) -> Path | None:
        candidates = (path.parent / f"{name}{suffix}" for suffix in AUDIO_SUFFIXES)
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    return find


def _anywhere(folder: Path) -> Callable[[str], Path | None]:
    return {path.stem: path for path in _audio_files(folder)}.get


def _read_plain(folder: Path, language: str | None) -> Iterator[Clip]:
    for audio in _audio_files(folder):
        beside = audio.with_suffix(".txt")
        if beside.is_file():
            text = " ".join(beside.read_text(encoding="utf-8").split())
            yield _probed(folder, audio, text, language or _guess_language(text))


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


def _guess_language(text: str) -> str:
    return "zh" if any("\u4e00" <= char <= "\u9fff" for char in text) else "en"


def _probed(folder: Path, audio: Path, text: str, language: str) -> Clip:
    try:
        seconds = probe(audio).duration_s
    except MediaError as error:
        raise CorpusError(str(error)) from error
    if seconds is None:
        raise CorpusError(
            f"{audio}: its header does not tell its length; convert it to WAV or FLAC"
        )
    return Clip(
        id=audio.relative_to(folder).with_suffix("").as_posix(),
        path=audio,
        text=text,
        language=language,
        tags=frozenset(),
        seconds=seconds,
        set=folder.resolve().name,
    )
