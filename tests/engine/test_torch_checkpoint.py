"""Checkpoints of torch are read without torch, and nothing in them is run."""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from tests.engine.torch_writer import Raw, save

from voiced.engine.build.torch_checkpoint import Checkpoint, CheckpointError, LazyTensors

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def saved(path: Path, content: object) -> Path:
    save(path, content)
    return path


def test_containers_numbers_and_tensors_come_back(tmp_path: Path) -> None:
    tensors = OrderedDict(a=MATRIX, same=MATRIX, half=np.array([1.5, -2], np.float16))
    settings = argparse.Namespace(width=64, rate=0.1, name="词", yes=True, no=None)
    path = saved(tmp_path / "m", {"args": settings, "state": tensors, "pair": (1, -2)})
    with Checkpoint(path) as checkpoint:
        content = checkpoint.content
        assert vars(content["args"]) == vars(settings)
        assert content["pair"] == (1, -2)
        read = LazyTensors(checkpoint, content["state"])
        assert list(read) == ["a", "same", "half"]
        np.testing.assert_array_equal(read["a"], MATRIX)
        np.testing.assert_array_equal(read["same"], MATRIX)
        assert content["state"]["a"].storage == content["state"]["same"].storage
        assert read["half"].dtype == np.float32
        np.testing.assert_array_equal(read["half"], [1.5, -2])


def tensor_code(kind: str, key: str, count: int, offset: int, shape: str, stride: str) -> Raw:
    """Opcodes of a tensor over any storage; shape and stride as opcodes of tuples."""
    code = (
        f"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n{kind}\nV{key}\nVcpu\nI{count}\n"
    )
    return Raw(
        f"{code}tQI{offset}\n({shape}t({stride}tI00\nccollections\nOrderedDict\n)RtR".encode()
    )


def test_a_view_is_read_in_its_own_order(tmp_path: Path) -> None:
    turned = tensor_code("FloatStorage", "0", 12, 1, "I3\nI2\n", "I1\nI4\n")
    path = saved(tmp_path / "m", {"whole": MATRIX, "turned": turned})
    with Checkpoint(path) as checkpoint:
        found = checkpoint.read(checkpoint.content["turned"])
    np.testing.assert_array_equal(found, MATRIX.T[1:, :2])


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    bits = np.frombuffer(np.array([1.5, -3.25], np.float32).tobytes(), np.uint16)[1::2]
    held = np.ascontiguousarray(bits).view(np.float16)  # two bytes each, whatever they mean
    path = saved(
        tmp_path / "m",
        {"held": held, "b": tensor_code("BFloat16Storage", "0", 2, 0, "I2\n", "I1\n")},
    )
    with Checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read(checkpoint.content["b"]), [1.5, -3.25])


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"cposix\nsystem\n(Vtouch ruined\ntR", "posix.system"),
        (b"cbuiltins\neval\n(V1\ntR", "builtins.eval"),
        (b"cbuiltins\ngetattr\n(Va\nVb\ntR", "builtins.getattr"),
        (b"ctorch.storage\n_load_from_bytes\n(C\x01xtR", "torch.storage._load_from_bytes"),
        (b"cargparse\nArgumentParser\n)R", "argparse.ArgumentParser"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R", "numpy.core.multiarray._reconstruct"),
    ],
)
def test_code_in_the_file_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "m", {"args": Raw(code)})
    with pytest.raises(CheckpointError, match=f"code to run, {name}, expected tensors"):
        Checkpoint(path)
    assert [each.name for each in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (("FloatStorage", "0", 13, 0, "I2\n", "I1\n"), "48 bytes in data/0, expected 52"),
        (("FloatStorage", "7", 12, 0, "I2\n", "I1\n"), "no entry data/7"),
        (("FloatStorage", "0", 12, 11, "I2\n", "I1\n"), "2 numbers from 11 in data/0"),
        (("FloatStorage", "0", 12, 0, "I2\n", "I99\n"), "100 numbers from 0 in data/0"),
        (("FloatStorage", "0", 12, 0, "I-2\n", "I1\n"), "a tensor of shape (-2,)"),
        (("FloatStorage", "0", 12, -1, "I2\n", "I1\n"), "a tensor at -1"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    tmp_path: Path, tensor: tuple[str, str, int, int, str, str], found: str
) -> None:
    path = saved(tmp_path / "m", {"whole": MATRIX, "bad": tensor_code(*tensor)})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert found in str(caught.value)


def test_a_file_cut_short_says_so(tmp_path: Path) -> None:
    whole = saved(tmp_path / "m", {"whole": MATRIX}).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"without its end, .*; it was cut short"):
        Checkpoint(cut)


def test_a_file_that_is_no_zip_says_what_torch_writes(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"\x80\x02" + bytes(300))
    with pytest.raises(CheckpointError, match=r"no zip file, expected a checkpoint as torch 1\.6"):
        Checkpoint(path)


def test_compressed_or_foreign_entries_are_refused(tmp_path: Path) -> None:
    plain = saved(tmp_path / "m", {"whole": MATRIX})
    for name, method, changed, found in (
        ("packed", zipfile.ZIP_DEFLATED, {}, "data/0 compressed"),
        ("big", zipfile.ZIP_STORED, {"model/byteorder": b"big"}, "byte order b'big'"),
        ("bad", zipfile.ZIP_STORED, {"model/data.pkl": b"\x80\x02}("}, "a damaged description"),
    ):
        target = tmp_path / name
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(target, "w", method) as copy:
            for entry in source.namelist():
                copy.writestr(entry, changed.get(entry, source.read(entry)))
        with pytest.raises(CheckpointError) as caught:
            Checkpoint(target)
        assert found in str(caught.value)
