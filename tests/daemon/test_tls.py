"""TLS of the port: with real handshakes, a reload, and peers that never end theirs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
import trustme
from tests.daemon.server_rig import START, WORD, Rig, kinds, rest, send, serve, started

from voiced.daemon.guarded import FileRefused
from voiced.daemon.tls import ServerTls
from voiced.daemon.wire import Stop


class Authority:
    """Signs certificates for localhost, into two files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.issue()

    def issue(self, *, is_good: bool = True) -> None:
        """Write a new certificate; one that is not good has another's key."""
        certificate = self._ca.issue_cert("localhost", "127.0.0.1")
        key = certificate if is_good else self._ca.issue_cert("localhost")
        self.chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        self.key.write_bytes(key.private_key_pem.bytes())
        self.key.chmod(0o600)

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context


async def certificate_of(rig: Rig, authority: Authority) -> bytes:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", rig.server.port, ssl=authority.client(), server_hostname="localhost"
    )
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return found


def test_a_word_over_tls_is_a_word_answered(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ServerTls(authority.chain, authority.key)

    async def scenario(rig: Rig) -> None:
        async with rig.client(ssl=authority.client()) as client:
            await send(client, START, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
            assert client.close_code == 1000
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", rig.server.port, ssl=authority.client(), server_hostname="localhost"
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(scenario, tls=tls.context)


def test_a_new_certificate_is_taken_while_streams_go_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ServerTls(authority.chain, authority.key)

    async def scenario(rig: Rig) -> None:
        async with rig.client(ssl=authority.client()) as client:
            await started(client)
            before = await certificate_of(rig, authority)
            assert not tls.files.refresh()
            authority.issue()
            assert tls.files.refresh()
            after = await certificate_of(rig, authority)
            assert before != after
            authority.issue(is_good=False)
            assert not tls.files.refresh()
            assert await certificate_of(rig, authority) == after
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]

    serve(scenario, tls=tls.context)


def test_peers_that_begin_tls_and_never_end_it_keep_nobody_out(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ServerTls(authority.chain, authority.key)

    async def scenario(rig: Rig) -> None:
        port = rig.server.port
        async with rig.client(ssl=authority.client()) as client:
            await started(client)
            silent = []
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a hello
                silent.append((reader, writer))
            with contextlib.suppress(ConnectionResetError):
                assert await silent[0][0].read() == b""
            assert await certificate_of(rig, authority)
            await send(client, WORD, Stop())
            assert kinds(await rest(client))[-2:] == ["Final", "Ended"]
        for _, writer in silent:
            writer.close()

    serve(scenario, tls=tls.context, max_connections=6)


def test_a_handshake_that_takes_too_long_and_plain_http_are_cut(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ServerTls(authority.chain, authority.key)

    async def scenario(rig: Rig) -> None:
        for said in (b"", b"\x16\x03\x01", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
            writer.write(said)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                answer = await reader.read()
            assert b"HTTP" not in answer
            writer.close()
        assert rig.metrics.value("voiced_connections_cut_total", reason="tls") == 3

    serve(scenario, tls=tls.context, open_timeout_s=0.2)


def test_old_versions_of_tls_are_not_spoken(tmp_path: Path) -> None:
    context = ServerTls(Authority(tmp_path).chain, tmp_path / "key.pem").context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(FileRefused, match=r"none\.pem: cannot be read"):
        ServerTls(authority.chain, tmp_path / "none.pem")
    authority.issue(is_good=False)
    with pytest.raises(FileRefused, match=r"chain\.pem: certificate and key .* mismatch"):
        ServerTls(authority.chain, authority.key)
    authority.key.chmod(0o644)
    with pytest.raises(FileRefused, match=r"key\.pem: has mode 644, expected at most 640"):
        ServerTls(authority.chain, authority.key)
    authority.key.chmod(0o600)
    authority.key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(FileRefused, match=r"chain\.pem: "):
        ServerTls(authority.chain, authority.key)
