"""Where bundles live on this machine, and how a name becomes a folder.

`VOICED_MODEL_DIR` names the one folder to use. Without it bundles are read from the service's
folder, when this user may read it, and then from the user's cache; they are written to the first
of the two that this user may write to.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from voiced.engine.bundle import MANIFEST_NAME, is_plain_name
from voiced.engine.errors import BundleError

SERVICE_DIR = Path("/var/lib/voiced/models")
"""Bundles of the system service (its systemd `StateDirectory`)."""

SILERO_BUNDLE = "silero-vad"
SILERO_FILE = "silero_vad.onnx"

_BUILD_LEFTOVER = re.compile(r".*\.(partial|fetch|old)-\d+")


def search_path() -> tuple[Path, ...]:
    """Return the folders that bundles are looked for in, first match wins. They may not exist."""
    if chosen := os.environ.get("VOICED_MODEL_DIR"):
        return (Path(chosen).expanduser().absolute(),)
    if SERVICE_DIR.is_dir() and os.access(SERVICE_DIR, os.R_OK | os.X_OK):
        return (SERVICE_DIR, _cache_dir())
    return (_cache_dir(),)


def models_dir() -> Path:
    """Return the folder that new bundles are written to. It may not exist yet."""
    folders = search_path()
    for folder in folders:
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return folders[-1]


def resolve(name_or_path: str | Path) -> Path:
    """Find a bundle's folder by name, or take a path as it is.

    Anything with a path separator is a path, and so is a `Path`; the rest is a name in the
    search path. The bundle is not opened.

    Raises:
        BundleError: There is no such bundle.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or os.sep in text or text in (".", ".."):
        path = Path(text).expanduser().absolute()
        if not _has_manifest(path):
            raise BundleError(
                path, found="no manifest there", expected=f"a bundle folder with {MANIFEST_NAME}"
            )
        return path
    if not is_plain_name(text):
        raise BundleError(
            Path(text), found=f"bundle name {text!r}", expected="letters, digits, '.', '_' and '-'"
        )
    for folder in search_path():
        if _has_manifest(folder / text):
            return folder / text
    bundles = list_bundles()
    have = ", ".join(path.name for path in bundles if _has_manifest(path))
    found = f"only {have}" if have else "no bundle at all"
    folders = [path for path in bundles if path.name == text]
    raise BundleError(
        folders[0] if folders else search_path()[-1] / text,
        found=f"a folder without {MANIFEST_NAME}" if folders else found,
        expected=f"a bundle named {text!r}",
        next_step=f"get it with `voiced model pull {text}`; `voiced model list` shows all",
    )


def _has_manifest(folder: Path) -> bool:
    """Whether this is a bundle's folder.

    Raises:
        BundleError: Only another user may know.
    """
    try:
        return (folder / MANIFEST_NAME).is_file()
    except PermissionError:
        raise BundleError(
            folder,
            found="a folder that this user may not enter",
            expected="a readable one",
            next_step="change its permissions, or choose another with VOICED_MODEL_DIR",
        ) from None


def list_bundles() -> list[Path]:
    """Return the folder of every bundle, sorted by name. They may turn out to be damaged."""
    found: dict[str, Path] = {}
    for folder in search_path():
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if not is_plain_name(path.name) or _BUILD_LEFTOVER.fullmatch(path.name):
                continue
            if path.is_dir():
                found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def silero_path() -> Path | None:
    """Return the silero graph, or None when its bundle has not been fetched."""
    for folder in search_path():
        path = folder / SILERO_BUNDLE / SILERO_FILE
        if path.is_file():
            return path
    return None


def _cache_dir() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    base = Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()
    return base / "voiced" / "models"
