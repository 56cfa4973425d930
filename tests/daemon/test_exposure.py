"""What may be listened on without protection: this machine."""

from __future__ import annotations

import logging
import socket

import pytest

from voiced.daemon import exposure
from voiced.daemon.config import ConfigError
from voiced.daemon.metrics import Metrics
from voiced.daemon.security import Security
from voiced.daemon.security_settings import CurveSettings, TlsSettings
from voiced.daemon.settings import BusSettings, ServerSettings, Settings


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("", False),
        ("192.168.1.5", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("eth0", False),
        ("no such host.invalid", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_which_addresses_are_of_this_machine(host: str, is_ours: bool) -> None:
    assert exposure.is_of_this_machine(host) is is_ours


@pytest.mark.parametrize(
    ("endpoint", "is_ours"),
    [
        ("tcp://127.0.0.1:8766", True),
        ("tcp://127.0.0.1:*", True),
        ("tcp://[::1]:8766", True),
        ("tcp://localhost:8766", True),
        ("ipc:///run/voiced/bus", True),
        ("tcp://*:8766", False),
        ("tcp://0.0.0.0:8766", False),
        ("tcp://192.168.1.5:8766", False),
        ("tcp://eth0:8766", False),
        ("epgm://224.0.0.1:5555", False),
    ],
)
def test_which_endpoints_are_of_this_machine(endpoint: str, is_ours: bool) -> None:
    assert exposure.is_local_endpoint(endpoint) is is_ours


def open_keys(settings: Settings) -> dict[str, str]:
    return {problem.key: problem.rule for problem in exposure.problems(settings)}


def test_by_default_nothing_is_open_to_other_machines() -> None:
    assert open_keys(Settings()) == {}


def test_each_open_address_is_named_with_what_it_lacks() -> None:
    found = open_keys(
        Settings(
            server=ServerSettings(host="0.0.0.0", tokens="tokens.json"),
            bus=BusSettings(endpoint="tcp://*:8766"),
        )
    )
    assert set(found) == {"server.host", "bus.endpoint"}
    assert "needs `server.tls.certificate`; use a loopback address" in found["server.host"]
    assert "needs `bus.curve.key`" in found["bus.endpoint"]
    bare = open_keys(Settings(server=ServerSettings(host="::")))
    assert "`server.tls.certificate` and `server.tokens`" in bare["server.host"]


def test_with_tls_tokens_and_curve_every_address_may_be_listened_on() -> None:
    settings = Settings(
        server=ServerSettings(
            host="0.0.0.0", tokens="tokens.json", tls=TlsSettings(certificate="chain.pem")
        ),
        bus=BusSettings(
            endpoint="tcp://*:8766", ingest="tcp://*:8767", curve=CurveSettings(key="daemon.key")
        ),
    )
    assert open_keys(settings) == {}


def test_a_daemon_that_would_be_open_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"server\.host = \"0\.0\.0\.0\": can be reached"):
        Security(Settings(server=ServerSettings(host="0.0.0.0")), Metrics())


def test_a_socket_that_is_passed_is_judged_by_where_it_is_bound() -> None:
    rule = r'passed socket = "0\.0\.0\.0": can be reached'
    with (
        socket.create_server(("0.0.0.0", 0)) as open_to_all,
        pytest.raises(ConfigError, match=rule),
    ):
        Security(Settings(), Metrics(), (open_to_all,))
    with socket.create_server(("127.0.0.1", 0)) as loopback, socket.socket(socket.AF_UNIX) as unix:
        unsafe_host = Settings(server=ServerSettings(host="0.0.0.0"))  # not used
        Security(unsafe_host, Metrics(), (loopback, unix))


def test_what_is_set_and_does_nothing_is_refused() -> None:
    settings = Settings(
        server=ServerSettings(tls=TlsSettings(key="key.pem")),
        bus=BusSettings(curve=CurveSettings(allowed="allowed.json")),
    )
    with pytest.raises(ConfigError) as caught:
        Security(settings, Metrics())
    assert [problem.key for problem in caught.value.problems] == [
        "server.tls.key",
        "bus.curve.allowed",
    ]


def test_the_override_lets_it_start_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(server=ServerSettings(host="0.0.0.0", insecure=True))
    with caplog.at_level(logging.WARNING):
        Security(settings, Metrics())
    assert 'insecure: server.host = "0.0.0.0": can be reached from other machines' in caplog.text
