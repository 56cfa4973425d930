"""Hotwords of the settings, and those of one stream together with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from voiced.daemon.config import ConfigError, Problem, show
from voiced.daemon.engine_settings import EngineSettings
from voiced.daemon.errors import HotwordRefused, os_reason
from voiced.engine.hotwords import parse_hotword
from voiced.engine.types import Hotword

MAX_PHRASES = 1_000
"""Of list and file together."""
_MAX_FILE_BYTES = 1 << 20


def hotwords_of(engine: EngineSettings) -> tuple[Hotword, ...]:
    """Return those of the list and of the file, which is read.

    Raises:
        ConfigError: The file cannot be used; with every problem.
    """
    texts, problems = list(engine.hotwords), list[Problem]()
    if engine.hotwords_file is not None:
        place = "settings", "engine.hotwords_file"
        more, problems = _read(Path(engine.hotwords_file), engine.hotwords_score, place)
        texts += more
    if len(texts) > MAX_PHRASES:
        rule = f"must be at most {MAX_PHRASES} phrases with those of `engine.hotwords_file`"
        problems.append(Problem("settings", "engine.hotwords", rule, str(len(texts))))
    if problems:
        raise ConfigError(problems)
    return tuple(parse_hotword(text, engine.hotwords_score) for text in texts)


def hotwords_of_file(path: Path, score: float, flag: str) -> tuple[Hotword, ...]:
    """Return those of a file that a command is given by a flag, in the form of the daemon's.

    Raises:
        ConfigError: The file cannot be used; with every problem.
    """
    texts, problems = _read(path, score, (flag, ""))
    if len(texts) > MAX_PHRASES:
        problems.append(Problem(str(path), "", f"must be at most {MAX_PHRASES} phrases"))
    if problems:
        raise ConfigError(problems)
    return tuple(parse_hotword(text, score) for text in texts)


def _read(path: Path, score: float, place: tuple[str, str]) -> tuple[list[str], list[Problem]]:
    """Return the phrases of a file, and what is wrong with some of its lines.

    Raises:
        ConfigError: It cannot be read; `place` says who named it: source and key.
    """
    texts, problems = [], []
    for number, line in enumerate(_lines(path, place), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            parse_hotword(text, score)
        except ValueError as error:
            problems.append(Problem(f"{path}:{number}", "hotword", str(error), show(text)))
        texts.append(text)
    return texts, problems


def _lines(path: Path, place: tuple[str, str]) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError([Problem(*place, f"cannot be read: {os_reason(error)}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(*place, "must be UTF-8 text", str(path))]) from None
    if len(data) > _MAX_FILE_BYTES:
        rule = f"must be at most {_MAX_FILE_BYTES} bytes"
        raise ConfigError([Problem(*place, rule, str(path))])
    return text.splitlines()


def hotwords_of_stream(texts: Sequence[str], score: float) -> tuple[Hotword, ...]:
    """Read those of a `start`.

    Raises:
        HotwordRefused: One of them is none.
    """
    found = []
    for text in texts:
        try:
            found.append(parse_hotword(text, score))
        except ValueError as error:
            raise HotwordRefused(text, str(error)) from None
    return tuple(found)


@functools.lru_cache(maxsize=64)
def merged(everybody: tuple[Hotword, ...], own: tuple[Hotword, ...]) -> tuple[Hotword, ...]:
    """Both lists; a phrase in both has the bonus that the stream gave it."""
    return tuple({each.phrase: each for each in (*everybody, *own)}.values())
