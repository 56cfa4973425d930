"""`voiced keys`: what it writes, prints and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from voiced.daemon import curve, tokens
from voiced.daemon.commands import keys
from voiced.daemon.config import ConfigError
from voiced.daemon.guarded import FileRefused
from voiced.daemon.security_settings import CurveSettings


def test_a_token_is_printed_once_and_listed_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.json"
    keys.token_add("car", scope="stream,subscribe", expires="90d", file=path)
    shown = capsys.readouterr()
    text = shown.out.strip()
    assert re.fullmatch(r"vk_[\w-]{43}", text)
    assert text not in shown.err
    assert tokens.read(path).check(text, 0).scopes == {"stream", "subscribe"}
    keys.token_add("ops", scope="admin", expires="never", file=path)
    capsys.readouterr()
    keys.token_list(path)
    listed = capsys.readouterr().out
    assert re.search(
        r"^car +stream,subscribe +expires \d{4}-\d\d-\d\d \d\d:\d\d UTC$", listed, re.M
    )
    assert re.search(r"^ops +admin +never expires$", listed, re.M)
    assert text not in listed
    keys.token_revoke("car", path)
    assert [token.name for token in tokens.read(path).tokens] == ["ops"]


def test_a_key_is_allowed_for_what_it_is_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, allowed = tmp_path / "car.key", tmp_path / "allowed.json"
    keys.curve_new(secret)
    public = capsys.readouterr().out.strip()
    assert curve.read_pair(secret).public == public
    keys.curve_allow("car", public, use="subscribe,ingest", file=allowed)
    keys.curve_list(allowed)
    assert public in capsys.readouterr().out
    assert curve.read_allowed(allowed).keys[0].domains == ("subscribe", "ingest")
    with pytest.raises(curve.KeyFileError, match=r"'car' .* is allowed already"):
        keys.curve_allow("bus", public, use="subscribe", file=allowed)
    for name, key, use in (("a b", "x" * 40, "ingest"), ("a", "x", "ingest"), ("a", "x" * 40, "")):
        with pytest.raises(curve.KeyFileError, match="no such key can be allowed"):
            keys.curve_allow(name, key, use=use, file=allowed)
    keys.curve_remove("car", allowed)
    assert curve.read_allowed(allowed).keys == ()
    with pytest.raises(curve.KeyFileError, match="there is no key 'car'; there are: none"):
        keys.curve_remove("car", allowed)


def test_without_a_file_the_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("VOICED_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"server\.tokens: is not set"):
        keys.token_list(None)
    monkeypatch.setenv("VOICED_SERVER_TOKENS", str(tmp_path / "none.json"))
    with pytest.raises(FileRefused, match=r"none\.json: cannot be read"):
        keys.token_list(None)


def test_a_client_of_a_closed_bus_needs_its_key_and_the_daemons(tmp_path: Path) -> None:
    assert keys.client_keys(CurveSettings()) is None
    path = tmp_path / "car.key"
    pair = curve.new_pair()
    curve.write_pair(path, pair)
    with pytest.raises(ConfigError, match=r"bus\.curve\.server_key"):
        keys.client_keys(CurveSettings(client_key=str(path)))
    found = keys.client_keys(CurveSettings(client_key=str(path), server_key=pair.public))
    assert found is not None
    assert (found.public, found.server) == (pair.public, pair.public)


def test_a_clients_token_is_read_from_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("vk_x\n")
    path.chmod(0o600)
    assert keys.read_token(path) == "vk_x"
    path.chmod(0o644)
    with pytest.raises(FileRefused, match="has mode 644"):
        keys.read_token(path)
