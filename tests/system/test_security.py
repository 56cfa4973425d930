"""A daemon that other machines may reach: TLS, tokens and CURVE, through the command line."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import wave
from pathlib import Path

import trustme
from tests.system.running_daemon import DEADLINE_S, FAKE, launch, noise, silence

from voiced.daemon import curve
from voiced.daemon.commands import keys


def voiced(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voiced.daemon.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env={"XDG_CONFIG_HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )


def recording(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(silence(0.3) + noise(0.8) + silence(0.9))
    return path


def test_a_daemon_open_to_the_network_serves_those_with_keys_and_nobody_else(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    chain, authority_file = tmp_path / "chain.pem", tmp_path / "authority.pem"
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(
        str(chain)
    )
    chain.chmod(0o600)
    authority.cert_pem.write_to_path(str(authority_file))

    tokens, allowed = tmp_path / "tokens.json", tmp_path / "allowed.json"
    added = voiced("keys", "token", "add", "car", "--file", tokens, folder=tmp_path)
    assert added.returncode == 0, added.stderr
    token = added.stdout.strip()
    token_file = tmp_path / "token"
    token_file.write_text(token)
    token_file.chmod(0o600)
    server_key, client_key = tmp_path / "daemon.key", tmp_path / "screen.key"
    server_pair, client_pair = curve.new_pair(), curve.new_pair()
    curve.write_pair(server_key, server_pair)
    curve.write_pair(client_key, client_pair)
    keys.curve_allow("screen", client_pair.public, use="subscribe", file=allowed)

    daemon = launch(
        tmp_path,
        *FAKE,
        *("--host", "0.0.0.0", "--bus", "tcp://0.0.0.0:*", "--ingest", "tcp://0.0.0.0:0"),
        *("--set", f"server.tls.certificate={chain}", "--set", f"server.tokens={tokens}"),
        *("--set", f"bus.curve.key={server_key}", "--set", f"bus.curve.allowed={allowed}"),
    )
    try:
        where = daemon.addresses()
        daemon.wait_for("ready", lambda: "ready start_s=" in daemon.log)
        url = f"wss://127.0.0.1:{where['port']}/v1/stream"
        bus = where["bus"].replace("0.0.0.0", "127.0.0.1")
        file = recording(tmp_path / "word.wav")
        listening = subprocess.Popen(
            [
                *(sys.executable, "-m", "voiced.daemon.cli", "listen", "--bus", bus),
                *("--type", "final", "--count", "1"),
            ],
            stdout=subprocess.PIPE,
            env={
                "XDG_CONFIG_HOME": str(tmp_path),
                "VOICED_BUS_CURVE_CLIENT_KEY": str(client_key),
                "VOICED_BUS_CURVE_SERVER_KEY": server_pair.public,
            },
        )
        try:
            heard = b""
            while not heard:  # the first may come before the listener has joined
                said = voiced(
                    *("stream", file, "--url", url, "--token-file", token_file),
                    *("--authority", authority_file),
                    folder=tmp_path,
                )
                assert said.returncode == 0, said.stderr
                assert "1 finals" in said.stdout
                try:
                    heard, _ = listening.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            listening.kill()
            listening.wait()
        assert b"final/" in heard

        stranger = voiced(
            *("stream", file, "--url", url, "--authority", authority_file), folder=tmp_path
        )
        assert stranger.returncode == 1
        assert "401" in stranger.stderr
        distrustful = voiced("stream", file, "--url", url, folder=tmp_path)
        assert distrustful.returncode == 3
        assert "certificate verify failed" in distrustful.stderr

        keys.token_revoke("car", tokens)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reload", lambda: "reloaded file=" in daemon.log)
        revoked = voiced(
            *("stream", file, "--url", url, "--token-file", token_file),
            *("--authority", authority_file),
            folder=tmp_path,
        )
        assert (revoked.returncode, "not known here" in revoked.stderr) == (1, True)
        for private in (token, server_pair.secret, "samples"):
            assert private not in daemon.log
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()


def test_an_address_of_the_network_without_protection_ends_the_start_with_the_rule(
    tmp_path: Path,
) -> None:
    daemon = launch(tmp_path, *FAKE, "--host", "0.0.0.0", "--bus", "tcp://*:8766")
    try:
        assert daemon.wait_exit() == 2
    finally:
        daemon.kill()
    assert 'server.host = "0.0.0.0": can be reached from other machines' in daemon.log
    assert "needs `server.tls.certificate` and `server.tokens`" in daemon.log
    assert 'bus.endpoint = "tcp://*:8766": can be reached' in daemon.log


def test_by_default_no_port_is_open_to_other_machines(tmp_path: Path) -> None:
    daemon = launch(tmp_path, *FAKE)
    try:
        daemon.addresses()
        inodes = set()
        for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since; no listening socket is
                inodes.add(entry.readlink().name)
        listening = [
            fields[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if (fields := line.split())[3] == "0A" and f"socket:[{fields[9]}]" in inodes
        ]
        assert len(listening) == 3
        assert {address.partition(":")[0] for address in listening} == {"0100007F"}
    finally:
        daemon.kill()
