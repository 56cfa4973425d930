"""Files come from a hub whole, however often the connection breaks; else nothing does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.engine.tiny_fireredasr import Tiny, write_folder

from voiced.engine.build import hub as hub_module
from voiced.engine.build.hub import Hub, HubModel, fetch_files
from voiced.engine.build.imports import FILES, form_of, pull_fireredasr
from voiced.engine.bundle import Bundle
from voiced.engine.errors import FetchError

BODY = bytes(range(256)) * 4000
MODEL = "team/model"


@dataclass
class Served:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: {"a.bin": BODY})
    break_after: list[int] = field(default_factory=list)
    """For each answer in turn, bytes after which the connection is cut."""
    statuses: list[int] = field(default_factory=list)
    """For each answer in turn, a status instead of the file."""
    version: str = '"v1"'
    linked_sha256: str | None = None
    """Said at a redirect, as Hugging Face does."""
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def address(served: Served) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            name = self.path.rsplit("/", 1)[-1]
            if served.linked_sha256 is not None and "/resolve/" in self.path:
                self.send_response(302)
                self.send_header("Location", f"/stored/{name}")
                self.send_header("X-Linked-ETag", f'"{served.linked_sha256}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = self.headers.get("Range")
            served.ranges.append(asked)
            status = served.statuses.pop(0) if served.statuses else 200
            if status != 200 or name not in served.files:
                self.send_error(status if status != 200 else 404)
                return
            body, start = served.files[name], 0
            if asked is not None and self.headers.get("If-Range") == served.version:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("ETag", served.version)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            stop = served.break_after.pop(0) if served.break_after else len(body)
            self.wfile.write(body[start : start + stop])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def fetch(folder: Path, *addresses: str, names: tuple[str, ...] = ("a.bin",)) -> list[str]:
    """Fetch; returns the lines of progress."""
    hubs = tuple(Hub(f"hub {i}", each, MODEL, "main") for i, each in enumerate(addresses))
    lines: list[str] = []
    fetch_files(HubModel("tiny", "", hubs), names, folder, lines.append, "bring them yourself")
    return lines


def test_a_file_arrives_whole_and_nothing_else_stays(
    tmp_path: Path, address: str, served: Served
) -> None:
    lines = fetch(tmp_path, address)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]
    assert served.ranges == [None]
    assert lines[-1].startswith("fetching a.bin: 0 of 0 MiB")


def test_a_file_that_is_there_is_not_asked_for(
    tmp_path: Path, address: str, served: Served
) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    fetch(tmp_path, address)
    assert served.ranges == []


def test_a_broken_connection_goes_on_where_it_broke(
    tmp_path: Path, address: str, served: Served
) -> None:
    served.break_after = [300_000, 200_000]
    fetch(tmp_path, address)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert served.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_the_next_run_goes_on_where_the_last_one_ended(
    tmp_path: Path, address: str, served: Served
) -> None:
    served.break_after, served.statuses = [300_000], [200, 503, 503, 503, 503]
    with pytest.raises(FetchError, match=r"hub 0: a\.bin: the hub answered 503"):
        fetch(tmp_path, address)
    assert (tmp_path / "a.bin.part").stat().st_size == 300_000
    served.ranges.clear()
    fetch(tmp_path, address)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert served.ranges == ["bytes=300000-"]


def test_a_file_that_changed_in_between_begins_anew(
    tmp_path: Path, address: str, served: Served
) -> None:
    served.break_after, served.statuses = [300_000], [200, 404]
    with pytest.raises(FetchError, match="answered 404"):
        fetch(tmp_path, address)
    served.files["a.bin"], served.version = BODY[::-1], '"v2"'
    fetch(tmp_path, address)
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_the_hash_that_the_hub_tells_is_checked(
    tmp_path: Path, address: str, served: Served
) -> None:
    served.linked_sha256 = hashlib.sha256(BODY).hexdigest()
    assert "checking a.bin" in fetch(tmp_path / "right", address)
    served.files["a.bin"] = BODY[:-1] + b"?"
    with pytest.raises(FetchError, match=r"a\.bin arrived damaged: found sha256 .*, expected "):
        fetch(tmp_path / "wrong", address)
    assert list((tmp_path / "wrong").iterdir()) == []


def test_the_second_hub_is_asked_when_the_first_has_nothing(
    tmp_path: Path, address: str, served: Served
) -> None:
    served.statuses = [404]
    fetch(tmp_path, address, address)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_without_a_network_every_hub_is_named_and_what_to_do(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"  # discard: nothing listens
    with pytest.raises(FetchError) as caught:
        fetch(tmp_path, nobody, nobody)
    text = str(caught.value)
    assert text.startswith(
        "cannot fetch tiny: hub 0: a.bin: [Errno 111] Connection refused; hub 1:"
    )
    assert text.endswith("; bring them yourself")


def test_names_say_which_model_and_which_graphs() -> None:
    assert form_of("fireredasr2-aed") is not None
    assert form_of("fireredasr-aed-int8") is not None
    assert form_of("fireredasr2-aed-portable") is not None
    assert form_of("fireredasr2-aed-int4") is None
    assert form_of("whisper-base") is None


def test_pull_fetches_a_release_and_imports_it(
    tmp_path: Path, address: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = write_folder(tmp_path / "release", Tiny(5, 2))
    served.files = {name: (release / name).read_bytes() for name in FILES}
    served.break_after = [100, 100, 1_000_000]
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("HF_ENDPOINT", address)
    path = pull_fireredasr("fireredasr2-aed-int8", force=False, progress=lambda _: None)
    bundle = Bundle.open(path)
    assert (bundle.manifest.name, bundle.manifest.quantisation) == ("fireredasr2-aed-int8", "int8")
    left = {each.name for each in (tmp_path / "models").iterdir()}
    assert left == {"fireredasr2-aed-int8", ".fireredasr2-aed-int8.lock"}
