"""Writes a torch checkpoint without torch: just enough of its zip format to be read by torch."""

from __future__ import annotations

import argparse
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


@dataclass
class Raw:
    """Opcodes to put in as they are: what an attacker would write."""

    code: bytes


@dataclass
class Pickled:
    """A pickle in the making, and the arrays that it refers to."""

    code: bytearray = field(default_factory=bytearray)
    arrays: list[np.ndarray] = field(default_factory=list)
    keys: dict[int, int] = field(default_factory=dict)

    def add(self, value: Any) -> None:
        """Append the opcodes of a value (Lib/pickletools.py, protocol 2)."""
        code = self.code
        if isinstance(value, Raw):
            code += value.code
        elif value is None:
            code += b"N"
        elif isinstance(value, bool):
            code += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            code += b"J" + struct.pack("<i", value)
        elif isinstance(value, float):
            code += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            raw = value.encode()
            code += b"X" + struct.pack("<I", len(raw)) + raw
        elif isinstance(value, tuple):
            code += b"("
            for item in value:
                self.add(item)
            code += b"t"
        elif isinstance(value, OrderedDict):
            code += b"ccollections\nOrderedDict\n)R"
            self._items(value)
            code += b"}"  # as a state dict, which carries its `_metadata`
            self._items({"_metadata": {}})
            code += b"b"
        elif isinstance(value, Mapping):
            code += b"}"
            self._items(value)
        elif isinstance(value, argparse.Namespace):
            code += b"cargparse\nNamespace\n)\x81"
            self.add(vars(value))
            code += b"b"
        elif isinstance(value, np.ndarray):
            self._tensor(value)
        else:
            raise TypeError(type(value))

    def _items(self, items: Mapping[str, Any]) -> None:
        self.code += b"("
        for name, item in items.items():
            self.add(name)
            self.add(item)
        self.code += b"u"

    def _tensor(self, array: np.ndarray) -> None:
        key = self.keys.setdefault(id(array), len(self.arrays))
        if key == len(self.arrays):
            self.arrays.append(array)
        self.code += b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        self.code += f"ctorch\n{STORAGES[array.dtype.name]}\n".encode()
        self.add(str(key))
        self.add("cpu")
        self.add(array.size)
        self.code += b"tQ"
        self.add(0)
        self.add(array.shape)
        self.add(tuple(stride // array.itemsize for stride in array.strides))
        self.code += b"\x89ccollections\nOrderedDict\n)RtR"


def save(path: Path, content: Any) -> None:
    """Write what `torch.save(content, path)` would, as far as this goes."""
    pickled = Pickled()
    pickled.code += b"\x80\x02"
    pickled.add(content)
    pickled.code += b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: bytes) -> None:
            # a fixed time: the same content gives the same file
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)

        put("data.pkl", bytes(pickled.code))
        put("byteorder", b"little")
        for key, array in enumerate(pickled.arrays):
            put(f"data/{key}", array.tobytes())
        put("version", b"3\n")
