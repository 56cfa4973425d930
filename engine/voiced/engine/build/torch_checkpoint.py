"""Reads what `torch.save` writes, without torch and without running what is in it.

The file is a zip archive of stored (not compressed) entries: `data.pkl`, a pickle that describes
objects, and `data/<key>`, one per storage with the raw numbers (torch 2.x,
torch/serialization.py and torch/_utils.py). A pickle is a program: it names functions to call. Here
it may name a handful, each replaced by one of ours; anything else is refused by its name. Tensors
are read when asked for, one at a time, so that memory holds one of them and not the file.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.errors import FetchError

MAX_PICKLE_BYTES = 64 * 1024 * 1024
"""The description of 1,300 tensors takes 0.2 MB."""

_STORAGES: dict[str, tuple[str, str]] = {
    "FloatStorage": ("<f4", "float32"),
    "HalfStorage": ("<f2", "float16"),
    "DoubleStorage": ("<f8", "float64"),
    "BFloat16Storage": ("<u2", "bfloat16"),
    "LongStorage": ("<i8", "int64"),
    "IntStorage": ("<i4", "int32"),
    "BoolStorage": ("|u1", "bool"),
}
"""Class of torch → (how numpy reads it, its name)."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE APPNOTE 4.3.7


class CheckpointError(FetchError):
    """A checkpoint that is damaged, or holds what it must not."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where the numbers of one tensor lie."""

    storage: str
    """Key of the storage's entry."""
    raw: str
    """The storage's type for numpy."""
    dtype: str
    """What it is called: bfloat16 is read as uint16."""
    offset: int
    """First number within the storage."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the numbers lie in the order of the axes."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def count(self) -> int:
        """Numbers from the first to the last, those in between counted."""
        if prod(self.shape) == 0:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    raw: str
    dtype: str
    count: int


class Checkpoint:
    """One open file; for use in a `with` statement."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its description, not its numbers.

        Raises:
            CheckpointError: It is none of torch's zip files, or names what is not allowed.
            OSError: It cannot be read.
        """
        self.path = path
        self._file = path.open("rb")
        try:
            self._places, pickled = self._read_archive()
            self.content = self._load(pickled)
            """What was saved: containers, `SimpleNamespace`s and `TensorInfo`s."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, info: TensorInfo) -> npt.NDArray[Any]:
        """Read one tensor into a new array; half precision and bfloat16 as float32.

        Raises:
            CheckpointError: The file ends before the tensor does.
        """
        start, _ = self._places[info.storage]
        raw = np.dtype(info.raw)
        flat = np.empty(info.count, raw)
        self._file.seek(start + info.offset * raw.itemsize)
        got = self._file.readinto(flat.view(np.uint8))  # type: ignore[arg-type]
        if got != flat.nbytes:
            raise self._bad(f"{got} of {flat.nbytes} bytes of data/{info.storage}", "all of them")
        if info.is_contiguous:
            array = flat.reshape(info.shape)
        else:
            steps = [step * raw.itemsize for step in info.stride]
            array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, info.shape, steps))
        if info.dtype == "bfloat16":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32) if info.dtype == "float16" else array

    def _read_archive(self) -> tuple[dict[str, tuple[int, int]], bytes]:
        """Find the storages: key → (first byte in the file, bytes); and the pickle."""
        try:
            archive = zipfile.ZipFile(self._file)
        except zipfile.BadZipFile:
            self._file.seek(0)
            if self._file.read(4) == b"PK\x03\x04":
                size = self.path.stat().st_size
                raise self._bad(
                    f"a zip file of {size} bytes without its end",
                    "a whole one",
                    "it was cut short: fetch it again",
                ) from None
            raise self._bad(
                "no zip file",
                "a checkpoint as torch 1.6 or later writes it",
                "an older one can be loaded and saved again with torch",
            ) from None
        entries = {entry.filename: entry for entry in archive.infolist()}
        descriptions = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(descriptions) != 1:
            raise self._bad(f"{len(descriptions)} entries <name>/data.pkl", "one")
        root = descriptions[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries:
            order = archive.read(f"{root}byteorder")
            if order != b"little":
                raise self._bad(f"byte order {order[:16]!r}", "little")
        if entries[descriptions[0]].file_size > MAX_PICKLE_BYTES:
            size = entries[descriptions[0]].file_size
            raise self._bad(f"a description of {size} bytes", f"at most {MAX_PICKLE_BYTES}")
        places = {}
        for name, entry in entries.items():
            if name.startswith(f"{root}data/"):
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise self._bad(f"{name} compressed", "stored entries, as torch writes them")
                places[name.removeprefix(f"{root}data/")] = (self._start(entry), entry.file_size)
        try:
            return places, archive.read(descriptions[0])
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._bad(f"a damaged {descriptions[0]} ({error})", "a whole one") from error

    def _start(self, entry: zipfile.ZipInfo) -> int:
        self._file.seek(entry.header_offset)
        raw = self._file.read(_LOCAL_HEADER.size)
        if len(raw) != _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise self._bad(f"no entry {entry.filename} where the archive says", "one")
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
        return int(entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)

    def _load(self, pickled: bytes) -> Any:
        try:
            return _Reader(self, pickled).load()
        except CheckpointError:
            raise
        # a damaged pickle raises whatever the opcode at that place happens to raise
        except Exception as error:
            raise self._bad(
                f"a damaged description ({type(error).__name__}: {error})", "a pickle of torch"
            ) from error

    def storage(self, kind: object, key: object, count: object) -> _Storage:
        """Check what the pickle says about a storage against the archive."""
        if not (isinstance(kind, _StorageKind) and isinstance(key, str) and type(count) is int):
            raise self._bad(f"a storage {kind!r} {key!r}", "type, key and size")
        raw, dtype = _STORAGES[kind.name]
        if key not in self._places:
            raise self._bad(f"no entry data/{key}", "one for every storage")
        have, needed = self._places[key][1], count * np.dtype(raw).itemsize
        if have != needed:
            raise self._bad(f"{have} bytes in data/{key}", f"{needed}")
        return _Storage(key, raw, dtype, count)

    def tensor(self, storage: object, offset: object, shape: object, stride: object) -> TensorInfo:
        """Check that a tensor lies within its storage."""
        if not isinstance(storage, _Storage):
            raise self._bad(f"a tensor over {type(storage).__name__}", "one over a storage")
        sizes = _whole_numbers(shape), _whole_numbers(stride)
        if sizes[0] is None or sizes[1] is None or len(sizes[0]) != len(sizes[1]):
            raise self._bad(f"a tensor of shape {shape!r}, strides {stride!r}", "whole numbers")
        if type(offset) is not int or offset < 0:
            raise self._bad(f"a tensor at {offset!r}", "a whole number")
        info = TensorInfo(storage.key, storage.raw, storage.dtype, offset, sizes[0], sizes[1])
        if offset + info.count > storage.count:
            raise self._bad(
                f"a tensor of {info.count} numbers from {offset} in data/{storage.key}",
                f"at most {storage.count}",
            )
        return info

    def refused(self, name: str) -> CheckpointError:
        """The error for a global that is not allowed."""
        return self._bad(
            f"code to run, {name}",
            "tensors, containers and argparse.Namespace only",
            "nothing of it was run; do not use this file",
        )

    def _bad(self, found: str, expected: str, next_step: str = "") -> CheckpointError:
        text = f"{self.path.name}: found {found}, expected {expected}"
        return CheckpointError(f"{text}; {next_step}" if next_step else text)


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class _StorageKind:
    name: str


class _Reader(pickle.Unpickler):
    """Understands the globals of a state dict and nothing else."""

    def __init__(self, owner: Checkpoint, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self._owner = owner

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for a global."""
        if module == "torch" and name in _STORAGES:
            return _StorageKind(name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("argparse", "Namespace"):
            return _Namespace
        raise self._owner.refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Storages stand outside of the pickle: ("storage", type, key, device, size)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise self._owner.refused(f"a persistent object {pid!r}"[:80])
        return self._owner.storage(pid[1], pid[2], pid[4])

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorInfo:
        return self._owner.tensor(storage, offset, shape, stride)


class _Namespace(SimpleNamespace):
    """Stands for `argparse.Namespace`."""


def _parameter(data: Any, *_: Any) -> Any:
    return data


class LazyTensors(Mapping[str, npt.NDArray[Any]]):
    """The tensors of an open checkpoint by name; each look-up reads from the file."""

    def __init__(self, checkpoint: Checkpoint, infos: Mapping[str, TensorInfo]) -> None:
        self.checkpoint = checkpoint
        self.infos = infos

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.checkpoint.read(self.infos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)
