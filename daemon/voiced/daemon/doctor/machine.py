"""The machine: CPU, memory, disks, clocks. Folders and readers are arguments, for the tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from voiced.daemon.doctor.finding import Finding, fail, ok, warn

_MB = 1 << 20
LEAST_MEMORY_MB = 600
"""The default model, loaded and warm, and its daemon: with less they are swapped or killed."""
GOOD_MEMORY_MB = 1_000
LEAST_DISK_MB, GOOD_DISK_MB = 50, 500
FIRST_SANE_WALL_S = 1_704_067_200
"""2024-01-01: a clock before that was never set."""
LONG_PAUSE_MS = 50.0
_STA_UNSYNC = 0x0040  # sys/timex.h
_GOOD_SOURCES = {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"}


def check_cpu(threads: int, *, proc: Path = Path("/proc"), machine: str = "") -> Iterator[Finding]:
    """Say what int8 arithmetic will run on, and whether there are as many cores as threads."""
    machine = machine or platform.machine()
    cores = len(os.sched_getaffinity(0))
    flags = _cpu_flags(proc / "cpuinfo")
    if machine in ("x86_64", "AMD64"):
        vnni = sorted(flag for flag in flags if flag.endswith("vnni"))
        name = f"{cores} cores, x86_64"
        if "avx2" not in flags:
            yield warn(
                "cpu", f"{name} without AVX2", "expect several times the delay; choose a CPU"
            )
        elif not vnni:
            yield ok("cpu", f"{name}, AVX2 (no VNNI, which would make int8 models faster)")
        else:
            yield ok("cpu", f"{name}, AVX2, {', '.join(vnni)}")
    elif machine in ("aarch64", "arm64"):
        name = f"{cores} cores, {machine}"
        if "asimddp" in flags:
            yield ok("cpu", f"{name}, dot product{', i8mm' if 'i8mm' in flags else ''}")
        else:
            yield warn("cpu", f"{name} without dot product (asimddp)", "expect slow int8 models")
    else:
        yield warn("cpu", f"{cores} cores, {machine}", "voiced is made for x86_64 and aarch64")
    if threads > cores:
        yield warn(
            "cpu",
            f"engine.threads is {threads}, there are {cores} cores",
            f"set `engine.threads` to {cores} at most",
        )


def _cpu_flags(path: Path) -> set[str]:
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return set(value.split())
    return set()


def check_memory(*, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Compare what is free with what a loaded model takes."""
    facts = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "meminfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts[key] = int(value.split()[0]) // 1_024
    free = facts.get("MemAvailable")
    if free is None:
        yield warn("memory", f"{proc}/meminfo does not say", "check that /proc is mounted")
        return
    found = f"{free} MB of {facts.get('MemTotal', 0)} MB available"
    if free < LEAST_MEMORY_MB:
        yield fail("memory", found, f"free memory: the default model needs {LEAST_MEMORY_MB} MB")
    elif free < GOOD_MEMORY_MB:
        yield warn("memory", found, "enough for the default model; watch `systemctl status voiced`")
    else:
        yield ok("memory", found)


def check_disk(
    folders: Mapping[str, Path],
    *,
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> Iterator[Finding]:
    """Look at the room in each folder's file system, and whether we may write there.

    Args:
        folders: What a folder is for → the folder. One that does not exist yet is judged by the
            nearest one that does.
        free_bytes: Free bytes of a path's file system.
    """
    for purpose, folder in folders.items():
        try:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            free = free_bytes(there) // _MB
        except PermissionError as error:
            yield fail("permissions", f"{purpose}: {error.filename} is closed", _mend(folder))
            continue
        found = f"{purpose}: {folder}, {free} MB free"
        if free < LEAST_DISK_MB:
            yield fail("disk", found, f"make room: at least {GOOD_DISK_MB} MB")
        elif free < GOOD_DISK_MB:
            yield warn("disk", found, f"make room: at least {GOOD_DISK_MB} MB")
        else:
            yield ok("disk", found)
        if there == folder and not os.access(folder, os.R_OK | os.X_OK):
            yield fail("permissions", f"{purpose}: {folder} is not readable", _mend(folder))
        elif not os.access(there, os.W_OK):
            yield warn(
                "permissions",
                f"{purpose}: {there} is not writable for this user",
                "needed by whoever fetches models or keeps state there; run as that user",
            )


def _mend(folder: Path) -> str:
    return f"let this user in: `ls -ld {folder}` shows whose it is"


def check_clock(
    *,
    wall_s: Callable[[], float] = time.time,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    is_synchronised: Callable[[], bool | None] = lambda: is_clock_synchronised(),
    source: Path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    reads: int = 20_000,
) -> Iterator[Finding]:
    """Look at the wall clock, and for pauses and steps back of the monotonic one."""
    now_s = wall_s()
    if now_s < FIRST_SANE_WALL_S:
        found = f"the wall clock says {time.strftime('%Y-%m-%d', time.gmtime(now_s))}"
        yield warn("clock", found, "set it: `wall_ms` of messages and tokens' expiry depend on it")
    synchronised = is_synchronised()
    if synchronised is False:
        yield warn(
            "clock",
            "the wall clock is not synchronised",
            "start a time service: `timedatectl set-ntp true`; only times of day are affected",
        )
    elif synchronised:
        yield ok("clock", "the wall clock is synchronised")
    longest_ns, last_ns, back = 0, monotonic_ns(), False
    for _ in range(reads):
        here_ns = monotonic_ns()
        back |= here_ns < last_ns
        longest_ns, last_ns = max(longest_ns, here_ns - last_ns), here_ns
    pause_ms = longest_ns / 1e6
    with contextlib.suppress(OSError):
        name = source.read_text(encoding="utf-8").strip()
        if name not in _GOOD_SOURCES:
            yield warn("clock", f"the kernel's clock source is {name}", "slow or coarse; see dmesg")
    if back:
        yield fail("clock", "the monotonic clock ran backwards", "a fault of kernel or hypervisor")
    elif pause_ms > LONG_PAUSE_MS:
        yield warn(
            "clock",
            f"this process stood still for {pause_ms:.0f} ms",
            "the machine is overloaded or its hypervisor pauses it; speech will be late",
        )
    else:
        yield ok("clock", f"the monotonic clock is steady, longest step {pause_ms:.1f} ms")


def is_clock_synchronised() -> bool | None:
    """Ask the kernel whether something keeps its clock right; None where it cannot be asked."""

    class Timex(ctypes.Structure):  # sys/timex.h; modes 0 only reads
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_byte * 512),
        )

    answer = Timex()
    try:
        if ctypes.CDLL(None).adjtimex(ctypes.byref(answer)) < 0:
            return None
    except AttributeError:
        return None
    return not answer.status & _STA_UNSYNC
