"""The command line as a process: exit status, one clear line on stderr, plain output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voiced.daemon.exit_status import UNAVAILABLE, USAGE, exit_status


def voiced(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICED_")}
    return subprocess.run(
        [sys.executable, "-m", "voiced.daemon.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **environment},
    )


def test_help_lists_every_command() -> None:
    result = voiced("--help")
    assert result.returncode == 0
    for command in (
        *("run", "transcribe", "stream", "listen", "devices", "demo", "model", "plugins"),
        *("bench", "config", "version"),
    ):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("group", ["model", "plugins", "bench", "config"])
def test_every_group_has_help(group: str) -> None:
    result = voiced(group, "--help")
    assert result.returncode == 0
    assert "Commands:" in result.stdout


def test_version_is_one_line() -> None:
    result = voiced("version")
    assert result.returncode == 0
    assert result.stdout.startswith("voiced 0.")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [("frobnicate",), ("run", "--frobnicate"), ("transcribe", "--format", "loud", "a.wav")],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    result = voiced(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_a_wrong_configuration_exits_with_2_and_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text("[server]\nport = 70000\nprot = 1\n", encoding="utf-8")
    result = voiced("config", "check", "--config", str(file), VOICED_ENGINE_BEAM="x")
    assert result.returncode == 2
    assert result.stderr.startswith("voiced: 3 problems in the configuration\n")
    assert "did you mean server.port?" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_reports_problems_of_its_flags() -> None:
    result = voiced("run", "--port", "70000", "--set", "engine.beams=1")
    assert result.returncode == 2
    assert "--port: server.port = 70000: must be less than or equal to 65535" in result.stderr
    assert "--set: engine.beams" in result.stderr


def test_config_check_warns_about_unknown_variables(tmp_path: Path) -> None:
    result = voiced("config", "check", VOICED_SERVER_PROT="1", XDG_CONFIG_HOME=str(tmp_path))
    assert result.returncode == 0
    assert result.stdout.startswith("configuration is valid")
    assert "did you mean VOICED_SERVER_PORT?" in result.stderr


def test_config_check_finds_what_a_daemon_would_not_start_with(tmp_path: Path) -> None:
    file, hotwords = tmp_path / "voiced.toml", tmp_path / "hotwords.txt"
    hotwords.write_text("Merneptah\n...\n")
    file.write_text(
        f'[server]\nhost = "0.0.0.0"\ntls = {{ key = "key.pem" }}\n'
        f'[engine]\nhotwords_file = "{hotwords}"\n'
    )
    result = voiced("config", "check", "--config", str(file), VOICED_BUS_ENDPOINT="tcp://*:8766")
    assert result.returncode == 2
    head, *problems = result.stderr.splitlines()
    assert head == "voiced: 4 problems in the configuration"
    starts = [
        f'{file}: server.host = "0.0.0.0": can be reached from other machines',
        'VOICED_BUS_ENDPOINT: bus.endpoint = "tcp://*:8766": can be reached from other',
        f"{file}: server.tls.key = key.pem: does nothing without",
        f'{hotwords}:2: hotword = "...": must hold a letter or a digit',
    ]
    for problem, start in zip(problems, starts, strict=True):
        assert problem.strip().startswith(start)
    result = voiced(
        "config", "check", VOICED_SERVER_HOST="0.0.0.0", VOICED_SERVER_INSECURE="true",
        XDG_CONFIG_HOME=str(tmp_path),
    )  # fmt: skip
    assert result.returncode == 0
    assert "voiced: warning: insecure: server.host" in result.stderr


def test_config_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text("[engine]\nbeam = 2\n", encoding="utf-8")
    result = voiced("config", "show", "--json", "--config", str(file), VOICED_VAD_END_MS="700")
    shown = json.loads(result.stdout)
    assert shown["engine.beam"] == {"value": 2, "origin": str(file)}
    assert shown["vad.end_ms"] == {"value": 700, "origin": "VOICED_VAD_END_MS"}
    assert shown["server.port"] == {"value": 8765, "origin": "default"}
    plain = voiced("config", "show", "--config", str(file)).stdout
    assert f"# {file}\n" in plain


def test_a_missing_model_exits_with_3_and_the_next_step(tmp_path: Path) -> None:
    result = voiced("run", "--set", "vad.kind=webrtc", VOICED_MODEL_DIR=str(tmp_path))
    assert result.returncode == 3
    assert "voiced model pull" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = voiced("--debug", "config", "check", "--config", str(tmp_path / "none.toml"))
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "cannot be read: no such file" in result.stderr


def test_a_client_without_a_daemon_exits_with_3(tmp_path: Path) -> None:
    wav = tmp_path / "silence.wav"
    write_silence(wav)
    result = voiced("stream", str(wav), "--url", "ws://127.0.0.1:9/v1/stream")
    assert result.returncode == 3
    assert result.stderr.startswith("voiced: cannot connect to ws://127.0.0.1:9/v1/stream")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("model", "path"), 3, "voiced model pull whisper-base"),
        (("model", "verify", "parrot"), 3, "voiced model list"),
        (("model", "build", "--from", "/nonexistent"), 3, "no folder /nonexistent"),
        (("model", "build", "parrot"), 2, "expected one of: whisper-base, "),
        (("transcribe", "--no-vad", "a.wav"), 3, "voiced model pull whisper-base"),
        (("transcribe", "--no-vad", "--model", "fake", "/nonexistent/a.wav"), 1, "no such file"),
        (("stream", "/nonexistent/a.wav"), 1, "no such file"),
        (("run", "--config", "/nonexistent/a.toml"), 2, "no such file"),
        (("listen", "--bus", "rubbish"), 2, "'rubbish' cannot be used"),
        (("listen", "--type", "rubbish"), 2, "known: ready, "),
        (("plugins", "run", "jsonl", "--set", "rubbish"), 2, "expected key=value"),
    ],
)
def test_every_command_keeps_to_one_convention_of_exit_codes(
    arguments: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    result = voiced(*arguments, VOICED_MODEL_DIR=str(tmp_path))
    assert result.returncode == status
    assert result.stderr.startswith("voiced: ")
    assert says in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "address", "setting"),
    [
        ("--host", "203.0.113.1", "server.host"),
        ("--bus", "tcp://203.0.113.1:8766", "bus.endpoint"),
        ("--ingest", "ipc:///nonexistent/ingest", "bus.ingest"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_a_setting_to_change(
    flag: str, address: str, setting: str
) -> None:
    free = ("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0")
    fake = ("--model", "fake", "--set", "vad.kind=webrtc")
    result = voiced("run", *fake, *free, flag, address, "--set", "server.insecure=true")
    assert result.returncode == 2
    *_, message = result.stderr.splitlines()
    assert message.startswith(f"voiced: cannot listen on {address}")
    assert f"set `{setting}` to an address of this machine" in message


def test_an_address_file_that_cannot_be_written_is_named() -> None:
    free = ("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0")
    fake = ("--model", "fake", "--set", "vad.kind=webrtc")
    result = voiced("run", *fake, *free, "--address-file", "/nonexistent/addresses")
    assert result.returncode == 1
    assert "voiced: /nonexistent/addresses: no such file or directory\n" in result.stderr


@pytest.mark.parametrize("arguments", [("config", "show"), ("model", "list"), ("version",)])
def test_output_whose_reader_is_gone_ends_every_command_with_141(
    arguments: tuple[str, ...],
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "voiced.daemon.cli", *arguments]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_disk_is_an_error(unbuffered: str) -> None:
    command = [sys.executable, "-m", "voiced.daemon.cli", "config", "show"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment
        )
    assert (done.returncode, done.stderr) == (1, b"voiced: no space left on device\n")


def test_exit_status_follows_the_codes() -> None:
    assert exit_status("bundle") == 3
    assert exit_status("config") == 2
    assert exit_status("address") == 2
    for code in ("device_not_found", "device_busy", "portaudio_missing", "fetch", "port_in_use"):
        assert exit_status(code) == 3
    assert exit_status("internal") == 1
    assert not UNAVAILABLE & USAGE


def write_silence(path: Path) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3_200))
