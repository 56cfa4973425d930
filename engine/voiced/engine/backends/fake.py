"""A recogniser without a model, for tests of everything around it.

It counts bursts of sound and answers with that many number words, so a growing segment gives a
growing text: three tones are "one two three", in Mandarin "一二三". Silence gives an empty text.

`EngineConfig.options` make it slow or make it fail:

- `delay_ms`: time that each request takes,
- `max_segment_s`: a longer segment is answered with NoGearError (default 28),
- `start`: `bundle_error`, `raise`, `exit` or `hang` instead of loading,
- `exit_on`, `hang_on`, `fail_on`, `raise_on`: a trigger; a request that meets it ends the process,
  never returns, fails with BackendFailed, or raises what a recogniser should never raise,
- `once`: a file path; the triggers and `start` act only while it does not exist, and create it.

A trigger is `always`, `language:CODE`, `stream:NAME`, `kind:partial|eager|final`, `samples:N`
(exactly) or `peak:N` (the loudest sample is at least N).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np

from voiced.audio.frames import RATE_HZ, samples_to_ms
from voiced.engine.backends.base import Traffic
from voiced.engine.errors import (
    BackendFailed,
    BackendUnavailable,
    BundleError,
    EngineError,
    NoGearError,
)
from voiced.engine.tally import GearTally
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineTotals,
    Gear,
    Request,
    RequestKind,
    Timings,
    Transcript,
    Word,
)

EXIT_STATUS = 70
"""Status of a process that `exit_on` ended."""
_BUNDLE = "fake@00000000"
_LOUD = 1_000
"""Absolute int16 value from which a sample is sound, about -30 dBFS."""
_GAP_SAMPLES = RATE_HZ // 10
"""Quieter stretches shorter than this do not end a burst."""
_ENGLISH = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MANDARIN = "一二三四五六七八九十"
_TOKEN_BYTES = 4
"""What comes back from the device that there is not."""
_STARTS = ("bundle_error", "raise", "exit", "hang")
_TRIGGERS = ("exit_on", "hang_on", "fail_on", "raise_on")
_OPTIONS = ("delay_ms", "max_segment_s", "start", "once", *_TRIGGERS)


class FakeRecognizer:
    """Answers with the number of bursts of sound; see the module for its options."""

    def __init__(self, config: EngineConfig) -> None:
        unknown = sorted(set(config.options) - set(_OPTIONS))
        if unknown:
            expected = ", ".join(_OPTIONS)
            raise BackendUnavailable(f"fake backend has no option {unknown}; expected {expected}")
        self._config = config
        self._options = config.options
        self._delay_s = float(self._options.get("delay_ms", 0)) / 1000
        self._longest_s = float(self._options.get("max_segment_s", 28))
        self._warm_ms = 0.0
        self._tally = GearTally()
        self._crossed = Traffic()
        self._start()

    def _start(self) -> None:
        how = self._options.get("start")
        if how is None or not self._may_act():
            return
        if how == "bundle_error":
            path = Path(self._config.bundle_dir) / "manifest.json"
            raise BundleError(path, found="nothing", expected="a manifest", next_step="build it")
        if how == "raise":
            raise RuntimeError("fake start")
        if how == "exit":
            os._exit(EXIT_STATUS)
        if how == "hang":
            threading.Event().wait()
        raise BackendUnavailable(f"fake backend: start is {how!r}, expected one of {_STARTS}")

    def _may_act(self) -> bool:
        if "once" not in self._options:
            return True
        marker = Path(self._options["once"])
        if marker.exists():
            return False
        marker.touch()
        return True

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        return EngineInfo(
            bundle=_BUNDLE,
            backend="fake",
            languages=self._config.languages,
            max_segment_s=self._longest_s,
            load_ms=0.0,
            warm_ms=self._warm_ms,
            worker_pid=os.getpid(),
        )

    @property
    def totals(self) -> EngineTotals:
        """As if each segment were encoded in its gear, alone, and moved to a device."""
        return EngineTotals(
            gears=self._tally.uses,
            to_device_bytes=self._crossed.to_device,
            from_device_bytes=self._crossed.from_device,
        )

    @property
    def max_batch(self) -> int:
        """Most requests that `recognize` takes at once."""
        return self._config.max_batch

    def warm(self, progress: Callable[[str], None]) -> None:
        """Say so; there is nothing to warm."""
        progress("warming fake gear 1 of 1")
        self._warm_ms = 1.0

    def batch_key(self, request: Request) -> Hashable:
        """Requests of one kind and of one length in whole seconds run together."""
        return request.kind, self._gear(request)

    def recognize(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        """Answer each request, or act as the options say."""
        for request in requests:
            if self._delay_s:
                time.sleep(self._delay_s)
            if self._is_triggered("exit_on", request):
                os._exit(EXIT_STATUS)
            if self._is_triggered("hang_on", request):
                threading.Event().wait()
            if self._is_triggered("fail_on", request):
                raise BackendFailed(f"fake failure at segment {request.segment.id}")
            if self._is_triggered("raise_on", request):
                raise RuntimeError("fake bug")
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Nothing is held."""

    def _is_triggered(self, option: str, request: Request) -> bool:
        trigger = self._options.get(option)
        return trigger is not None and matches(trigger, request) and self._may_act()

    def _gear(self, request: Request) -> Gear:
        seconds = math.ceil(request.segment.duration_s)
        if request.segment.duration_s > self._longest_s:
            raise NoGearError(1, seconds * 100, (Gear(round(self._longest_s * 100)),))
        return Gear(seconds * 100, self._config.max_batch)

    def _answer(self, request: Request) -> Transcript | EngineError:
        try:
            gear = self._gear(request)
        except NoGearError as error:
            return error
        self._tally.note(Gear(gear.frames), [round(request.segment.duration_s * 100)])
        self._crossed += Traffic(to_device=request.segment.pcm.nbytes, from_device=_TOKEN_BYTES)
        segment, is_searched = request.segment, request.kind.is_searched
        language = segment.language or self._config.languages[0]
        bursts = bursts_of(segment.pcm)
        texts = [number_word(n, language) for n in range(len(bursts))]
        text = ("" if language == "zh" else " ").join(texts)
        words = tuple(
            Word(
                text=word,
                start_ms=samples_to_ms(segment.start_sample + start),
                end_ms=samples_to_ms(segment.start_sample + end),
                confidence=0.9,
            )
            for word, (start, end) in zip(texts, bursts, strict=True)
        )
        return Transcript(
            segment=segment.id,
            revision=request.revision,
            text=text,
            is_final=request.kind is RequestKind.FINAL,
            language=language,
            confidence=0.9,
            words=words if is_searched else (),
            n_best=((text, -0.1),) if is_searched else (),
            timings=Timings(decode_ms=self._delay_s * 1000, steps=len(bursts)),
            bundle=_BUNDLE,
        )


def number_word(n: int, language: str) -> str:
    """Return the `n`-th number word, counted from 0, starting again after ten."""
    names: Sequence[str] = _MANDARIN if language == "zh" else _ENGLISH
    return names[n % len(names)]


def bursts_of(pcm: np.ndarray) -> list[tuple[int, int]]:
    """Return start and end of each stretch of sound in int16[n]."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) >= _LOUD)
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > _GAP_SAMPLES)
    starts = [loud[0], *loud[breaks + 1]]
    ends = [*loud[breaks], loud[-1]]
    return [(int(start), int(end) + 1) for start, end in zip(starts, ends, strict=True)]


def matches(trigger: str, request: Request) -> bool:
    """Whether a request meets a trigger.

    Raises:
        BackendUnavailable: There is no such trigger.
    """
    name, _, value = trigger.partition(":")
    segment = request.segment
    match name:
        case "always":
            return True
        case "language":
            return segment.language == value
        case "stream":
            return segment.stream == value
        case "kind":
            return request.kind == value
        case "samples":
            return len(segment.pcm) == int(value)
        case "peak":
            return int(np.abs(segment.pcm.astype(np.int32)).max(initial=0)) >= int(value)
    raise BackendUnavailable(f"fake backend has no trigger {trigger!r}")
