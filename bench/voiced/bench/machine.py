"""What a benchmark ran on: a figure without its machine and commit says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "voiced",
    "numpy",
    "onnxruntime",
    "av",
    "soxr",
    "webrtcvad-wheels",
    "websockets",
    "faster-whisper",
    "ctranslate2",
    "whisper-normalizer",
    "wyoming",
    "wyoming-faster-whisper",
    "moonshine-voice",
)
"""Distributions whose version can move a figure; those not installed are left out."""

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""CPU features that decide which int8 kernels run (x86, then 64-bit Arm)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware, versions and commit of one run."""

    cpu: str
    flags: tuple[str, ...]
    """Those of `FLAGS` that the CPU has."""
    cores: int
    """Cores this process may use."""
    memory_gib: float
    load_1min: float
    """Load average when this was looked at: other work on the machine makes times worse."""
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None
    """Short hash, with `+changes` for an edited tree; None outside a checkout."""

    def lines(self) -> tuple[str, ...]:
        """The same for people, three lines."""
        flags = " ".join(self.flags) or "none of the flags that matter"
        packages = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return (
            f"cpu: {self.cpu} ({flags}), {self.cores} cores, {self.memory_gib:.1f} GiB, "
            f"load {self.load_1min:.2f}",
            f"system: {self.system}, python {self.python}, commit {self.commit or 'unknown'}",
            f"packages: {packages}",
        )


def describe() -> Machine:
    """Look at this machine. Reads /proc, asks git; what is not there is reported as unknown."""
    cpu, flags = parse_cpuinfo(_read("/proc/cpuinfo"))
    return Machine(
        cpu=cpu or platform.processor() or platform.machine(),
        flags=flags,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=parse_meminfo(_read("/proc/meminfo")),
        load_1min=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions(PACKAGES),
        commit=commit(Path(__file__).parent),
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name ("" when the kernel gives none, as on Arm) and the flags that matter."""
    name, found = "", set[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name" if not name:
                name = value.strip()
            case "flags" | "Features":
                found.update(value.split())
    return name, tuple(flag for flag in FLAGS if flag in found)


def parse_meminfo(text: str) -> float:
    """Return the memory in GiB, 0 when the text does not say."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return 0.0


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions, in the order asked for."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """Return the commit of the checkout that `folder` is a part of.

    None when git is missing, or when `folder` is not tracked: an installed copy may lie inside
    somebody else's repository, whose commit would say nothing about ours.
    """
    try:
        if not _git(folder, "ls-files", "."):
            return None
        edited = _git(folder, "status", "--porcelain", "--untracked-files=no", ":/")
        return _git(folder, "rev-parse", "--short=10", "HEAD") + ("+changes" if edited else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
