"""Bearer tokens: made once, shown once, kept as hashes, with scopes and an end. Pure but for files.

A token has 256 random bits, so its plain SHA-256 tells nothing about it and a slow hash would
protect nothing (OWASP on high-entropy keys); what is compared is the hash, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from voiced.daemon.errors import DaemonError
from voiced.daemon.guarded import FileRefused, read_guarded, write_whole

Scope = Literal["stream", "subscribe", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
PREFIX = "vk_"
MAX_TOKENS = 1_000
MAX_FILE_BYTES = 1 << 20

_TOKEN = re.compile(r"vk_[A-Za-z0-9_-]{43}\Z")
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class TokenFileError(DaemonError):
    """A change of the file of tokens that cannot be made."""

    code = "config"


class TokenRefused(DaemonError):
    """The token is not one of ours, or not any more."""

    code = "unauthorized"


class TokenExpired(TokenRefused):
    """It was one of ours until a moment ago."""

    code = "token_expired"


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept of one token."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the token's text."""
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1, max_length=3)]
    created_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    expires_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] | None = None
    """Unix time from which it is worth nothing; None: never."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    tokens: Annotated[tuple[Token, ...], msgspec.Meta(max_length=MAX_TOKENS)]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client that showed its token may do."""

    name: str
    scopes: frozenset[str]
    expires_s: int | None = None
    digest: str = ""
    """Which token it was: a name can be given anew."""


ANYONE = Grant("", frozenset(SCOPES))
"""Where no tokens are asked for."""


class TokenBook:
    """The tokens of one file."""

    def __init__(self, tokens: tuple[Token, ...] = ()) -> None:
        self.tokens = tokens
        self._by_digest = [(bytes.fromhex(token.hash), token) for token in tokens]

    def check(self, text: str, now_s: float) -> Grant:
        """Tell what the bearer of a token may do.

        Raises:
            TokenExpired: Its time is over.
            TokenRefused: No token of this file.
        """
        if _TOKEN.match(text) is None:
            raise TokenRefused("found something else than a token of `voiced keys token add`")
        digest = hashlib.sha256(text.encode()).digest()
        found: Token | None = None
        for known, token in self._by_digest:  # all of them, whichever it is
            if hmac.compare_digest(known, digest):
                found = token
        if found is None:
            raise TokenRefused("the token is not known here; see `voiced keys token list`")
        if found.expires_s is not None and now_s >= found.expires_s:
            raise TokenExpired(f"the token {found.name!r} has expired; ask for a new one")
        return Grant(found.name, frozenset(found.scopes), found.expires_s, found.hash)

    def still_grants(self, grant: Grant, now_s: float) -> bool:
        """Tell whether a grant given earlier is good: not revoked, not changed, not over."""
        if grant.expires_s is not None and now_s >= grant.expires_s:
            return False
        return any(
            token.hash == grant.digest and frozenset(token.scopes) == grant.scopes
            for token in self.tokens
        )


def parse(data: bytes) -> TokenBook:
    """Read the content of a file of tokens.

    Raises:
        ValueError: It is no such file; says why, without its content.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(f"is no file of tokens: {str(error)[:200]}") from None
    names = [token.name for token in file.tokens]
    if len(set(names)) < len(names):
        raise ValueError("is no file of tokens: a name stands in it twice")
    return TokenBook(file.tokens)


def read(path: Path) -> TokenBook:
    """Read a file of tokens.

    Raises:
        FileRefused: Unreadable, others may change it, or no file of tokens.
    """
    data = read_guarded(path, max_bytes=MAX_FILE_BYTES, is_secret=False)
    try:
        return parse(data)
    except ValueError as error:
        raise FileRefused(path, str(error)) from None


def write(path: Path, book: TokenBook) -> None:
    """Put the file in place whole, for its owner alone; a group that it has keeps its access."""
    text = msgspec.json.format(msgspec.json.encode(_File(1, book.tokens)), indent=2)
    write_whole(path, text + b"\n", mode=0o600)


def new(
    book: TokenBook, name: str, scopes: tuple[str, ...], *, now_s: int, expires_s: int | None
) -> tuple[TokenBook, str]:
    """Make a token; return the book with it, and its text, which is kept nowhere.

    Raises:
        TokenFileError: The name is taken or none, a scope is unknown, or there are too many.
    """
    if any(token.name == name for token in book.tokens):
        raise TokenFileError(f"there is a token {name!r} already; revoke it or choose another name")
    if len(book.tokens) >= MAX_TOKENS:
        raise TokenFileError(f"there are {MAX_TOKENS} tokens already, which is the most")
    text = PREFIX + secrets.token_urlsafe(32)
    fields = {
        "name": name,
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "scopes": list(dict.fromkeys(scopes)),
        "created_s": now_s,
        "expires_s": expires_s,
    }
    try:
        token = msgspec.convert(fields, Token)
    except msgspec.ValidationError as error:
        raise TokenFileError(
            f"no such token can be made: {error}; a name has 1 to 64 of A-Z a-z 0-9 . _ -, "
            f"scopes are {', '.join(SCOPES)}"
        ) from None
    return TokenBook((*book.tokens, token)), text


def without(book: TokenBook, name: str) -> TokenBook:
    """Return the book without one token.

    Raises:
        TokenFileError: It is not there.
    """
    if all(token.name != name for token in book.tokens):
        known = ", ".join(token.name for token in book.tokens) or "none"
        raise TokenFileError(f"there is no token {name!r}; there are: {known}")
    return TokenBook(tuple(token for token in book.tokens if token.name != name))


def expiry_s(text: str, now_s: int) -> int | None:
    """Read `--expires`: `never`, a time from now (`12h`, `90d`, `8w`), or a date (UTC).

    Raises:
        TokenFileError: It is none of these.
    """
    if text == "never":
        return None
    if found := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return now_s + int(found[1]) * _UNITS_S[found[2]]
    try:
        moment = datetime.fromisoformat(text)
        end_s = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise TokenFileError(
            f"--expires {text}: expected `never`, a time like 12h, 90d or 8w, or a date like "
            "2027-01-31"
        ) from None
    if end_s <= now_s:
        raise TokenFileError(f"--expires {text}: is over already")
    return end_s
