"""`docs/protocol.md` says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from voiced.audio.errors import AudioFormatError, VadUnavailable
from voiced.daemon import errors as daemon_errors
from voiced.daemon.bus import MAX_INGEST_BYTES, Bus
from voiced.daemon.metrics import FAILED_CODES
from voiced.daemon.recovery import MAX_ATTEMPTS
from voiced.daemon.replay import MAX_REQUEST_BYTES
from voiced.daemon.settings import Settings
from voiced.daemon.stream_client import CLOSE_CODES
from voiced.daemon.stream_protocol import MAX_TEXT_BYTES, Code
from voiced.daemon.tokens import TokenExpired, TokenRefused
from voiced.daemon.wire import (
    Alternative,
    AudioParams,
    ClientMessage,
    Message,
    Replay,
    ReplayAnswer,
    ServerMessage,
    VadParams,
    WordInfo,
    decode_answer,
    decode_client,
    decode_replay,
    decode_server,
    encode,
)
from voiced.engine.errors import EngineError

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
CLIENT = {struct.__struct_config__.tag: struct for struct in get_args(ClientMessage)}
SERVER = {struct.__struct_config__.tag: struct for struct in get_args(ServerMessage)}
REPLAY: dict[str, Any] = {
    struct.__struct_config__.tag: struct for struct in (Replay, *get_args(ReplayAnswer))
}
PARTS = {
    "start.audio": AudioParams,
    "start.vad": VadParams,
    "final.words": WordInfo,
    "final.n_best": Alternative,
}
COMMON = {field.name for field in msgspec.structs.fields(Message)}

NOT_ON_THE_WIRE = {"bundle", "fetch", "backend_unavailable", "text_policy"}
"""Codes of errors that keep the daemon from starting."""


def sections() -> dict[str, str]:
    """Return the text under each heading, by the heading's words."""
    parts = re.split(r"^#{2,3} (.+)$", PAGE, flags=re.MULTILINE)
    return {title.strip("`"): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = sections()


def rows(text: str) -> dict[str, list[str]]:
    """Return a table's rows by their first cell."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


@pytest.mark.parametrize("name", [*CLIENT, *SERVER, *PARTS, *REPLAY])
def test_the_fields_of_the_page_are_those_of_the_code(name: str) -> None:
    struct = (CLIENT | SERVER | PARTS | REPLAY)[name]
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    written = rows(SECTIONS[name])
    if name in SERVER:
        fields = {key: field for key, field in fields.items() if key not in COMMON}
    if name in SERVER or name in REPLAY:
        # These are always sent, whatever the code's default.
        optional = {key for key, field in fields.items() if field.default is not msgspec.NODEFAULT}
    else:
        optional = {key for key, field in fields.items() if not field.required}
    assert list(written) == list(fields) if name not in CLIENT else set(written) == set(fields)
    assert {key for key, row in written.items() if "optional" in row[0]} == optional


def test_the_common_fields_of_the_page_are_those_of_the_code() -> None:
    assert set(rows(SECTIONS["Messages from the daemon"])) == COMMON


@pytest.mark.parametrize("name", REPLAY)
def test_the_example_of_each_replay_message_is_valid_and_complete(name: str) -> None:
    (text,) = re.findall(r"```json\n(.+?)\n```", SECTIONS[name], flags=re.DOTALL)
    plain: dict[str, Any] = json.loads(text)
    decode = decode_replay if name == "replay" else decode_answer
    assert json.loads(encode(decode(text.encode()))) == plain
    assert set(plain) == {"type", *rows(SECTIONS[name])}


@pytest.mark.parametrize("name", [*CLIENT, *SERVER])
def test_the_example_of_each_message_is_valid_and_complete(name: str) -> None:
    (text,) = re.findall(r"```json\n(.+?)\n```", SECTIONS[name], flags=re.DOTALL)
    plain: dict[str, Any] = json.loads(text)
    assert plain["type"] == name
    message = decode_client(text) if name in CLIENT else decode_server(text)
    assert json.loads(encode(message)) == plain
    assert set(plain) >= set(rows(SECTIONS[name]))


def test_every_json_block_of_the_page_belongs_to_a_message() -> None:
    assert PAGE.count("```json") == len(CLIENT) + len(SERVER) + len(REPLAY)


def subclasses(base: type) -> set[Any]:
    direct: set[Any] = set(base.__subclasses__())
    return direct.union(*(subclasses(sub) for sub in direct))


def test_the_codes_of_the_page_are_those_of_the_code() -> None:
    refused = subclasses(daemon_errors.StreamRefused)
    ours: set[Any] = {*refused, daemon_errors.StreamBroken, daemon_errors.SlowClient}
    ours |= {TokenRefused, TokenExpired}
    spool: set[Any] = {
        daemon_errors.SpoolDamaged, daemon_errors.SpoolExpired, daemon_errors.SpoolGivenUp
    }  # fmt: skip
    audio: set[Any] = {AudioFormatError, VadUnavailable}
    engine = {
        error
        for error in subclasses(EngineError)
        if error.__module__ == EngineError.__module__ and error.code not in NOT_ON_THE_WIRE
    }
    known = {error.code for error in ours | spool | audio | engine} | {code.value for code in Code}
    assert set(rows(SECTIONS["Codes"])) == known
    of_segments = {code for code, cells in rows(SECTIONS["Codes"]).items() if "failed" in cells[0]}
    assert of_segments == set(FAILED_CODES), "an alert would miss the first of a kind"


def test_the_close_codes_of_the_page_are_those_of_the_code() -> None:
    written = rows(SECTIONS["Close codes"])
    assert set(written) == {"1000", "1001", "1007", "1008", "1009", "1011", "1013"}
    for error, close in CLOSE_CODES.items():
        if error != "shutting_down":
            assert f"`{error}`" in written[str(int(close))][0]


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    settings = Settings()
    assert f"ws://127.0.0.1:{settings.server.port}/v1/stream" in PAGE
    assert f"{settings.limits.max_backlog_s:g} s of its speech (`limits.max_backlog_s`)" in PAGE
    assert f"above {MAX_TEXT_BYTES} characters" in PAGE
    assert f"At most {MAX_INGEST_BYTES} bytes" in PAGE
    bus = Bus()
    for endpoint in (bus.endpoint, bus.ingest_endpoint):
        assert f"`{endpoint}`" in PAGE
    assert (bus.endpoint, bus.ingest_endpoint) == (settings.bus.endpoint, settings.bus.ingest)
    assert f"default `{settings.bus.replay}`" in PAGE
    assert f"a `replay` of at most {MAX_REQUEST_BYTES} bytes" in PAGE
    assert f"{MAX_ATTEMPTS} runs of the daemon" in PAGE
