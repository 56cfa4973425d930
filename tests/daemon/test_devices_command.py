"""`voiced devices` on a terminal, in a pipe, and without a device."""

from __future__ import annotations

import json
import sys

import pytest
from tests.audio.fake_sounddevice import FakeSoundDevice

from voiced.audio.errors import DeviceNotFound
from voiced.daemon.commands.devices import devices


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    fake = FakeSoundDevice("USB Mic", "pulse")
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


def test_a_pipe_gets_one_line_per_device(
    system: FakeSoundDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devices(as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0\tUSB Mic\tALSA\t2\t48000\tdefault",
        "1\tpulse\tALSA\t2\t48000\t",
    ]


def test_a_terminal_gets_a_table(
    system: FakeSoundDevice, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert devices(as_json=False) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert "Sound system" in heading
    assert "USB Mic" in first
    assert "default" in first
    assert "default" not in second


def test_json_has_every_field(system: FakeSoundDevice, capsys: pytest.CaptureFixture[str]) -> None:
    assert devices(as_json=True) == 0
    first, _ = json.loads(capsys.readouterr().out)
    assert first == {
        "index": 0,
        "name": "USB Mic",
        "host_api": "ALSA",
        "channels": 2,
        "rate_hz": 48_000,
        "is_default": True,
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_without_a_device_nothing_is_printed_and_the_reason_is_raised(
    system: FakeSoundDevice, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    system.names.clear()
    with pytest.raises(DeviceNotFound, match="no input device"):
        devices(as_json=as_json)
    assert capsys.readouterr().out == ""
