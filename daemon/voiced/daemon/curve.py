"""CURVE on the bus: the daemon's key, the keys that may connect, and the ZAP handler that says so.

ZeroMQ encrypts with the daemon's key pair and asks, for each connection, a handler in the same
context (ZeroMQ RFC 27, ZAP) whether the client's public key may. Each socket has a domain, and each
allowed key the domains that it may use. A socket of another part takes the same protection:
`curve.protect(socket, "subscribe")` before it is bound, in the bus's own context.

ZeroMQ asks once, when a connection is made. So that a key which is taken back is of no more use,
each message in is held against the list again (`admits`), and who listens is cut (`expel`).
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import zmq
import zmq.asyncio
from zmq.utils import z85

from voiced.daemon.errors import DaemonError
from voiced.daemon.guarded import FileRefused, read_guarded, write_whole
from voiced.daemon.metrics import Metrics
from voiced.daemon.watched import Watched

logger = logging.getLogger(__name__)

Domain = Literal["subscribe", "ingest"]
"""What a socket is for: to hear (PUB, replay), or to hand in intents (PULL)."""
DOMAINS: tuple[str, ...] = get_args(Domain)
MAX_KEYS = 1_000
_MAX_FILE_BYTES = 1 << 20
_WARN_INTERVAL_S = 60.0
_ZAP = "inproc://zeromq.zap.01"

PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")]


class KeyFileError(DaemonError):
    """A change of a file of keys that cannot be made."""

    code = "config"


class KeyPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Curve25519 key pair in Z85; `secret` stays in its file."""

    public: PublicKey
    secret: PublicKey

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"  # never the secret: this ends in logs


class AllowedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client that may connect."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    public: PublicKey
    domains: Annotated[tuple[Domain, ...], msgspec.Meta(min_length=1, max_length=2)]


class _AllowFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    keys: Annotated[tuple[AllowedKey, ...], msgspec.Meta(max_length=MAX_KEYS)]


def user_of(key: AllowedKey) -> str:
    """What ZeroMQ calls the owner of a connection in the messages that come by it."""
    return f"{key.name} {key.public}"


class AllowList:
    """The keys that may connect."""

    def __init__(self, keys: tuple[AllowedKey, ...] = ()) -> None:
        self.keys = keys
        self._raw = [(z85.decode(key.public), key) for key in keys]

    def allows(self, user: str, domain: str) -> bool:
        """Say whether the key of a connection may still use the domain; see `user_of`."""
        return any(user == user_of(key) and domain in key.domains for key in self.keys)

    def find(self, public: bytes, domain: str) -> AllowedKey | None:
        """Return whose key these 32 bytes are, if it may use the domain."""
        found = None
        for raw, key in self._raw:
            if hmac.compare_digest(raw, public) and domain in key.domains:
                found = key
        return found


def parse_allowed(data: bytes) -> AllowList:
    """Read the content of an allow-list.

    Raises:
        ValueError: It is none; says why.
    """
    try:
        file = msgspec.json.decode(data, type=_AllowFile)
        allowed = AllowList(file.keys)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, struct.error) as error:
        raise ValueError(f"is no list of allowed keys: {str(error)[:200]}") from None
    for what in ("name", "public"):
        if len({getattr(key, what) for key in file.keys}) < len(file.keys):
            raise ValueError(f"is no list of allowed keys: a {what} stands in it twice")
    return allowed


def read_allowed(path: Path) -> AllowList:
    """Read an allow-list.

    Raises:
        FileRefused: Unreadable, others may change it, or none.
    """
    data = read_guarded(path, max_bytes=_MAX_FILE_BYTES, is_secret=False)
    try:
        return parse_allowed(data)
    except ValueError as error:
        raise FileRefused(path, str(error)) from None


def write_allowed(path: Path, allowed: AllowList) -> None:
    """Put the list in place whole."""
    text = msgspec.json.format(msgspec.json.encode(_AllowFile(1, allowed.keys)), indent=2)
    write_whole(path, text + b"\n", mode=0o644)


