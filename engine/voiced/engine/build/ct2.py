"""Reads the weights of a CTranslate2 `model.bin`, version 6.

Layout, little-endian (CTranslate2's `model_spec.py`, `Model.save`): u32 version; string
specification; u32 revision; u32 count; for each variable: string name, u8 rank, u32[rank] dims,
u8 data type, u32 bytes, data; u32 count of aliases; for each: string alias, string variable.
A string is a u16 length, its final NUL included, and that many bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.errors import FetchError

VERSION = 6

_DTYPES = tuple(np.dtype(code) for code in ("<f4", "i1", "<i2", "<i4", "<f2"))
"""By data type number."""

_MAX_RANK = 8

Tensor = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Ct2Model:
    """The content of one `model.bin`."""

    specification: str
    """Kind of network, e.g. `WhisperSpec`."""
    revision: int
    tensors: dict[str, Tensor]
    """Variables by name: read-only views over the file, not aligned to their item size."""
    aliases: dict[str, str]
    """Second names of variables, e.g. of an output projection tied to the embeddings."""


def read_model(paths: Sequence[Path]) -> Ct2Model:
    """Read a model from one file, or from its parts in order.

    A single file is mapped; parts are joined in memory. The tensors keep it alive.

    Raises:
        FetchError: A file cannot be read, or is truncated, or is no model of version 6.
    """
    label = paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"
    try:
        data = _map(paths[0]) if len(paths) == 1 else _join(paths)
    except OSError as error:
        raise FetchError(f"cannot read weights {label}: {error.strerror}") from error
    return parse_model(data, label=label)


def parse_model(data: bytes | bytearray | mmap.mmap, *, label: str) -> Ct2Model:
    """Parse a whole `model.bin`; `label` names it in errors.

    Raises:
        FetchError: The bytes are truncated, too many, or no model of version 6.
    """
    reader = _Reader(data, label)
    version = reader.u32("version")
    if version != VERSION:
        raise FetchError(f"weights {label}: found version {version}, expected {VERSION}")
    specification = reader.string("specification")
    revision = reader.u32("revision")
    tensors: dict[str, Tensor] = {}
    for _ in range(reader.u32("variable count")):
        name = reader.string("variable name")
        if name in tensors:
            raise FetchError(f"weights {label}: found {name!r} twice, expected unique names")
        tensors[name] = reader.tensor(name)
    aliases: dict[str, str] = {}
    for _ in range(reader.u32("alias count")):
        alias = reader.string("alias")
        aliases[alias] = reader.string(f"variable of alias {alias!r}")
        if aliases[alias] not in tensors:
            raise FetchError(
                f"weights {label}: alias {alias!r} stands for {aliases[alias]!r}, "
                "expected a variable of the file"
            )
    reader.expect_end()
    return Ct2Model(specification, revision, tensors, aliases)


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash name and data of the fp16 tensors in the order of their names.

    Packagers write different settings beside the same weights; this hash sees the weights alone.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if tensors[name].dtype == np.float16:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _map(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        # An empty file cannot be mapped.
        if file.seek(0, 2) == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _join(paths: Sequence[Path]) -> bytearray:
    joined = bytearray(sum(path.stat().st_size for path in paths))
    start = 0
    with memoryview(joined) as view:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(view[start:]):
                    start += count
    return joined


class _Reader:
    """A position in the file; every step checks that the bytes are there."""

    def __init__(self, data: bytes | bytearray | mmap.mmap, label: str) -> None:
        self._data, self._label, self._at = data, label, 0

    def _take(self, count: int, what: str) -> int:
        """Move over `count` bytes and return where they start."""
        start = self._at
        if start + count > len(self._data):
            raise FetchError(
                f"weights {self._label} end in {what}: found {len(self._data)} bytes, "
                f"expected at least {start + count}"
            )
        self._at += count
        return start

    def u8(self, what: str) -> int:
        return self._data[self._take(1, what)]

    def u16(self, what: str) -> int:
        (value,) = struct.unpack_from("<H", self._data, self._take(2, what))
        return int(value)

    def u32(self, what: str) -> int:
        (value,) = struct.unpack_from("<I", self._data, self._take(4, what))
        return int(value)

    def string(self, what: str) -> str:
        length = self.u16(what)
        start = self._take(length, what)
        raw = bytes(self._data[start : start + length])
        try:
            if raw.find(b"\0") == length - 1 > 0:
                return raw[:-1].decode()
        except UnicodeDecodeError:
            pass  # refused below, like any other bytes that are no name
        raise FetchError(f"weights {self._label}: {what} is no text, found {raw[:32]!r}")

    def tensor(self, name: str) -> Tensor:
        rank = self.u8(f"rank of {name!r}")
        if rank > _MAX_RANK:
            raise FetchError(f"weights {self._label}: {name!r} has rank {rank}, expected 0 to 8")
        shape = [self.u32(f"shape of {name!r}") for _ in range(rank)]
        kind = self.u8(f"data type of {name!r}")
        if kind >= len(_DTYPES):
            raise FetchError(f"weights {self._label}: {name!r} has data type {kind}, expected 0-4")
        size = self.u32(f"size of {name!r}")
        count = 1
        for dim in shape:
            count *= dim
        if size != count * _DTYPES[kind].itemsize:
            raise FetchError(
                f"weights {self._label}: {name!r} has {size} bytes, expected {_DTYPES[kind]}{shape}"
            )
        start = self._take(size, f"data of {name!r}")
        array: Tensor = np.frombuffer(self._data, _DTYPES[kind], count, start).reshape(shape)
        array.flags.writeable = False
        return array

    def expect_end(self) -> None:
        if self._at != len(self._data):
            raise FetchError(
                f"weights {self._label}: found {len(self._data)} bytes, expected {self._at}"
            )
