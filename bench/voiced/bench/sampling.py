"""What a server costs while it is used: CPU and memory of its processes, its own gauges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import time
import urllib.request
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 1.0
"""Between two looks."""
SCRAPE_EVERY = 2
"""Every so many looks the server's own metrics are read too."""
_TIMEOUT_S = 10.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})?\s+(\S+)")


@dataclass(slots=True)
class Track:
    """One thing over time, 16 bytes for each look."""

    at_s: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, at_s: float, value: float) -> None:
        """Note one look."""
        self.at_s.append(at_s)
        self.values.append(value)

    def points(self) -> list[tuple[float, float]]:
        """All looks."""
        return list(zip(self.at_s, self.values, strict=True))


@dataclass(slots=True)
class Samples:
    """Everything that was seen."""

    cpu_s: float = 0.0
    """CPU time of all processes of the server within the run."""
    span_s: float = 0.0
    """From the first to the last look: the run and what it took to answer everything."""
    by_process_cpu_s: dict[str, float] = field(default_factory=dict)
    rss: dict[str, Track] = field(default_factory=dict)
    """Process → resident bytes."""
    queue_age_s: Track = field(default_factory=Track)
    queued_finals: Track = field(default_factory=Track)
    counters: dict[str, float] = field(default_factory=dict)
    """The server's counters at the end, name with labels → value."""

    def peak_rss(self) -> float:
        """Largest sum over the processes at one look, in bytes."""
        totals: dict[float, float] = {}
        for track in self.rss.values():
            for at_s, value in track.points():
                totals[at_s] = totals.get(at_s, 0.0) + value
        return max(totals.values(), default=0.0)


class Sampler:
    """Looks at processes and at `/metrics` until it is stopped."""

    def __init__(
        self,
        pids: Callable[[], Sequence[int]],
        *,
        metrics_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        own: bool = True,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            pids: The server's processes now, the main one first.
            metrics_url: Where its metrics are; None: it has none.
            headers: What its pages are asked with.
            context: How a server with TLS is trusted.
            own: Watch this process's memory too, as `client`.
        """
        self._pids, self._metrics_url, self._own = pids, metrics_url, own
        self._headers, self._context = dict(headers or {}), context
        self._cpu: dict[int, float] = {}
        self._begun: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._first_s: float | None = None
        self.samples = Samples()

    async def run(self, begin_s: float) -> None:
        """Look every second; ends when it is cancelled."""
        number = 0
        while True:
            due_s = begin_s + number * EVERY_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self.look(time.monotonic() - begin_s)
            if self._metrics_url is not None and number % SCRAPE_EVERY == 0:
                self._gauges(time.monotonic() - begin_s, await self.scrape())
            number += 1

    def look(self, at_s: float) -> None:
        """Note CPU and memory of every process."""
        self._first_s = at_s if self._first_s is None else self._first_s
        self.samples.span_s = at_s - self._first_s
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it ended meanwhile
                name = self._name(pid)
                now_s = cpu_of(pid)
                self._begun.setdefault(pid, now_s)
                self._cpu[pid] = now_s
                self.samples.rss.setdefault(name, Track()).add(at_s, rss_of(pid))
        if self._own:
            self.samples.rss.setdefault("client", Track()).add(at_s, rss_of(os.getpid()))

    async def scrape(self) -> dict[str, float]:
        """Read the server's metrics; empty where it does not answer."""
        if self._metrics_url is None:
            return {}
        return await asyncio.to_thread(
            read_metrics, self._metrics_url, self._headers, self._context
        )

    async def finish(self) -> Samples:
        """Sum up after `run` was cancelled."""
        used = {pid: self._cpu[pid] - self._begun[pid] for pid in self._cpu}
        for pid, seconds in used.items():
            name = self._names[pid]
            by_process = self.samples.by_process_cpu_s
            by_process[name] = by_process.get(name, 0.0) + seconds
        self.samples.cpu_s = sum(used.values())
        self.samples.counters = await self.scrape()
        return self.samples

    def _gauges(self, at_s: float, metrics: Mapping[str, float]) -> None:
        age = metrics.get("voiced_engine_oldest_final_age_seconds")
        if age is not None:
            self.samples.queue_age_s.add(at_s, age)
            self.samples.queued_finals.add(at_s, metrics.get("voiced_engine_queued_finals", 0.0))

    def _name(self, pid: int) -> str:
        if pid not in self._names:
            taken = set(self._names.values())
            kind = process_kind(Path(f"/proc/{pid}/cmdline").read_bytes())
            names = (kind if n == 1 else f"{kind} {n}" for n in range(1, len(taken) + 2))
            self._names[pid] = next(name for name in names if name not in taken)
        return self._names[pid]


def process_kind(command_line: bytes) -> str:
    """Name a process by what it runs: the last part of its module, else its program."""
    words = [word.decode(errors="replace") for word in command_line.split(b"\0") if word]
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        return {"voiced.daemon.cli": "daemon"}.get(module, module.rpartition(".")[2])
    if "-c" in words:
        return "helper"
    script = next((w for w in words[1:] if not w.startswith("-")), words[0] if words else "?")
    return Path(script).name


def parse_metrics(text: str) -> dict[str, float]:
    """Read the Prometheus text format, histogram buckets left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and not match[1].endswith("_bucket"):
            with contextlib.suppress(ValueError):
                found[match[1] + (match[2] or "")] = float(match[3])
    return found


def read_metrics(
    url: str, headers: Mapping[str, str] | None = None, context: ssl.SSLContext | None = None
) -> dict[str, float]:
    """Get and read metrics; empty where the server does not answer or does not let us in."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return parse_metrics(response.read().decode())
    except OSError:
        return {}


def rss_of(pid: int) -> float:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    from voiced.daemon.commands.child import cpu_s

    return cpu_s([pid])
