"""CTranslate2 files: what was written is read; what is damaged is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from voiced.engine.build.ct2 import content_sha256, parse_model, read_model
from voiced.engine.errors import FetchError

CODES = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def model_bytes(
    tensors: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6
) -> bytes:
    out = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        out += string(name) + struct.pack("<B", array.ndim)
        out += struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", CODES[array.dtype.str], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    for alias, name in (aliases or {}).items():
        out += string(alias) + string(name)
    return out


TENSORS = {
    "decoder/weight": np.arange(6, dtype="<f2").reshape(2, 3),
    "encoder/bias": np.ones(4, "<f4"),
    "encoder/heads": np.array(8, "<i2"),
}
WHOLE = model_bytes(TENSORS, {"projection": "decoder/weight"})

arrays = hnp.arrays(
    st.sampled_from(sorted(CODES)).map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
models = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    arrays,
    max_size=4,
)


@given(models)
def test_what_was_written_is_read(tensors: dict[str, np.ndarray]) -> None:
    read = parse_model(model_bytes(tensors), label="m").tensors
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
        assert not read[name].flags.writeable


def test_head_and_aliases_are_kept() -> None:
    model = parse_model(WHOLE, label="m")
    assert (model.specification, model.revision) == ("WhisperSpec", 3)
    assert model.aliases == {"projection": "decoder/weight"}


@given(st.integers(0, len(WHOLE) - 1))
def test_any_truncation_is_refused(size: int) -> None:
    with pytest.raises(FetchError, match=f"weights m end in .*found {size} bytes"):
        parse_model(WHOLE[:size], label="m")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_crash(noise: bytes) -> None:
    with pytest.raises(FetchError):
        parse_model(b"\6\0\0\0" + noise + b"\xff" * 8, label="m")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE + b"\0", "found .* bytes, expected"),
        (model_bytes(TENSORS, version=5), "found version 5, expected 6"),
        (model_bytes({}, {"a": "nobody"}), "alias 'a' stands for 'nobody'"),
        (WHOLE.replace(b"encoder/heads", b"encoder/\xff\xfe\xfd\xfc\xfb"), "is no text"),
        (WHOLE.replace(b"encoder/heads", b"encoder/h\0ads"), "is no text"),
        (WHOLE.replace(struct.pack("<BI", 0, 16), struct.pack("<BI", 9, 16)), "has data type 9"),
        (WHOLE.replace(struct.pack("<BI", 0, 16), struct.pack("<BI", 0, 12)), "has 12 bytes"),
        (WHOLE.replace(b"heads\0\0", b"heads\0\x20"), "has rank 32"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        parse_model(data, label="m")


def test_a_name_may_not_come_twice() -> None:
    one = model_bytes({"ab": np.ones(1, "<f4"), "cd": np.ones(1, "<f4")})
    with pytest.raises(FetchError, match="found 'ab' twice"):
        parse_model(one.replace(b"cd\0", b"ab\0"), label="m")


def test_parts_are_joined_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"model.bin.part{number}" for number in (1, 2, 3)]
    for path, content in zip(paths, (WHOLE[:40], b"", WHOLE[40:]), strict=True):
        path.write_bytes(content)
    whole = tmp_path / "model.bin"
    whole.write_bytes(WHOLE)
    joined, mapped = read_model(paths), read_model([whole])
    assert content_sha256(joined.tensors) == content_sha256(mapped.tensors)
    with pytest.raises(FetchError, match=r"model\.bin\.part1 to model\.bin\.part2 end in"):
        read_model(paths[:2])


def test_files_that_are_empty_or_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FetchError, match=r"model\.bin end in version: found 0 bytes"):
        read_model([tmp_path / "model.bin"])
    with pytest.raises(FetchError, match=r"cannot read weights none\.bin: No such file"):
        read_model([tmp_path / "none.bin"])


def test_the_content_hash_sees_only_names_and_data_of_half_precision() -> None:
    digest = content_sha256(TENSORS)
    reordered = dict(reversed(TENSORS.items()))
    assert content_sha256({**reordered, "extra": np.zeros(3, "<f4")}) == digest
    assert content_sha256({**TENSORS, "decoder/weight": TENSORS["decoder/weight"] + 1}) != digest
    assert content_sha256({"renamed": TENSORS["decoder/weight"]}) != digest
    # sha256 of b"a" and the two half-precision ones, computed apart with sha256sum
    assert content_sha256({"a": np.ones(2, "<f2")}) == (
        "c0b06e7fd7213aa6bc7b45828bc4742360f9ec62c769df241c3b5d31acf4da79"
    )
