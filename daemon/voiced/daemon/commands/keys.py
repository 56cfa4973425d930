"""`voiced keys`: tokens of the HTTP port and keys of the bus."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from voiced.daemon import curve, tokens
from voiced.daemon.config import ConfigError, Problem, load
from voiced.daemon.guarded import FileRefused, read_guarded

if TYPE_CHECKING:
    from voiced.daemon.security_settings import CurveSettings
    from voiced.plugins.curve import CurveKeys


def token_add(name: str, *, scope: str, expires: str, file: Path | None) -> int:
    """Add a token; its text goes to standard output alone, the rest to standard error."""
    path = _token_file(file)
    now_s = int(time.time())
    book = tokens.read(path) if path.exists() else tokens.TokenBook()
    expires_s = tokens.expiry_s(expires, now_s)
    book, text = tokens.new(book, name, _list(scope), now_s=now_s, expires_s=expires_s)
    tokens.write(path, book)
    print(text)
    print(
        f"{path}: token {name!r} added, {_end(expires_s)}; it is shown this once", file=sys.stderr
    )
    return 0


def token_list(file: Path | None) -> int:
    """Print one line for each token."""
    now_s = time.time()
    for token in tokens.read(_token_file(file)).tokens:
        is_over = token.expires_s is not None and now_s >= token.expires_s
        state = "expired" if is_over else _end(token.expires_s)
        print(f"{token.name:<24} {','.join(token.scopes):<24} {state}")
    return 0


def token_revoke(name: str, file: Path | None) -> int:
    """Take a token out of the file."""
    path = _token_file(file)
    tokens.write(path, tokens.without(tokens.read(path), name))
    print(f"{path}: token {name!r} revoked", file=sys.stderr)
    return 0


def curve_new(file: Path) -> int:
    """Write a key pair; print the public key."""
    pair = curve.new_pair()
    curve.write_pair(file, pair)
    print(pair.public)
    return 0


def curve_allow(name: str, public: str, *, use: str, file: Path | None) -> int:
    """Add a key to the allow-list."""
    path = _allow_file(file)
    allowed = curve.read_allowed(path) if path.exists() else curve.AllowList()
    curve.write_allowed(path, curve.with_key(allowed, name, public, _list(use)))
    print(f"{path}: key {name!r} allowed", file=sys.stderr)
    return 0


def curve_list(file: Path | None) -> int:
    """Print one line for each allowed key."""
    for key in curve.read_allowed(_allow_file(file)).keys:
        print(f"{key.name:<24} {','.join(key.domains):<24} {key.public}")
    return 0


def curve_remove(name: str, file: Path | None) -> int:
    """Take a key out of the allow-list."""
    path = _allow_file(file)
    curve.write_allowed(path, curve.without_key(curve.read_allowed(path), name))
    print(f"{path}: key {name!r} removed", file=sys.stderr)
    return 0


def client_keys(settings: CurveSettings) -> CurveKeys | None:
    """What `voiced listen` and `voiced plugins run` show the bus; None: it is open.

    Raises:
        ConfigError: One of the two settings is missing.
        FileRefused: The file cannot be used.
    """
    from voiced.plugins.curve import CurveKeys

    if settings.client_key is None and settings.server_key is None:
        return None
    if settings.client_key is None or settings.server_key is None:
        missing = "client_key" if settings.client_key is None else "server_key"
        rule = "must be set where the other one of `client_key` and `server_key` is"
        raise ConfigError([Problem("settings", f"bus.curve.{missing}", rule)])
    pair = curve.read_pair(Path(settings.client_key))
    return CurveKeys(public=pair.public, secret=pair.secret, server=settings.server_key)


def _token_file(given: Path | None) -> Path:
    named = given or load().settings.server.tokens
    return _required(named, "server.tokens")


def _allow_file(given: Path | None) -> Path:
    named = given or load().settings.bus.curve.allowed
    return _required(named, "bus.curve.allowed")


def _required(named: Path | str | None, key: str) -> Path:
    if named is None:
        raise ConfigError([Problem("settings", key, "is not set; set it, or give --file FILE")])
    return Path(named)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _end(expires_s: int | None) -> str:
    if expires_s is None:
        return "never expires"
    return f"expires {datetime.fromtimestamp(expires_s, UTC):%Y-%m-%d %H:%M} UTC"


def read_token(path: Path | None) -> str | None:
    """Read a client's own token from a file that only it may read; no file is no token.

    Raises:
        FileRefused: Unreadable, or others may read it.
    """
    if path is None:
        return None
    data = read_guarded(path, max_bytes=1_024, is_secret=True)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise FileRefused(path, "holds no token") from None
