"""What `voiced doctor` finds on machines that lack something."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from voiced.audio.errors import MicrophoneError, PortAudioMissing
from voiced.audio.sources.portaudio import InputDevice
from voiced.daemon.commands.doctor import counts, show
from voiced.daemon.doctor.examine import guarded
from voiced.daemon.doctor.finding import Finding, Level, fail, ok, warn
from voiced.daemon.doctor.machine import (
    check_clock,
    check_cpu,
    check_disk,
    check_memory,
    is_clock_synchronised,
)
from voiced.daemon.doctor.model import check_model, check_npu, check_runtime
from voiced.daemon.doctor.network import check_ports, find_holder
from voiced.daemon.doctor.sound import check_sound
from voiced.daemon.engine_settings import EngineSettings
from voiced.daemon.settings import (
    BusSettings,
    MicrophoneSettings,
    ServerSettings,
    Settings,
    VadSettings,
)

MIC = InputDevice(0, "USB Mic", "ALSA", 1, 48_000, True)
LIBRARY = SimpleNamespace(get_portaudio_version=lambda: (1246976, "PortAudio V19.7.0, revision x"))


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level.value for finding in findings]


# ---- machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "line", "level", "found"),
    [
        ("x86_64", "flags : fpu avx avx2 avx512_vnni", "ok", "avx512_vnni"),
        ("x86_64", "flags : fpu avx avx2", "ok", "no VNNI"),
        ("x86_64", "flags : fpu avx", "warn", "without AVX2"),
        ("aarch64", "Features : fp asimd asimddp i8mm", "ok", "dot product, i8mm"),
        ("aarch64", "Features : fp asimd", "warn", "without dot product"),
        ("riscv64", "isa : rv64", "warn", "riscv64"),
    ],
)
def test_what_the_cpu_can_do(
    tmp_path: Path, machine: str, line: str, level: str, found: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    (finding,) = check_cpu(1, proc=tmp_path, machine=machine)
    assert finding.level.value == level
    assert found in finding.found


def test_more_threads_than_cores_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    assert levels(check_cpu(4096, proc=tmp_path, machine="x86_64")) == ["ok", "warn"]


@pytest.mark.parametrize(("free_mb", "level"), [(500, "fail"), (700, "warn"), (8_000, "ok")])
def test_memory_is_compared_with_what_a_model_takes(
    tmp_path: Path, free_mb: int, level: str
) -> None:
    text = f"MemTotal: 16000000 kB\nMemAvailable: {free_mb * 1024} kB\n"
    (tmp_path / "meminfo").write_text(text)
    assert levels(check_memory(proc=tmp_path)) == [level]


def test_memory_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    assert levels(check_memory(proc=tmp_path)) == ["warn"]


@pytest.mark.parametrize(("free_mb", "level"), [(10, "fail"), (200, "warn"), (10_000, "ok")])
def test_the_room_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(
    tmp_path: Path, free_mb: int, level: str
) -> None:
    asked: list[Path] = []

    def free(path: Path) -> int:
        asked.append(path)
        return free_mb << 20

    assert levels(check_disk({"models": tmp_path / "a" / "b"}, free_bytes=free)) == [level]
    assert asked == [tmp_path]


def test_a_folder_that_is_closed_to_this_user_is_told(tmp_path: Path) -> None:
    def closed(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (finding,) = check_disk({"models": tmp_path}, free_bytes=closed)
    assert (finding.check, finding.level) == ("permissions", Level.FAIL)
    assert f"models: {tmp_path} is closed" in finding.found


def test_a_steady_synchronised_clock_is_well() -> None:
    clock = iter(range(10**9, 2 * 10**9, 1_000))
    findings = check_clock(
        is_synchronised=lambda: True, monotonic_ns=lambda: next(clock), reads=100
    )
    assert set(levels(findings)) <= {"ok", "warn"}  # the kernel's clock source is this machine's
    assert is_clock_synchronised() in (True, False, None)


def test_a_clock_of_1970_unsynchronised_and_running_backwards_is_all_told(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("jiffies\n")
    steps = iter([10**9, 2 * 10**9, 10**9])
    findings = check_clock(
        wall_s=lambda: 0.0,
        is_synchronised=lambda: False,
        monotonic_ns=lambda: next(steps),
        source=tmp_path / "source",
        reads=2,
    )
    told = [(finding.level.value, finding.found) for finding in findings]
    assert [level for level, _ in told] == ["warn", "warn", "warn", "fail"]
    assert [
        word in found
        for (_, found), word in zip(
            told, ("1970", "not synchronised", "jiffies", "backwards"), strict=True
        )
    ] == [True] * 4


def test_a_machine_that_stands_still_is_told_how_long() -> None:
    steps = iter([0, 1_000, 200_000_000])
    findings = list(check_clock(monotonic_ns=lambda: next(steps), reads=2))
    assert findings[-1].level is Level.WARN
    assert "stood still for 200 ms" in findings[-1].found


# ---- ports -------------------------------------------------------------------------------------


def settings_for(port: int, **server: str) -> Settings:
    return Settings(
        server=ServerSettings(port=port, **server),  # type: ignore[arg-type]
        bus=BusSettings(endpoint="tcp://127.0.0.1:*", ingest="tcp://127.0.0.1:0"),
    )


def test_a_port_is_free_ours_or_in_somebodys_hands() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (foreign,) = check_ports(settings_for(port), holder_of=lambda _: "nginx (pid 7)")
        (ours,) = check_ports(settings_for(port), holder_of=lambda _: "voiced (pid 8)")
        (hidden,) = check_ports(settings_for(port), holder_of=lambda _: None)
        assert find_holder(port) is not None
        assert f"(pid {os.getpid()})" in str(find_holder(port))
    (free,) = check_ports(settings_for(port))
    assert (foreign.level, "held by nginx (pid 7)" in foreign.found) == (Level.FAIL, True)
    assert "set another `server.port`" in str(foreign.next_step)
    assert (hidden.level, "is taken" in hidden.found) == (Level.WARN, True)
    assert (ours.level, free.level) == (Level.OK, Level.OK)


def test_an_address_of_elsewhere_and_a_missing_folder_are_failures(tmp_path: Path) -> None:
    wrong = settings_for(8765, host="203.0.113.1", unix_socket=str(tmp_path / "none" / "socket"))
    found = list(check_ports(wrong))
    assert [finding.level for finding in found] == [Level.FAIL, Level.FAIL]
    assert "cannot assign" in found[0].found
    assert "no folder" in found[1].found


# ---- sound -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("enabled", "expected"), [(False, ["ok"]), (True, ["fail"])])
def test_a_missing_library_matters_where_a_microphone_is_wanted(
    enabled: bool, expected: list[str]
) -> None:
    def missing() -> None:
        raise PortAudioMissing("not found")

    found = check_sound(MicrophoneSettings(enabled=enabled), library=missing)
    assert levels(found) == expected


@pytest.mark.parametrize(
    ("device", "devices", "last"),
    [
        (None, [MIC], "ok: the device that is used: USB Mic, 48000 Hz"),
        ("usb", [MIC], "ok: the device that is used: USB Mic, 48000 Hz"),
        ("head", [MIC], "fail: no input device 'head'; there are 'USB Mic'"),
        (None, [], "fail: no input device at all"),
    ],
)
def test_the_device_that_is_set_is_looked_for(
    tmp_path: Path, device: str | None, devices: list[InputDevice], last: str
) -> None:
    found = list(
        check_sound(
            MicrophoneSettings(enabled=True, device=device),
            library=lambda: LIBRARY,
            devices=lambda: devices,
            environment={},
            dev=tmp_path,
        )
    )
    level, _, text = last.partition(": ")
    assert found[0].found == "PortAudio V19.7.0"
    assert found[-1].level.value == level
    assert text.split(";")[0].split(" at all")[0] in found[-1].found


def test_a_sound_server_that_hangs_or_is_gone_is_told(tmp_path: Path) -> None:
    def hang() -> list[InputDevice]:
        raise MicrophoneError("the sound system does not answer within 5 s")

    found = list(
        check_sound(
            MicrophoneSettings(enabled=True),
            library=lambda: LIBRARY,
            devices=hang,
            environment={"PULSE_SERVER": f"unix:{tmp_path}/native"},
            dev=tmp_path,
        )
    )
    assert [finding.level.value for finding in found] == ["ok", "warn", "fail"]
    assert "no sound server at" in found[1].found


# ---- model, runtime, NPU -----------------------------------------------------------------------


def test_a_missing_model_names_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path))
    found = list(check_model(Settings()))
    assert [finding.level for finding in found] == [Level.FAIL, Level.FAIL]
    assert [finding.next_step for finding in found] == [
        "voiced model pull whisper-base",
        "voiced model pull silero-vad",
    ]


@pytest.mark.model
def test_a_built_model_is_read_to_its_last_byte(bundle: Path) -> None:
    found = list(check_model(Settings()))
    assert [finding.level for finding in found] == [Level.OK, Level.OK]
    assert "every byte as built" in found[0].found


def test_an_interpreter_that_cannot_be_run_is_a_failure(tmp_path: Path) -> None:
    lite = {"python": str(tmp_path / "python")}
    engine = EngineSettings(backend="mindspore_lite", mindspore_lite=lite)  # type: ignore[arg-type]
    assert levels(check_runtime(Settings(engine=engine))) == ["fail"]
    assert levels(check_runtime(Settings())) == ["ok"]


def test_a_card_matters_where_the_settings_name_one(tmp_path: Path) -> None:
    assert levels(check_npu(Settings(), dev=tmp_path)) == ["ok"]
    engine = EngineSettings(backend="mindspore_lite", mindspore_lite={"device": "ascend:1"})  # type: ignore[arg-type]
    settings = Settings(engine=engine)
    (tmp_path / "davinci0").touch()
    found = list(check_npu(settings, dev=tmp_path, driver=tmp_path / "none", environment={}))
    assert [finding.level.value for finding in found] == ["fail", "warn", "warn"]
    assert "there is davinci0" in found[0].found
    (tmp_path / "davinci1").touch()
    (tmp_path / "version.info").write_text("Version=24.1.0\n")
    environment = {"ASCEND_OPP_PATH": "/opp", "LD_LIBRARY_PATH": "/lib"}
    found = list(
        check_npu(settings, dev=tmp_path, driver=tmp_path / "version.info", environment=environment)
    )
    assert [finding.level.value for finding in found] == ["ok", "ok"]
    assert "driver 24.1.0, davinci0, davinci1" in found[0].found


# ---- the command -------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("cpu", "fine")
        raise LookupError("oops")

    first, second = guarded("cpu", broken)
    assert (first.level, second.level) == (Level.OK, Level.FAIL)
    assert "LookupError: oops" in second.found


def test_the_text_is_plain_has_every_next_step_and_a_sum() -> None:
    out = io.StringIO()
    findings = [ok("cpu", "two"), warn("cpu", "slow " * 40, "be patient"), fail("npu", "no", "buy")]
    assert show(findings, out) == findings
    lines = out.getvalue().splitlines()
    assert "\033" not in out.getvalue()
    assert max(map(len, lines)) <= 100
    assert lines[2:4] == ["  ok    cpu        two", lines[3]]
    assert lines[3].startswith("  warn             slow")
    assert "                   → be patient" in lines
    assert lines[-1] == "1 ok, 1 warning, 1 failure"
    assert counts(findings) == {"ok": 1, "warn": 1, "fail": 1}


@pytest.mark.parametrize(("text", "status"), [("", 0), ("[sever]\nport = 1\n", 1)])
def test_the_command_tells_everything_as_json_and_fails_where_something_does(
    tmp_path: Path, text: str, status: int
) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text(text + '[engine]\nmodel = "fake"\n[vad]\nkind = "webrtc"\n')
    ports = {"VOICED_SERVER_PORT": "0", "VOICED_BUS_ENDPOINT": "tcp://127.0.0.1:*"}
    ports["VOICED_BUS_INGEST"] = "tcp://127.0.0.1:0"
    done = subprocess.run(
        [sys.executable, "-m", "voiced.daemon.cli", "doctor", "--json", "--config", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**{k: v for k, v in os.environ.items() if k[:7] != "VOICED_"}, **ports},
    )
    document = json.loads(done.stdout)
    failed = [each["found"] for each in document["findings"] if each["level"] == "fail"]
    if status:
        assert "did you mean [server]?" in failed[0]
    elif failed:  # this machine's own faults, e.g. no memory left
        status = 1
    assert done.returncode == status
    assert document["counts"]["fail"] == len(failed)
    assert {each["check"] for each in document["findings"]} >= {
        *("config", "cpu", "memory", "disk", "clock", "model", "runtime", "npu", "audio")
    }
    assert all(
        (each["next_step"] is None) == (each["level"] == "ok") for each in document["findings"]
    )


def test_the_levels_of_settings_that_nothing_needs_are_not_warnings() -> None:
    settings = Settings(vad=VadSettings(kind="webrtc"))
    assert levels(check_npu(settings)) == ["ok"]
