"""`voiced transcribe`: recorded files → text, JSON lines or subtitles."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TextIO

import numpy as np

from voiced.audio.errors import AudioError
from voiced.audio.frames import (
    RATE_HZ,
    AudioFrame,
    Segment,
    SegmentClosed,
    SegmentEvent,
)
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.pcm import float_to_int16
from voiced.audio.vad import VadFactory, VadKind
from voiced.daemon.commands.engines import engine_config
from voiced.daemon.commands.pipes import ends_with_its_reader
from voiced.daemon.commands.subtitles import Cue, to_srt, to_vtt
from voiced.daemon.engine_settings import EngineSettings
from voiced.daemon.errors import DaemonError, os_reason
from voiced.engine import store
from voiced.engine.errors import EngineError
from voiced.engine.types import Hotword, Request, Transcript

if TYPE_CHECKING:
    from voiced.engine.in_process import InProcessEngine

LONG_FILE_S = 30.0
"""Files from this length on show a progress bar."""


class OutputFormat(StrEnum):
    """How transcripts are written; the value is the option's."""

    TEXT = "text"
    JSONL = "jsonl"
    SRT = "srt"
    VTT = "vtt"

    @property
    def suffix(self) -> str:
        """File name ending."""
        return ".txt" if self is OutputFormat.TEXT else f".{self.value}"

    @property
    def holds_one_file(self) -> bool:
        """Times count from the start of one recording: two cannot share a file."""
        return self in (OutputFormat.SRT, OutputFormat.VTT)


class OutputRefused(DaemonError):
    """What was asked for cannot be written to `--out`."""

    code = "output"


class FileTooLong(DaemonError):
    """A file is taken as one segment, and no shape of the model holds it."""

    code = "too_long"

    def __init__(self, file: Path, longest_s: float) -> None:
        super().__init__(file, longest_s)
        self.file, self.longest_s = file, longest_s

    def __str__(self) -> str:
        return (
            f"{self.file}: longer than {self.longest_s:g} s, the most that the model takes as one "
            "segment; leave out --no-vad"
        )


class HotwordsUnused(DaemonError):
    """Hotwords were given for a model that cannot use any."""

    code = "hotwords_unused"

    def __init__(self, bundle: str) -> None:
        super().__init__(bundle)
        self.bundle = bundle

    def __str__(self) -> str:
        return (
            f"{self.bundle} has no hotwords, expected a model of the family whisper or fireredasr; "
            "leave out --hotwords"
        )


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """One word, in Mandarin one character."""

    start_s: float
    end_s: float
    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class SpokenSegment:
    """One stretch of speech that has a text."""

    start_s: float
    end_s: float
    text: str
    confidence: float
    words: tuple[SpokenWord, ...]
    """None where the model does not give their places."""


@dataclass(frozen=True, slots=True)
class FileTranscript:
    """One file's result; the fields are those of a JSON line."""

    path: str
    text: str
    language: str | None
    """The pinned one, else the one of most speech; None when nothing was said."""
    audio_s: float
    compute_s: float
    """Wall time from opening the file to its last text; loading the model is not in it."""
    segments: tuple[SpokenSegment, ...]