def new_pair() -> KeyPair:
    """Make a key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def read_pair(path: Path) -> KeyPair:
    """Read a file of `voiced keys curve new`.

    Raises:
        FileRefused: Unreadable, others may read it, or no such file.
    """
    data = read_guarded(path, max_bytes=4_096, is_secret=True)
    try:
        pair = msgspec.json.decode(data, type=KeyPair)
        is_a_pair = zmq.curve_public(pair.secret.encode()).decode() == pair.public
    except (
        msgspec.MsgspecError,
        UnicodeError,
        RecursionError,
        ValueError,
        struct.error,
        zmq.ZMQError,
    ):
        is_a_pair = False  # without the reason, which might quote the secret
    if not is_a_pair:
        raise FileRefused(path, "is no file of `voiced keys curve new`")
    return pair


def write_pair(path: Path, pair: KeyPair) -> None:
    """Write a new file for its owner alone.

    Raises:
        KeyFileError: There is a file of this name.
        OSError: It cannot be written.
    """
    if path.exists():
        raise KeyFileError(f"{path} is there already; a key that is replaced locks everybody out")
    write_whole(path, msgspec.json.encode(pair) + b"\n", mode=0o600)


def with_key(allowed: AllowList, name: str, public: str, domains: tuple[str, ...]) -> AllowList:
    """Allow one more key.

    Raises:
        KeyFileError: No such key can be, or its name or itself is there.
    """
    for key in allowed.keys:
        if name == key.name or public == key.public:
            raise KeyFileError(f"key {key.name!r} ({key.public}) is allowed already")
    try:
        key = msgspec.convert(
            {"name": name, "public": public, "domains": list(domains)}, AllowedKey
        )
        return AllowList((*allowed.keys, key))
    except (msgspec.ValidationError, ValueError, struct.error) as error:
        raise KeyFileError(
            f"no such key can be allowed: {error}; a name has 1 to 64 of A-Z a-z 0-9 . _ -, a "
            f"public key the 40 characters that `voiced keys curve new` prints"
        ) from None


def without_key(allowed: AllowList, name: str) -> AllowList:
    """Allow one key less.

    Raises:
        KeyFileError: It is not there.
    """
    if all(key.name != name for key in allowed.keys):
        known = ", ".join(key.name for key in allowed.keys) or "none"
        raise KeyFileError(f"there is no key {name!r}; there are: {known}")
    return AllowList(tuple(key for key in allowed.keys if key.name != name))


@dataclass(frozen=True, slots=True)
class ZapRequest:
    """What ZeroMQ asks about a connection that wants to be."""

    request_id: bytes
    domain: str
    mechanism: bytes
    credentials: tuple[bytes, ...]


def parse_zap(parts: list[bytes]) -> ZapRequest | None:
    """Read a request of ZeroMQ's own; None when it is of another version."""
    if len(parts) < 6 or parts[0] != b"1.0":
        return None
    return ZapRequest(parts[1], parts[2].decode(errors="replace"), parts[5], tuple(parts[6:]))


