"""The self-test: what it passes, what it notices, and what it says it did not run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.tiny_fireredasr import Tiny
from tests.engine.tiny_whisper import build_tiny_whisper

from voiced.bench import selftest as bench
from voiced.bench.selftest import NO_CARD, Plan, Status, card_memory, parse_usages
from voiced.daemon.commands import selftest as command
from voiced.engine.backends.base import Backend
from voiced.engine.backends.mindspore_lite import fake_api
from voiced.engine.backends.mindspore_lite.ascend import AscendBackend, AscendTensor
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.build.graph import Precision
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BackendFailed, BackendUnavailable, BundleError

NEEDS_CARD = {"fp16 drift", "device memory", "optimisations"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_tiny_whisper(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def converted(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    return command.rehearse(plain, folder, longest_s=6.0, say=lambda _: None)


@pytest.fixture(autouse=True)
def _fresh_card() -> Iterator[None]:
    fake_api.card.reset()
    yield
    fake_api.card.reset()


def fake() -> Backend:
    return AscendBackend("ascend:0", fake_api)


def results(
    bundle: Bundle, opened: Callable[[], Backend] = fake, **changes: object
) -> dict[str, bench.Check]:
    plan = Plan(bundle, opened, "fake:0", rounds=2, repeats=1, utterances=24, longest_s=6.0)
    checks = bench.run(replace(plan, **changes), lambda _: None)  # type: ignore[arg-type]
    return {check.name: check for check in checks}


def test_on_the_stand_in_all_passes_that_needs_no_card_and_the_rest_says_so(
    converted: Bundle,
) -> None:
    found = results(converted)
    for name in ("golden pair", "gears in turn", "against ONNX Runtime", "host and device"):
        assert found[name].status is Status.PASSED, found[name].text
    for name in NEEDS_CARD:
        assert (found[name].status, found[name].text) == (Status.NOT_RUN, NO_CARD)
    assert found["latency"].status is Status.NOT_RUN
    assert "nothing below is known of a card" in found["backend"].text
    assert fake_api.card.implicit_bytes == 0


def test_onnx_runtime_is_tested_too_but_not_against_itself(plain: Bundle) -> None:
    found = results(plain, OrtBackend, device="cpu")
    assert found["against ONNX Runtime"].status is Status.NOT_RUN
    assert found["latency"].status is Status.MEASURED
    assert found["gears in turn"].status is Status.PASSED
    assert {n for n, c in found.items() if c.text == NO_CARD} == NEEDS_CARD


def test_numbers_that_drift_between_visits_are_noticed(
    converted: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = AscendTensor.read
    visits = iter(range(10**6))

    def drifting(self: AscendTensor) -> np.ndarray:
        return read(self) * np.float32(1 + 1e-4 * next(visits))

    monkeypatch.setattr(AscendTensor, "read", drifting)
    found = results(converted)
    assert found["gears in turn"].status is Status.FAILED
    assert "largest relative difference" in found["gears in turn"].text


def test_caches_that_cross_are_noticed(converted: Bundle) -> None:
    def staged() -> Backend:
        return AscendBackend("ascend:0", fake_api, device_buffers=False)

    found = results(converted, staged)
    assert found["host and device"].status is Status.FAILED
    assert "prefill moves more" in found["host and device"].text or (
        "a step moves" in found["host and device"].text
    )


def test_memory_that_grows_is_noticed(converted: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    size = iter(range(100, 10**6, 20))
    monkeypatch.setattr(bench, "_resident_bytes", lambda: next(size))
    found = results(converted)["host memory"]
    assert (found.status, found.figures["growth"]) == (Status.FAILED, 0.2)


def test_a_bundle_without_artifacts_fails_at_load(plain: Bundle) -> None:
    found = results(plain)
    assert list(found) == ["load"]
    assert found["load"].status is Status.FAILED


def test_one_check_that_fails_does_not_end_the_others(
    converted: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise BackendFailed("wrong numbers")

    monkeypatch.setattr(bench.golden, "check", broken)
    found = results(converted)
    assert (found["golden pair"].status, found["golden pair"].text) == (
        Status.FAILED, "wrong numbers"
    )  # fmt: skip
    assert found["gears in turn"].status is Status.PASSED


def test_memory_of_a_card_is_read_from_what_npu_smi_prints() -> None:
    text = "NPU ID : 0\nHBM Capacity(MB) : 32768\nHBM Usage Rate(%) : 25\nDDR Usage Rate(%) : 90\n"
    assert parse_usages(text) == 8192 * 1024**2
    assert parse_usages("DDR Capacity(MB): 1000\nDDR Usage Rate(%): 10\n") == 100 * 1024**2
    with pytest.raises(BackendFailed, match="no capacity and usage rate"):
        parse_usages("Health : OK\n")


def test_a_missing_npu_smi_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendFailed, match="npu-smi info -t usages -i 0 failed"):
        card_memory(0)


def test_the_command_writes_both_reports_and_returns_what_failed(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"model": str(plain.root), "rounds": 2, "repeats": 1, "utterances": 8,
                 "longest_s": 2.0}  # fmt: skip
    out = tmp_path / "report"
    status = command.selftest(device="fake:0", out=out, **arguments)  # type: ignore[arg-type]
    assert status == 0
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| fp16 drift | not run | no Ascend device |" in text
    assert "Bytes between host and device" in text
    body = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert body["bench"] == "selftest"
    assert {check["name"] for check in body["result"]} >= NEEDS_CARD
    assert "voiced selftest: bundle tiny@" in capsys.readouterr().out


def test_the_stand_in_wants_portable_graphs(plain: Bundle, tmp_path: Path) -> None:
    model = {k: v for k, v in plain.manifest.model.items() if k != "resident"}
    host = replace(plain, manifest=_with_model(plain, model))
    with pytest.raises(BundleError, match="expected portable graphs"):
        command.rehearse(host, tmp_path / "x", 2.0, lambda _: None)


def test_a_comparison_without_a_name_is_refused(plain: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match="expected NAME=BUNDLE"):
        command._variants(plain, "ascend:0", ["fused"])


def _with_model(bundle: Bundle, model: dict[str, object]) -> object:
    import msgspec

    return msgspec.structs.replace(bundle.manifest, model=model)


@pytest.mark.parametrize(
    ("version", "form"),
    [
        (2, Form(resident=True)),
        (1, Form(Precision.FP16, resident=True, stacked=True)),
        (2, Form(Precision.FP16, resident=True, stacked=True)),
    ],
    ids=("fp32, a cache per layer", "fp16, stacked", "fp16, stacked, with a ctc head"),
)
def test_fireredasr_passes_on_the_stand_in(tmp_path: Path, version: int, form: Form) -> None:
    tiny = Tiny(2, version, end_bias=5.0)
    plain = Bundle.open(build_bundle(tmp_path / "fire", tiny, form, gears_s=(1, 2, 4)))
    bundle = command.rehearse(plain, tmp_path / "converted", longest_s=6.0, say=lambda _: None)
    found = results(bundle, beam=3)
    for name in ("golden pair", "gears in turn", "against ONNX Runtime", "host and device"):
        assert found[name].status is Status.PASSED, found[name].text
    assert {name for name, check in found.items() if check.text == NO_CARD} == NEEDS_CARD
    assert fake_api.card.implicit_bytes == 0


def test_fireredasr_is_tested_with_host_caches_too(tmp_path: Path) -> None:
    bundle = Bundle.open(build_bundle(tmp_path / "fire", Tiny(2, 2, end_bias=5.0), gears_s=(1, 2)))
    found = results(bundle, OrtBackend, device="cpu", beam=3)
    assert {check.status for check in found.values()} <= {
        *(Status.PASSED, Status.MEASURED, Status.NOT_RUN)
    }
    assert found["golden pair"].status is Status.PASSED
    assert found["gears in turn"].status is Status.PASSED