def transcribe(
    files: Sequence[Path],
    *,
    output_format: OutputFormat = OutputFormat.TEXT,
    language: str | None = None,
    vad: VadKind | None = VadKind.CASCADE,
    out: Path | None = None,
    model: str | None = None,
    backend: str | None = None,
    threads: int = 1,
    hotwords: Path | None = None,
) -> int:
    """Transcribe files in order; return 0, or 1 when one of them failed.

    A file that fails is reported on standard error and the rest go on.

    Args:
        files: Whatever the decoding library reads.
        output_format: Text is one line per file, after the file's name when there are several.
        language: Pinned language; None lets the engine choose for each segment.
        vad: Detector that finds the segments; None takes each file as one segment.
        out: None for standard output; an existing folder, or a name without a suffix, for one
            file per input; else the file that takes everything.
        model: Bundle name or folder.
        backend: Runtime of the bundle's graphs.
        threads: Threads of one graph call.
        hotwords: File with phrases that are likely to be said, as `engine.hotwords_file`.

    Raises:
        OutputRefused: The format or the names do not fit `out`.
        ConfigError: The file of hotwords cannot be used; with every problem.
        HotwordsUnused: The model does not know what to do with them.
        BundleError, BackendUnavailable, VadUnavailable: Nothing can be transcribed at all.
    """
    sink = _open_sink(files, out, output_format)
    phrases = _hotwords(hotwords)
    config = engine_config(model, backend, threads=threads)
    factory = VadFactory(store.silero_path())
    if vad is not None:
        factory.make(vad)  # a missing detector is one error, not one for every file

    async def run() -> int:
        from voiced.engine.in_process import InProcessEngine

        engine = InProcessEngine(config)
        info = await engine.start()
        try:
            if phrases and not info.has_hotwords:
                raise HotwordsUnused(info.bundle)
            job = _Job(engine, config.max_batch, factory, vad, language, phrases)
            return await _run(job, files, sink)
        finally:
            await engine.stop()

    with ends_with_its_reader(), sink:
        return 1 if asyncio.run(run()) else 0


def _hotwords(file: Path | None) -> tuple[Hotword, ...]:
    if file is None:
        return ()
    from voiced.daemon.hotwords import hotwords_of_file

    return hotwords_of_file(file, EngineSettings().hotwords_score, "--hotwords")


async def _run(job: _Job, files: Sequence[Path], sink: Sink) -> int:
    """Transcribe every file; return how many failed."""
    failed = 0
    for file in files:
        try:
            with _progress(file) as advance:
                result = await job.transcribe(file, advance)
            sink.write(file, result)
        except BrokenPipeError:
            raise
        except (AudioError, EngineError, FileTooLong, OSError) as error:
            failed += 1
            text = os_reason(error) if isinstance(error, OSError) else str(error)
            where = "" if str(file) in text else f"{file}: "
            print(f"voiced: {where}{text}", file=sys.stderr, flush=True)
    return failed


# ---- recognition -------------------------------------------------------------------------------

Advance = Callable[[float], None]
"""Called with the seconds of audio read so far."""


