"""Settings: precedence, strictness, and problems that name the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.addresses import connectable, stream_url
from voiced.daemon.config import KEYS, ConfigError, Loaded, load, parse_assignment, show, value_of
from voiced.daemon.engine_settings import engine_options
from voiced.daemon.settings import Settings

NOWHERE = Path("/nonexistent/voiced.toml")


def load_text(tmp_path: Path, text: str, **environment: str) -> Loaded:
    file = tmp_path / "voiced.toml"
    file.write_text(text, encoding="utf-8")
    return load(file=file, environment=environment)


def problems_of(tmp_path: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, **environment)
    return [str(problem) for problem in caught.value.problems]


def test_without_any_source_every_value_is_the_default() -> None:
    loaded = load(environment={"HOME": "/nonexistent"}, system_file=NOWHERE)
    assert loaded.settings == Settings()
    assert set(loaded.origins) == set(KEYS)
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.file is None


def test_flags_go_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text("[server]\nport = 1\nmax_streams = 2\n[engine]\nbeam = 3\n", encoding="utf-8")
    loaded = load(
        file=file,
        environment={"VOICED_SERVER_PORT": "4", "VOICED_SERVER_MAX_STREAMS": "5"},
        flags={"server.port": ("--port", 6)},
    )
    assert loaded.settings.server.port == 6
    assert loaded.settings.server.max_streams == 5
    assert loaded.settings.engine.beam == 3
    assert loaded.origins["server.port"] == "--port"
    assert loaded.origins["server.max_streams"] == "VOICED_SERVER_MAX_STREAMS"
    assert loaded.origins["engine.beam"] == str(file)
    assert loaded.origins["engine.threads"] == "default"


def test_the_file_is_the_named_one_then_the_systems_then_the_users(tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("flag", "variable", "system", "home/voiced/voiced"), start=1):
        files[name] = tmp_path / f"{name}.toml"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(f"[engine]\nbeam = {number}\n", encoding="utf-8")
    user = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    named = {**user, "VOICED_CONFIG": str(files["variable"])}

    def beam(file: Path | None, environment: dict[str, str], system: Path) -> int:
        return load(file=file, environment=environment, system_file=system).settings.engine.beam

    assert beam(files["flag"], named, files["system"]) == 1
    assert beam(None, named, files["system"]) == 2
    assert beam(None, user, files["system"]) == 3
    assert beam(None, user, NOWHERE) == 4


def test_every_problem_of_every_source_is_reported_at_once(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """
        [sever]
        port = 1
        [server]
        port = 70000
        prot = 1
        [engine]
        languages = ["EN"]
        """,
        VOICED_ENGINE_THREADS="many",
    )
    file = tmp_path / "voiced.toml"
    assert set(found) == {
        f"{file}: [sever]: unknown section; did you mean [server]?",
        f"{file}: server.prot = 1: unknown key; did you mean server.port?",
        f"{file}: server.port = 70000: must be less than or equal to 65535",
        f"{file}: engine.languages.0 = \"EN\": must match pattern '^[a-z]{{2,3}}$'",
        'VOICED_ENGINE_THREADS: engine.threads = "many": must be a valid integer',
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nend_ms = 1", "did you mean vad.end_ms?"),
        ("port = 1", "did you mean server.port?"),
        ("server = 1", "must be a table: write [server] and its keys below"),
        ("[server]\nport = true", "must be a valid integer"),
        ('[server]\nport = "1"', "must be a valid integer"),
        ("[microphone]\nenabled = 1", "must be a valid boolean"),
        ("[vad]\nkind = 'loud'", "must be 'cascade', 'silero' or 'webrtc'"),
        ("[bus]\nendpoint = 'localhost'", "must match pattern"),
        ("[microphone]\nstream = '-'", "must match pattern"),
        ("[bus]\nendpoint = 'ipc:///a'\ningest = 'ipc:///a'", "must differ from bus.endpoint"),
        ("[engine]\nlanguages = []", "at least 1 item"),
        ("[server\nport = 1", "is not TOML: expected ']'"),
        ("[server]\nport = \n", "(at line 2, column 8)"),
    ],
)
def test_a_problem_says_what_is_expected(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"{tmp_path / 'voiced.toml'}: ")
    assert expected in problem


def test_a_named_file_that_is_missing_or_no_text_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        load(file=tmp_path / "none.toml", environment={})
    (tmp_path / "latin1.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match="must be UTF-8 text; byte 2 is not"):
        load(file=tmp_path / "latin1.toml", environment={})


def test_text_of_the_environment_is_read_as_the_keys_type(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        '[engine]\nlanguage = "en"\n',
        VOICED_ENGINE_LANGUAGES="en, fr",
        VOICED_ENGINE_LANGUAGE="",
        VOICED_MICROPHONE_ENABLED="yes",
        VOICED_MICROPHONE_DEVICE="3",
        VOICED_LIMITS_DRAIN_S="2.5",
    ).settings
    assert settings.engine.languages == ("en", "fr")
    assert settings.engine.language is None
    assert settings.microphone.enabled is True
    assert settings.microphone.device == "3"
    assert settings.limits.drain_s == 2.5


def test_an_empty_text_in_the_file_means_none_where_none_is_a_value(tmp_path: Path) -> None:
    assert load_text(tmp_path, '[engine]\nlanguage = ""').settings.engine.language is None
    assert "at least 1 character" in problems_of(tmp_path, '[engine]\nmodel = ""')[0]


def test_unknown_variables_are_warned_about_and_foreign_ones_are_not(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, "", VOICED_ENGINE_BEAMS="3", VOICED_MODEL_DIR="/x", VOICE="1")
    (warning,) = loaded.warnings
    assert str(warning) == (
        "environment: VOICED_ENGINE_BEAMS: unknown, ignored; did you mean VOICED_ENGINE_BEAM?"
    )


def test_the_options_of_plugins_are_left_to_the_plugins(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, '[plugins.jsonl]\npath = "x"\n')
    assert set(loaded.origins.values()) == {"default"}


def test_an_unknown_flag_is_reported_with_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"--set: server\.prt.*did you mean server\.port"):
        load(environment={}, flags={"server.prt": ("--set", "1")}, system_file=NOWHERE)


def test_an_assignment_needs_a_key_and_a_value() -> None:
    assert parse_assignment("engine.model = a=b") == ("engine.model", "a=b")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_assignment("engine.model")


def test_two_free_ports_may_be_asked_for_with_the_same_endpoint(tmp_path: Path) -> None:
    text = '[bus]\nendpoint = "tcp://127.0.0.1:0"\ningest = "tcp://127.0.0.1:0"\n'
    assert load_text(tmp_path, text).settings.bus.ingest == "tcp://127.0.0.1:0"


@given(st.sampled_from(sorted(KEYS)))
def test_a_default_given_as_text_is_the_default(name: str) -> None:
    default = value_of(Settings(), name)
    if isinstance(default, tuple):
        text = ",".join(default)
    else:
        text = "" if default is None else str(default).lower()
    loaded = load(environment={KEYS[name].variable: text}, system_file=NOWHERE)
    assert value_of(loaded.settings, name) == default
    assert loaded.origins[name] == KEYS[name].variable


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_assignment_gives_settings_or_a_config_error(name: str, value: str) -> None:
    try:
        loaded = load(environment={}, flags={name: ("--set", value)}, system_file=NOWHERE)
    except ConfigError:
        return
    assert name in KEYS
    assert loaded.origins[name] == "--set"


def test_values_are_shown_as_toml_writes_them() -> None:
    assert show(True) == "true"
    assert show('a"b\\') == '"a\\"b\\\\"'
    assert show(("en", "zh")) == '["en", "zh"]'
    assert show(None) == "none"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "ws://127.0.0.1:8765/v1/stream"),
        ("0.0.0.0", "ws://127.0.0.1:8765/v1/stream"),
        ("::1", "ws://[::1]:8765/v1/stream"),
    ],
)
def test_a_client_connects_to_loopback_where_the_server_listens_everywhere(
    host: str, url: str
) -> None:
    server = Settings().server.model_copy(update={"host": host})
    assert stream_url(server) == url
    assert connectable("tcp://*:8766") == "tcp://127.0.0.1:8766"
    assert connectable("ipc:///run/voiced/bus") == "ipc:///run/voiced/bus"


def test_a_section_inside_a_section_is_read_from_every_source(tmp_path: Path) -> None:
    text = '[engine]\nbeam = 3\n[engine.mindspore_lite]\npython = "/opt/p37"\n'
    loaded = load_text(tmp_path, text, VOICED_ENGINE_MINDSPORE_LITE_DEVICE="ascend:1")
    assert loaded.settings.engine.mindspore_lite.python == "/opt/p37"
    assert value_of(loaded.settings, "engine.mindspore_lite.device") == "ascend:1"
    assert loaded.origins["engine.mindspore_lite.python"].endswith("voiced.toml")
    options = {"mindspore_lite.python": "/opt/p37", "mindspore_lite.device": "ascend:1"}
    assert engine_options(loaded.settings.engine, "mindspore_lite") == options
    assert engine_options(loaded.settings.engine, "onnxruntime") == {}


def test_only_what_is_set_of_a_model_family_reaches_the_engine(tmp_path: Path) -> None:
    text = '[engine.fireredasr]\nspaces = false\ntext_steps = ["itn", "dots"]\neos_penalty = 0.9\n'
    assert engine_options(load_text(tmp_path, text).settings.engine, "onnxruntime") == {
        "fireredasr.spaces": "0",
        "fireredasr.text_steps": "itn,dots",
        "fireredasr.eos_penalty": "0.9",
    }
    assert engine_options(load_text(tmp_path, "").settings.engine, "onnxruntime") == {}


def test_a_problem_in_a_section_inside_a_section_names_the_whole_key(tmp_path: Path) -> None:
    text = '[engine.mindspore_lite]\ndevice = "gpu"\npyhton = "p"\n'
    found = problems_of(tmp_path, text)
    assert any("engine.mindspore_lite.pyhton" in p and "mindspore_lite.python?" in p for p in found)
    found = problems_of(tmp_path, text.replace("pyhton", "python"))
    assert any('engine.mindspore_lite.device = "gpu": must match' in p for p in found)
