"""Bearer tokens: what is kept, what passes, what ends."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon import tokens
from voiced.daemon.guarded import FileRefused
from voiced.daemon.tokens import TokenBook, TokenExpired, TokenFileError, TokenRefused
from voiced.daemon.watched import Watched


def made(
    name: str = "car", scopes: tuple[str, ...] = ("stream",), expires_s: int | None = None
) -> tuple[TokenBook, str]:
    return tokens.new(TokenBook(), name, scopes, now_s=1_000, expires_s=expires_s)


def test_a_token_is_kept_as_a_hash_and_grants_its_scopes(tmp_path: Path) -> None:
    book, text = made(scopes=("stream", "admin", "stream"))
    path = tmp_path / "tokens.json"
    tokens.write(path, book)
    assert text not in path.read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    grant = tokens.read(path).check(text, 2_000)
    assert (grant.name, grant.scopes) == ("car", {"stream", "admin"})


def test_two_tokens_are_never_alike_and_have_256_bits() -> None:
    texts = {made()[1] for _ in range(100)}
    assert len(texts) == 100
    assert {len(text.removeprefix("vk_")) for text in texts} == {43}


def test_an_expired_and_an_unknown_token_are_refused_apart() -> None:
    book, text = made(expires_s=2_000)
    assert book.check(text, 1_999.9).expires_s == 2_000
    with pytest.raises(TokenExpired, match="'car' has expired"):
        book.check(text, 2_000)
    with pytest.raises(TokenRefused, match="not known here"):
        book.check(made()[1], 1_000)


@given(st.text())
def test_no_other_text_is_ever_a_token(text: str) -> None:
    book, token = made()
    for wrong in (text, token + text or "x", text + "x" + token):
        if wrong != token:
            with pytest.raises(TokenRefused) as caught:
                book.check(wrong, 1_000)
            assert token not in str(caught.value)


def test_a_grant_ends_with_its_token_and_does_not_pass_to_one_of_the_same_name() -> None:
    book, text = made(expires_s=2_000)
    grant = book.check(text, 1_000)
    assert book.still_grants(grant, 1_999)
    assert not book.still_grants(grant, 2_000)
    assert not tokens.without(book, "car").still_grants(grant, 1_000)
    assert not made()[0].still_grants(grant, 1_000)


def test_a_token_is_compared_with_all_of_them_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every known hash is compared, whole, wherever the token stands."""
    book, text = made("first")
    for name in ("second", "third"):
        book, _ = tokens.new(book, name, ("stream",), now_s=0, expires_s=None)
    compared = []

    def compare(known: bytes, found: bytes) -> bool:
        compared.append((len(known), len(found)))
        return known == found

    monkeypatch.setattr("voiced.daemon.tokens.hmac.compare_digest", compare)
    book.check(text, 0)
    assert compared == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("never", None),
        ("30m", 2_800),
        ("12h", 44_200),
        ("90d", 7_777_000),
        ("2w", 1_210_600),
        ("1970-01-02", 86_400),
        ("1970-01-01T01:00:00+00:00", 3_600),
    ],
)
def test_an_end_is_a_time_from_now_or_a_date(text: str, found: int | None) -> None:
    assert tokens.expiry_s(text, 1_000) == found


@pytest.mark.parametrize("text", ["", "soon", "90", "-1d", "1970-01-01", "9999999d", "31.1.2027"])
def test_an_end_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TokenFileError, match="--expires"):
        tokens.expiry_s(text, 1_000)


@pytest.mark.parametrize(
    ("name", "scopes", "reason"),
    [
        ("car", ("stream",), "there is a token 'car' already"),
        ("a b", ("stream",), "no such token can be made"),
        ("bus", ("root",), "scopes are stream, subscribe, admin"),
        ("bus", (), "no such token can be made"),
    ],
)
def test_a_token_that_cannot_be_is_not_made(
    name: str, scopes: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(TokenFileError, match=reason):
        tokens.new(made()[0], name, scopes, now_s=0, expires_s=None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"version":2,"tokens":[]}',
        b'{"version":1,"tokens":[{"name":"a","hash":"00","scopes":["stream"],"created_s":0}]}',
        b'{"version":1,"tokens":[' + b"[" * 2_000,
    ],
)
def test_a_file_that_is_none_is_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(data)
    with pytest.raises(FileRefused, match=r"tokens\.json: is no file of tokens"):
        tokens.read(path)


def test_a_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens.write(path, made()[0])
    path.chmod(0o666)
    with pytest.raises(FileRefused, match="has mode 666, expected at most 644"):
        tokens.read(path)


def test_a_changed_file_is_read_again_and_a_damaged_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first, first_text = made()
    tokens.write(path, first)
    watched = Watched((path,), lambda: tokens.read(path))
    assert not watched.refresh()
    second, second_text = tokens.new(first, "two", ("stream",), now_s=0, expires_s=None)
    tokens.write(path, second)
    assert watched.refresh()
    assert watched.value.check(second_text, 0).name == "two"
    path.write_text("half a fi")
    assert not watched.refresh()
    assert watched.value.check(first_text, 0).name == "car"
    path.unlink()
    assert not watched.refresh()
    tokens.write(path, first)
    assert watched.refresh()
    with pytest.raises(TokenRefused):
        watched.value.check(second_text, 0)


def test_a_rewritten_file_keeps_the_mode_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    book, _ = made()
    tokens.write(path, book)
    path.chmod(0o640)
    tokens.write(path, tokens.without(book, "car"))
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens.json"]