class _Job:
    """What all files of one command share."""

    def __init__(
        self,
        engine: InProcessEngine,
        max_batch: int,
        factory: VadFactory,
        vad: VadKind | None,
        language: str | None,
        hotwords: tuple[Hotword, ...],
    ) -> None:
        self._engine, self._hotwords = engine, hotwords
        self._settings = FrontSettings(grown_ms=0)  # nobody reads partial results
        self._longest_s = float("inf") if engine.info is None else engine.info.max_segment_s
        longest_s = min(self._settings.max_segment_s, self._longest_s)
        self._settings = replace(self._settings, max_segment_s=longest_s)
        self._factory = factory
        self._vad = vad
        self._language = language
        self._ids = itertools.count(1)
        # Enough waiting for the engine to fill a batch; a long file never piles up in memory.
        self._max_waiting = 2 * max_batch

    async def transcribe(self, file: Path, advance: Advance) -> FileTranscript:
        started_ns = time.monotonic_ns()
        answers: list[tuple[_Span, asyncio.Task[Transcript]]] = []
        samples = 0
        try:
            for segment, read in self._segments(file):
                samples = read
                advance(samples / RATE_HZ)
                if segment is not None:
                    request = Request(segment, hotwords=self._hotwords)
                    answer = asyncio.create_task(self._engine.recognize(request))
                    answers.append((_Span(segment.start_sample, segment.end_sample), answer))
                waiting = [task for _, task in answers if not task.done()]
                if len(waiting) >= self._max_waiting:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(0)  # the engine's answers come through this loop
            texts = [(span, await task) for span, task in answers]
        finally:
            for _, task in answers:
                task.cancel()
            await asyncio.gather(*(task for _, task in answers), return_exceptions=True)
        compute_s = (time.monotonic_ns() - started_ns) / 1e9
        return _assemble(file, texts, self._language, samples / RATE_HZ, compute_s)

    def _segments(self, file: Path) -> Iterator[tuple[Segment | None, int]]:
        """Yield after every block and every segment: the segment, and the samples read so far."""
        from voiced.audio.sources.media import decode_file

        blocks = decode_file(file, on_damage=_warn)
        if self._vad is None:
            parts: list[np.ndarray[tuple[int], np.dtype[np.int16]]] = []
            read = 0
            for block in blocks:
                parts.append(float_to_int16(block))
                read += len(block)
                if read > self._longest_s * RATE_HZ:
                    raise FileTooLong(file, self._longest_s)
                yield None, read
            yield Segment(next(self._ids), "file", 0, np.concatenate(parts), self._language), read
            return

        front = self._front(self._vad)
        read = 0
        for block in blocks:
            events = front.feed(AudioFrame(read, block))
            read += len(block)
            yield None, read
            yield from ((segment, read) for segment in _closed(events))
        yield from ((segment, read) for segment in _closed(front.finish()))

    def _front(self, kind: VadKind) -> StreamFront:
        return StreamFront(
            "file",
            settings=self._settings,
            vad=self._factory.make(kind),
            next_id=lambda: next(self._ids),
            language=self._language,
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a segment lies; its samples are let go once they are recognised."""

    start_sample: int
    end_sample: int


def _closed(events: Sequence[SegmentEvent]) -> list[Segment]:
    return [event.segment for event in events if isinstance(event, SegmentClosed)]


def _assemble(
    file: Path,
    texts: Sequence[tuple[_Span, Transcript]],
    pinned: str | None,
    audio_s: float,
    compute_s: float,
) -> FileTranscript:
    spoken = [(span, transcript) for span, transcript in texts if transcript.text.strip()]
    heard = Counter[str]()
    for span, transcript in spoken:
        heard[transcript.language] += span.end_sample - span.start_sample
    return FileTranscript(
        path=str(file),
        text=join_texts([transcript.text for _, transcript in spoken]),
        language=pinned or (heard.most_common(1)[0][0] if heard else None),
        audio_s=round(audio_s, 3),
        compute_s=round(compute_s, 3),
        segments=tuple(
            SpokenSegment(
                start_s=round(span.start_sample / RATE_HZ, 3),
                end_s=round(span.end_sample / RATE_HZ, 3),
                text=transcript.text.strip(),
                confidence=round(transcript.confidence, 4),
                words=tuple(
                    SpokenWord(
                        start_s=word.start_ms / 1000,
                        end_s=word.end_ms / 1000,
                        text=word.text,
                        confidence=round(word.confidence, 4),
                    )
                    for word in transcript.words
                ),
            )
            for span, transcript in spoken
        ),
    )


def join_texts(texts: Sequence[str]) -> str:
    """Join the texts of neighbouring segments: with a space, but not next to Han characters."""
    joined = ""
    for text in (text.strip() for text in texts):
        if joined and text and not (_is_han(joined[-1]) or _is_han(text[0])):
            joined += " "
        joined += text
    return joined


def _is_han(char: str) -> bool:
    """Han, and the full-width punctuation that goes with it."""
    return "\u2e80" <= char <= "\u9fff" or "\uff00" <= char <= "\uff65"


# ---- output ------------------------------------------------------------------------------------


def render(result: FileTranscript, output_format: OutputFormat, *, named: bool) -> str:
    """Write one result, ending in a newline; `named` puts the path before a plain text."""
    match output_format:
        case OutputFormat.TEXT:
            return f"{result.path}: {result.text}\n" if named else f"{result.text}\n"
        case OutputFormat.JSONL:
            return json.dumps(asdict(result), ensure_ascii=False) + "\n"
        case OutputFormat.SRT:
            return to_srt(_cues(result))
        case OutputFormat.VTT:
            return to_vtt(_cues(result))


def _cues(result: FileTranscript) -> list[Cue]:
    return [Cue(segment.start_s, segment.end_s, segment.text) for segment in result.segments]


class Sink(Protocol):
    """Where results go, one by one; nothing half-written is left under a final name."""

    def write(self, file: Path, result: FileTranscript) -> None:
        """Take the result of an input file."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class _ToStdout:
    def __init__(self, output_format: OutputFormat, *, named: bool) -> None:
        self._format, self._named = output_format, named

    def write(self, file: Path, result: FileTranscript) -> None:
        sys.stdout.write(render(result, self._format, named=self._named))
        sys.stdout.flush()  # a reader at the other end sees each file as it is done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class _ToFolder:
    def __init__(self, names: dict[Path, Path], output_format: OutputFormat) -> None:
        self._names, self._format = names, output_format

    def write(self, file: Path, result: FileTranscript) -> None:
        target = self._names[file]
        target.parent.mkdir(parents=True, exist_ok=True)
        with _whole_file(target) as out:
            out.write(render(result, self._format, named=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class _ToFile:
    def __init__(self, target: Path, output_format: OutputFormat, *, named: bool) -> None:
        self._target, self._format, self._named = target, output_format, named
        self._stack = ExitStack()

    def write(self, file: Path, result: FileTranscript) -> None:
        self._out.write(render(result, self._format, named=self._named))

    def __enter__(self) -> Self:
        self._out = self._stack.enter_context(_whole_file(self._target))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.__exit__(*exc)  # type: ignore[arg-type]


def _open_sink(files: Sequence[Path], out: Path | None, output_format: OutputFormat) -> Sink:
    named = len(files) > 1
    if out is not None and (out.is_dir() or not out.suffix):
        return _ToFolder(_output_names(files, out, output_format.suffix), output_format)
    if named and output_format.holds_one_file:
        raise OutputRefused(
            f"{output_format} holds one recording, found {len(files)} files; "
            "name a folder with --out"
        )
    if out is None:
        return _ToStdout(output_format, named=named)
    return _ToFile(out, output_format, named=named)


def _output_names(files: Sequence[Path], folder: Path, suffix: str) -> dict[Path, Path]:
    """`talk.wav` → `talk.srt`; where two inputs share a stem, `talk.wav.srt`."""
    distinct = list(dict.fromkeys(files))
    stems = Counter(file.stem for file in distinct)
    names = {
        file: folder / ((file.stem if stems[file.stem] == 1 else file.name) + suffix)
        for file in distinct
    }
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise OutputRefused(
                f"{count} inputs would be written to {name}; transcribe them one folder at a time"
            )
    return names


@contextmanager
def _whole_file(target: Path) -> Iterator[TextIO]:
    """Write beside the target and move it there when everything went well."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            yield out
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


# ---- what the user sees meanwhile --------------------------------------------------------------


@contextmanager
def _progress(file: Path) -> Iterator[Advance]:
    """Show a bar on standard error for a long file, on a terminal only."""
    duration_s = _duration_s(file) if sys.stderr.isatty() else 0.0
    if duration_s < LONG_FILE_S:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(file.name, total=duration_s)
        yield lambda seconds: bar.update(task, completed=seconds)


def _duration_s(file: Path) -> float:
    """Length by the header; what cannot be read is reported when it is decoded."""
    from voiced.audio.sources.media import probe

    try:
        return probe(file).duration_s or 0.0
    except AudioError:
        return 0.0


def _warn(text: str) -> None:
    print(f"voiced: warning: {text}", file=sys.stderr, flush=True)