class CurveServer:
    """Protects the sockets of one ZeroMQ context. Belongs to the event loop."""

    def __init__(
        self, pair: KeyPair, allowed: Watched[AllowList], *, metrics: Metrics | None = None
    ) -> None:
        self._pair, self._allowed = pair, allowed
        self._metrics = metrics or Metrics()
        self._zap: zmq.asyncio.Socket | None = None
        self._listeners: dict[int, _Peer] = {}
        """Connections of the socket that publishes, by file descriptor."""
        self._next_warning_s = 0.0

    @property
    def public(self) -> str:
        """What clients must know of the daemon."""
        return self._pair.public

    def open(self, context: zmq.Context[Any]) -> None:
        """Bind the handler: before any protected socket of the context is bound."""
        shadow = zmq.asyncio.Context.shadow(context.underlying)
        self._zap = shadow.socket(zmq.REP)
        self._zap.bind(_ZAP)

    def protect(self, bound: zmq.Socket[Any] | zmq.asyncio.Socket, domain: Domain) -> None:
        """Encrypt a socket that will be bound, and open it to the keys of a domain only."""
        bound.set(zmq.CURVE_SERVER, 1)
        bound.set(zmq.CURVE_PUBLICKEY, self._pair.public.encode())
        bound.set(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        bound.set_string(zmq.ZAP_DOMAIN, domain)
        bound.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no handler: nobody, instead of everybody

    def admits(
        self, frame: zmq.Frame, bound: zmq.Socket[Any] | zmq.asyncio.Socket, domain: Domain
    ) -> bool:
        """Say whether the sender of a message may still send; else its connection is cut.

        Args:
            frame: The message's last part, received with `copy=False`.
            bound: Where it was received.
            domain: Of the socket.
        """
        peer = _Peer.of(frame, bound)
        if self._allowed.value.allows(peer.user, domain):
            return True
        self._cut(peer)
        return False

    def heard(self, subscription: zmq.Frame, bound: zmq.Socket[Any]) -> None:
        """Learn who listens: the frame of a subscription, received with `copy=False`."""
        peer = _Peer.of(subscription, bound)
        self._listeners[peer.descriptor] = peer

    def expel(self) -> None:
        """Cut the listeners whose key is not allowed any more."""
        for peer in list(self._listeners.values()):
            if not self._allowed.value.allows(peer.user, "subscribe"):
                del self._listeners[peer.descriptor]
                self._cut(peer)
            elif not peer.is_open():
                del self._listeners[peer.descriptor]

    def _cut(self, peer: _Peer) -> None:
        if peer.cut():
            self._metrics.connections_cut.labels(reason="key_removed").inc()
            logger.warning("bus connection cut, its key is not allowed any more: %s", peer.user)

    async def run(self) -> None:
        """Answer ZeroMQ's questions until cancelled."""
        assert self._zap is not None
        while True:
            await self._zap.send_multipart(self.answer(await self._zap.recv_multipart()))

    def close(self) -> None:
        """Unbind the handler."""
        if self._zap is not None:
            self._zap.close(linger=0)
            self._zap = None

    def answer(self, parts: list[bytes]) -> list[bytes]:
        """Decide about one connection."""
        request = parse_zap(parts)
        key = None
        if request is not None and request.mechanism == b"CURVE" and len(request.credentials) == 1:
            key = self._allowed.value.find(request.credentials[0], request.domain)
        request_id = b"" if request is None else request.request_id
        if key is not None:
            return [b"1.0", request_id, b"200", b"OK", user_of(key).encode(), b""]
        self._metrics.access_denied.labels(code="curve").inc()
        self._warn(request)
        return [b"1.0", request_id, b"400", b"no allowed key", b"", b""]

    def _warn(self, request: ZapRequest | None) -> None:
        now_s = time.monotonic()
        if now_s < self._next_warning_s:
            return
        self._next_warning_s = now_s + _WARN_INTERVAL_S
        raw = request.credentials[0] if request is not None and request.credentials else b""
        shown = z85.encode(raw).decode() if len(raw) == 32 else "none"
        domain = "-" if request is None else request.domain
        logger.warning("bus connection refused domain=%s public_key=%s", domain, shown)


@dataclass(frozen=True, slots=True)
class _Peer:
    """One connection of a protected socket.

    libzmq cannot close one; but it tells the file descriptor of a message, and notices when the
    socket behind that is shut down.
    """

    user: str
    descriptor: int
    endpoint: str
    """Of the bound socket: what has the same descriptor later may be no connection of it."""
    inode: int
    """Of the connection; tells it from a later one."""

    @classmethod
    def of(cls, frame: zmq.Frame, bound: zmq.Socket[Any] | zmq.asyncio.Socket) -> _Peer:
        """Whose message this is."""
        endpoint = bound.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        try:
            user, descriptor = str(frame.get("User-Id")), int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:  # nobody's
            return cls("", -1, endpoint, 0)
        return cls(user, descriptor, endpoint, _inode(descriptor))

    def is_open(self) -> bool:
        """Whether the connection is still there."""
        return self.inode != 0 and _inode(self.descriptor) == self.inode

    def cut(self) -> bool:
        """Shut the connection down; False when it is gone already."""
        if not self.is_open():
            return False
        try:
            # Of our own, so that it cannot become another's between the question and the deed.
            with socket.socket(fileno=os.dup(self.descriptor)) as own:
                if _inode(own.fileno()) != self.inode or not _is_of(own, self.endpoint):
                    return False
                own.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True


def _inode(descriptor: int) -> int:
    """Of an open socket; 0 when it is none."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def _is_of(connection: socket.socket, endpoint: str) -> bool:
    """Whether a connection was accepted at a ZeroMQ endpoint; by its port, where it has one."""
    name = connection.getsockname()
    here = str(name[1]) if isinstance(name, tuple) else str(name)
    return endpoint.endswith((f":{here}", f"ipc://{here}"))


def serve_curve(
    key: Path, allowed: Path | None, *, metrics: Metrics | None = None
) -> tuple[CurveServer, Watched[AllowList]]:
    """Read both files; without a list nobody may connect.

    Raises:
        FileRefused: One of them cannot be used.
    """
    paths = () if allowed is None else (allowed,)
    watched = Watched(paths, lambda: AllowList() if allowed is None else read_allowed(allowed))
    return CurveServer(read_pair(key), watched, metrics=metrics), watched
