"""Makes inputs out of inputs, and keeps those that make a target answer in a new way.

The answer (the result, or the error with its numbers and quotations taken out) is the
only feedback: no instrumentation, so an input costs what the target costs. Seeded and repeatable.
"""

from __future__ import annotations

import random
import re
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

MAX_BYTES = 4_096
MAX_POOL = 1_000
HANG_S = 10.0
"""CPU time that a hundred inputs may take: the machine may be busy."""

Answer = tuple[str, ...]
_NOISE = re.compile(
    r"""(?s)--expires .*?(?=: expected|: is)|0x[0-9a-f]+|\d+|'[^']*'|`[^`]*`|"[^"]*\""""
)
_NUMBER = re.compile(rb"-?\d+")
_EXTREMES = (
    *(b"0", b"-1", b"1", b"2", b"255", b"256", b"65535", b"2147483648", b"4294967296"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"1e308", b"1e999"),
    *(b"NaN", b"0.1", b"-0.0", b"9" * 400),
)
_COMMON = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u0000", b"\\ud800", b"null", b"true", b"\n"),
    *(b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"/.."),
    *(b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\xde", b"\xdf\xff"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """One parser of bytes from outside."""

    name: str
    run: Callable[[bytes], object]
    """Parses, and checks what it promises; raises AssertionError when a promise is broken. What it
    returns tells answers apart: a text by itself, anything else by its type."""
    seeds: tuple[bytes, ...]
    refuses: tuple[type[BaseException], ...]
    """What it may raise; anything else is a fault."""
    words: tuple[bytes, ...] = ()
    """Pieces that make inputs of this kind."""
    weight: float = 1.0
    """Share of the inputs of a long run: a slow target gets less."""


class Fault(Exception):
    """A target broke a promise; `data` does it again."""

    def __init__(self, target: str, data: bytes, error: BaseException) -> None:
        super().__init__(target, data, error)
        self.target, self.data, self.error = target, data, error

    def __str__(self) -> str:
        return f"{self.target}: {type(self.error).__name__}: {self.error}; input {self.data!r}"


class Hang(BaseException):
    """An input took too long; no `Exception`, so that no parser catches it."""


@dataclass(slots=True)
class Tally:
    """What a run did."""

    inputs: int = 0
    answers: dict[Answer, bytes] = field(default_factory=dict)
    """Every way the target answered, with the smallest input that made it."""


def try_one(target: Target, data: bytes) -> Answer:
    """Run one input.

    Raises:
        Fault: It raised what it may not raise.
    """
    try:
        result = target.run(data)
    except target.refuses as error:
        return (type(error).__name__, _NOISE.sub("#", str(error)[:300])[:40])
    except (Exception, Hang) as error:
        raise Fault(target.name, data, error) from error
    return ("taken", result if isinstance(result, str) else type(result).__name__)


def inputs(target: Target, known: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    """Yield inputs for ever; what is appended to `known` meanwhile is mutated, too."""
    words = (*target.words, *_COMMON)
    while True:
        data = bytearray(chance.choice(known))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
            _mutate(data, known, words, chance)
        yield bytes(data[:MAX_BYTES])


def fuzz(target: Target, known: Sequence[bytes], *, count: int, seed: int) -> Tally:
    """Run a number of inputs.

    Raises:
        Fault: The first that broke a promise.
    """
    pool = list(dict.fromkeys((*target.seeds, *known)))
    tally = Tally()
    for data in pool:
        _note(tally, try_one(target, data), data)
    source = inputs(target, pool, random.Random(seed))
    with hangs_end():
        for data in source:
            if tally.inputs >= count:
                return tally
            tally.inputs += 1
            if tally.inputs % 100 == 0:  # a system call for each would cost a fifth
                signal.setitimer(signal.ITIMER_PROF, HANG_S)
            answer = try_one(target, data)
            if _note(tally, answer, data) and len(pool) < MAX_POOL:
                pool.append(data)
    return tally


@contextmanager
def hangs_end() -> Iterator[None]:
    """Turn a hang into an error, and memory without bound into MemoryError."""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no answer within {HANG_S:g} s of CPU")

    before = signal.signal(signal.SIGPROF, on_alarm)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mapped = _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (max(mapped, used) + (1 << 30), limits[1]))
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _mapped_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _note(tally: Tally, answer: Answer, data: bytes) -> bool:
    """Keep the smallest input of each answer; return whether the answer is new."""
    found = tally.answers.get(answer)
    if found is None or len(data) < len(found):
        tally.answers[answer] = data
    return found is None


def _mutate(
    data: bytearray, known: Sequence[bytes], words: Sequence[bytes], chance: random.Random
) -> None:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(10):
        case 0 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 1 if data:
            data[at % len(data)] = chance.randrange(256)
        case 2:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 32)))
        case 3:
            del data[at : at + chance.choice((1, 2, 8, 64))]
        case 4:
            piece = bytes(data[at : at + chance.choice((1, 4, 16, 64))])
            data[at:at] = piece * chance.choice((1, 1, 2, 8))
        case 5:
            other = chance.choice(known)
            start = chance.randrange(len(other) + 1)
            data[at:] = other[start:]
        case 6 if numbers := list(_NUMBER.finditer(data)):
            found = chance.choice(numbers)
            data[found.start() : found.end()] = chance.choice(_EXTREMES)
        case 7:
            data[at:at] = chance.choice((b"[", b'{"a":', b"(", b"\x91")) * chance.choice(
                (1, 9, 600)
            )
        case _:
            data[at:at] = chance.choice(words)
