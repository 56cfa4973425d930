"""Folders of recorded speech → clips with their reference texts.

The first layout that is found in the folder counts:

1. manifests: `<set>.jsonl`, one object per line with `id, audio, text, lang, seconds, tags`,
   `audio` relative to the manifest, `text` null without a transcript, `lang` `none` for noise;
2. a public test set as it is downloaded, see `public_sets`;
3. plain: `<name>.txt` beside `<name>.wav` (or another audio file), the whole file is the text.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voiced.audio.errors import MediaError
from voiced.audio.sources.media import probe
from voiced.bench.errors import CorpusError
from voiced.bench.public_sets import AUDIO_SUFFIXES, Entry, Layout, find_layout, find_sets

PUBLIC = frozenset(Layout) - {Layout.AUTO, Layout.MANIFESTS, Layout.PLAIN}

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
    begin_s: float = 0.0
    end_s: float | None = None
    """Where it lies in a longer recording; None: the whole file."""

    @property
    def is_speech(self) -> bool:
        """Somebody speaks in it; noise and music are the rest."""
        return NON_SPEECH not in self.tags


def load_corpus(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    limit: int | None = None,
    language: str | None = None,
    layout: Layout = Layout.AUTO,
) -> list[Clip]:
    """Read the clips of a folder, sets in order of name, clips in the order of their list.

    Args:
        folder: One of the layouts above.
        sets: Only these sets; empty for all, of a public one those for testing where it has any.
        limit: At most this many clips of each set, the first ones.
        language: Language of layouts that name none; without it Han characters mean `zh`, else
            `en`.
        layout: Which to read; found by itself when `AUTO`.

    Raises:
        CorpusError: No such folder, no such layout, a damaged list, an unknown set.
    """
    if not folder.is_dir():
        raise CorpusError(f"no folder {folder}")
    if layout is Layout.AUTO:
        layout = _find_layout(folder)
    readers = _readers(folder, layout, language)
    unknown = [name for name in sets if name not in readers]
    if unknown:
        known = ", ".join(sorted(readers)) or "none"
        raise CorpusError(f"{folder}: no set {', '.join(unknown)}; it has {known}")
    for_testing = [name for name in readers if "test" in name and layout in PUBLIC]
    chosen = sorted(sets or for_testing or readers)
    clips = [clip for name in chosen for clip in itertools.islice(readers[name](), limit)]
    if not clips:
        raise CorpusError(
            f"{folder}: no recordings with texts found as layout {layout}; expected <set>.jsonl "
            "manifests, *.trans.txt (LibriSpeech), *transcript*.txt (AISHELL-1), trans.txt and "
            "wav.scp (AISHELL-2), WenetSpeech.json, Tasks/ASR (KeSpeech), text and wav.scp (Kaldi) "
            "or .txt files beside audio"
        )
    return clips


def _find_layout(folder: Path) -> Layout:
    if any(folder.glob("*.jsonl")):
        return Layout.MANIFESTS
    return find_layout(folder) or Layout.PLAIN


def _readers(
    folder: Path, layout: Layout, language: str | None
) -> dict[str, Callable[[], Iterator[Clip]]]:
    """Name of each set → what reads its clips."""
    if layout is Layout.MANIFESTS:
        found = sorted(folder.glob("*.jsonl"))
        return {path.stem: functools.partial(_read_manifest, path) for path in found}
    if layout is Layout.PLAIN:
        return {folder.resolve().name: functools.partial(_read_plain, folder, language)}
    return {
        name: functools.partial(_read_public, folder, name, read, language)
        for name, read in find_sets(folder, layout).items()
    }


def _read_public(
    folder: Path, name: str, read: Callable[[], Iterator[Entry]], language: str | None
) -> Iterator[Clip]:
    for entry in read():
        clip = _probed(folder, entry.path, entry.text, language or entry.language, entry.end_s)
        yield replace(
            clip,
            id=entry.id or clip.id,
            seconds=clip.seconds - entry.begin_s,
            set=name,
            begin_s=entry.begin_s,
            end_s=entry.end_s,
        )


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


def _probed(
    folder: Path, audio: Path, text: str, language: str, seconds: float | None = None
) -> Clip:
    try:
        seconds = probe(audio).duration_s if seconds is None else seconds
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
