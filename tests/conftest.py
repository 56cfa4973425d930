"""Fixtures of all tests: recorded speech, the built model, and a check for leaked threads."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.needs import missing

from voiced.engine import store
from voiced.engine.errors import BundleError

# No clock decides a test: a busy machine is no failure.
settings.register_profile("voiced", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("voiced")

DEFAULT_MODEL = "whisper-base"
RESIDENT_MODEL = "whisper-base-fp32"
LEAK_TIMEOUT_S = 5.0


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """Recorded speech with its texts: `$VOICED_TEST_DATA`, else `../shared/data/dev`."""
    named = os.environ.get("VOICED_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data" / "dev"
    if not folder.is_dir():
        missing("SPEECH", f"no recorded speech: {folder} is no folder (set VOICED_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def bundle() -> Path:
    """Folder of the built default model; `make test` builds it first."""
    try:
        return store.resolve(DEFAULT_MODEL)
    except BundleError as error:
        missing("MODEL", f"the default model is not built: {error}")


@pytest.fixture(scope="session")
def resident_bundle() -> Path:
    """Folder of the default model in fp32 with its caches on the device; `make test` builds it."""
    try:
        return store.resolve(RESIDENT_MODEL)
    except BundleError as error:
        missing("MODEL", f"the fp32 model is not built: {error}")


@pytest.fixture(scope="session")
def mslite_python() -> Path:
    """Interpreter with MindSpore Lite: `$VOICED_MSLITE_PYTHON`, else what `make mindspore` made."""
    named = os.environ.get("VOICED_MSLITE_PYTHON")
    made = Path(__file__).parents[1] / ".venv-mindspore" / "bin" / "python"
    python = Path(named) if named else made
    if not python.exists():
        missing("MSLITE", f"no MindSpore Lite: {python} does not exist (run `make mindspore`)")
    return python


@pytest.fixture(scope="session")
def silero_path() -> Path:
    """The speech detector's graph; `make test` builds it first."""
    path = store.silero_path()
    if path is None:
        missing("MODEL", "no silero model; run `voiced model pull silero-vad`")
    return path


@pytest.fixture
def limit_files() -> Iterator[Callable[[int | None], None]]:
    """A disk that takes no file above so many bytes, as far as this process is concerned.

    SQLite and `write` see it as they see a full disk; None lifts it.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        soft = before[0] if size is None else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(None)


@pytest.fixture(autouse=True)
def _no_leaked_thread() -> Iterator[None]:
    """Fail the test that leaves a thread behind which would keep the process alive."""
    before = set(threading.enumerate())
    yield
    for thread in threading.enumerate():
        if thread not in before and not thread.daemon:
            thread.join(LEAK_TIMEOUT_S)
            assert not thread.is_alive(), f"the test left a thread behind: {thread.name}"
