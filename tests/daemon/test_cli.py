"""The command line as a process: exit status, one clear line on stderr, plain output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voiced.daemon import cli


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


def test_exit_status_follows_the_codes() -> None:
    assert cli.exit_status("bundle") == 3
    assert cli.exit_status("config") == 2
    assert cli.exit_status("internal") == 1
    assert not cli.UNAVAILABLE & cli.USAGE


def write_silence(path: Path) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3_200))
