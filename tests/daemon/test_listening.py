"""Sockets that systemd passes, and those in the file system."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from voiced.daemon.errors import AddressRefused, SocketInUse
from voiced.daemon.listening import bind_unix, describe, passed_sockets

FIRST_FD = 200
"""Where the tests put what is passed: 3 is in use here."""


def ours(count: int) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "a:b"}


@pytest.fixture
def passed() -> Iterator[list[socket.socket]]:
    """A TCP and a Unix socket that listen, duplicated to where systemd would put them."""
    originals = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    originals[1].bind("\0voiced-test-passed")
    originals[1].listen()
    for number, each in enumerate(originals):
        os.dup2(each.fileno(), FIRST_FD + number)
    yield originals
    for each in originals:
        each.close()


def test_passed_sockets_are_taken_once_and_hidden_from_children(
    passed: list[socket.socket],
) -> None:
    environment = ours(2) | {"PATH": "/bin"}
    taken = passed_sockets(environment, first_fd=FIRST_FD)
    assert [each.getsockname() for each in taken] == [each.getsockname() for each in passed]
    assert not any(each.get_inheritable() for each in taken)
    assert environment == {"PATH": "/bin"}
    assert passed_sockets(environment, first_fd=FIRST_FD) == ()
    assert describe(taken[0]) == f"127.0.0.1:{passed[0].getsockname()[1]}"
    for each in taken:
        each.close()


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "many"}],
)
def test_what_was_passed_to_another_process_is_not_taken(environment: dict[str, str]) -> None:
    assert passed_sockets(environment, first_fd=FIRST_FD) == ()


def test_a_descriptor_that_does_not_listen_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        os.dup2(datagrams.fileno(), FIRST_FD)
    with pytest.raises(AddressRefused, match="sock_dgram, expected a listening stream"):
        passed_sockets(ours(1), first_fd=FIRST_FD)
    os.close(FIRST_FD)
    with pytest.raises(AddressRefused, match=f"descriptor {FIRST_FD} is no socket"):
        passed_sockets(ours(1), first_fd=FIRST_FD)


def test_a_unix_socket_has_its_permissions_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "voiced.sock"
    bind_unix(path, 0o600).close()
    assert path.exists()
    with bind_unix(path, 0o640) as bound:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert describe(bound) == str(path)


def test_a_unix_socket_on_which_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "voiced.sock"
    with bind_unix(path, 0o600) as first:
        first.listen()
        with pytest.raises(SocketInUse, match=r"set another `server\.unix_socket`"):
            bind_unix(path, 0o600)
        assert path.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "exists and is no socket"), ("none/socket", "no such file"), ("x" * 200, "too long")],
)
def test_a_path_that_cannot_be_bound_is_named_with_the_setting(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(AddressRefused, match=rf"(?s){reason}.*`server\.unix_socket`"):
        bind_unix(tmp_path / name, 0o600)
    assert (tmp_path / "file").read_text() == "kept"
