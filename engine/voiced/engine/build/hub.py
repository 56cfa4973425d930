"""Files from a model hub over HTTP: resumed after an interrupt, checked against what the hub says.

Plain HTTP as both hubs serve it: `<endpoint>/<model>/resolve/<revision>/<file>`. A file arrives as
`<name>.part` beside a note of its version; the next run asks for the rest of the same version. One
of the hubs tells the sha256 of its large files (`X-Linked-ETag`); it is checked, as is every size.
That guards against damage on the way, not against a hub that serves something else: of the released
files no hash is known here.

Proxies and certificates are the environment's (`HTTPS_PROXY`, `SSL_CERT_FILE`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiced.engine.errors import FetchError

Progress = Callable[[str], None]

TIMEOUT_S = 30.0
"""Without a byte for so long, an attempt is given up."""
ATTEMPTS = 4
"""In a row that brought nothing."""
CHUNK_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Hub:
    """Where one model lies on one hub."""

    name: str
    endpoint: str
    model: str
    revision: str

    def url(self, file: str) -> str:
        """Address of a file."""
        return f"{self.endpoint}/{self.model}/resolve/{self.revision}/{file}"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model that is fetched from a hub and then imported."""

    name: str
    summary: str
    hubs: tuple[Hub, ...]
    """Tried in order."""


def _endpoint(variable: str, usual: str) -> str:
    """A hub's address; the variable is the one that the hub's own tools read."""
    return os.environ.get(variable, "").rstrip("/") or usual


def hub_models() -> dict[str, HubModel]:
    """Return the models that can be fetched, by name."""
    hugging_face = _endpoint("HF_ENDPOINT", "https://huggingface.co")
    modelscope = _endpoint("MODELSCOPE_ENDPOINT", "https://modelscope.cn") + "/models"

    def model(name: str, summary: str, first: str, second: str) -> HubModel:
        return HubModel(
            name,
            summary,
            (
                Hub("Hugging Face", hugging_face, first, "main"),
                Hub("ModelScope", modelscope, second, "master"),
            ),
        )

    models = (
        model(
            "fireredasr-aed",
            "FireRedASR-AED-L, Mandarin and English",
            "FireRedTeam/FireRedASR-AED-L",
            "pengzhendong/FireRedASR-AED-L",
        ),
        model(
            "fireredasr2-aed",
            "FireRedASR2-AED, Mandarin, dialects and English, with word times",
            "FireRedTeam/FireRedASR2-AED",
            "xukaituo/FireRedASR2-AED",
        ),
    )
    return {each.name: each for each in models}


def fetch_files(
    model: HubModel, names: Sequence[str], folder: Path, progress: Progress, hint: str
) -> None:
    """Bring a model's files into a folder; those that are there already stay.

    Args:
        model: Where they lie.
        names: The files.
        folder: Where they go. What an interrupt leaves there is used by the next call.
        progress: Told the bytes that have arrived.
        hint: What to do without a network, for the message.

    Raises:
        FetchError: No hub can be reached or has them, or what came is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for hub in model.hubs:
        try:
            for name in names:
                if not (folder / name).is_file():
                    _Download(hub.url(name), folder / name, progress).run()
        except _HubProblem as problem:
            problems.append(f"{hub.name}: {problem}")
        else:
            return
    raise FetchError(f"cannot fetch {model.name}: {'; '.join(problems)}; {hint}")


class _HubProblem(Exception):
    """One hub did not give a file."""


class _Download:
    """One file on its way."""

    def __init__(self, url: str, target: Path, progress: Progress) -> None:
        self._url = url
        self._target = target
        self._progress = progress
        self._part = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")

    def run(self) -> None:
        """Fetch what is missing, check the whole, and put it in place.

        Raises:
            _HubProblem: The hub does not have it, cannot be reached, or sent something damaged.
        """
        failures = 0
        while True:
            before = self._have()
            try:
                known = self._attempt()
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in {408, 429, 500, 502, 503, 504}:
                        raise _HubProblem(
                            f"{self._target.name}: the hub answered {error.code} {error.reason}"
                        ) from error
                problem = f"the hub answered {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None)
                problem = str(reason or error) or type(error).__name__
            else:
                self._finish(known)
                return
            failures = failures + 1 if self._have() <= before else 0
            if failures >= ATTEMPTS:
                raise _HubProblem(f"{self._target.name}: {problem}")
            time.sleep(min(2.0 ** (failures - 2), 4.0) if failures > 1 else 0.0)

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _attempt(self) -> dict[str, Any]:
        """Ask for what is missing; returns what the hub says about the whole."""
        have, noted = self._have(), self._noted()
        headers = {"User-Agent": "voiced", "Accept-Encoding": "identity"}
        if have and noted.get("etag"):
            headers |= {"Range": f"bytes={have}-", "If-Range": noted["etag"]}
        request = urllib.request.Request(self._url, headers=headers)
        try:
            response = _open(request)
        except urllib.error.HTTPError as error:
            if error.code != 416 or have != noted.get("bytes"):
                if error.code == 416:  # more than there is: begin anew
                    self._part.unlink(missing_ok=True)
                raise
            error.close()
            return noted  # all of it had come
        with response:
            resumed = response.status == 206
            known = noted if resumed else _describe(response)
            if not resumed:
                self._note.write_text(json.dumps(known), encoding="utf-8")
            self._receive(response, known, append=resumed)
        whole = known.get("bytes")
        if whole is not None and self._have() < whole:
            raise OSError(f"the connection ended after {self._have()} of {whole} bytes")
        return known

    def _receive(self, response: Any, known: dict[str, Any], *, append: bool) -> None:
        whole = known.get("bytes")
        of = f" of {whole >> 20}" if whole else ""
        with self._part.open("ab" if append else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                self._progress(f"fetching {self._target.name}: {file.tell() >> 20}{of} MiB")

    def _noted(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return noted

    def _finish(self, known: dict[str, Any]) -> None:
        size, digest = self._have(), known.get("sha256")
        problem = None
        if known.get("bytes") not in (None, size):
            problem = f"found {size} bytes, expected {known['bytes']}"
        elif digest:
            self._progress(f"checking {self._target.name}")
            with self._part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                problem = f"found sha256 {found}, expected {digest}"
        if problem is not None:
            self._part.unlink()  # nothing of it can be used
            self._note.unlink(missing_ok=True)
            raise _HubProblem(f"{self._target.name} arrived damaged: {problem}")
        self._part.rename(self._target)
        self._note.unlink(missing_ok=True)


class _Remembers(urllib.request.HTTPRedirectHandler):
    """Keeps what a hub says about a file before it sends us to where the file is."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        for name in ("X-Linked-ETag", "X-Linked-Size"):
            if headers.get(name):
                self.said[name] = headers[name]
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    remembers = _Remembers()
    response = urllib.request.build_opener(remembers).open(request, timeout=TIMEOUT_S)
    for name, value in remembers.said.items():
        if name not in response.headers:
            response.headers[name] = value
    return response


def _describe(response: Any) -> dict[str, Any]:
    headers = response.headers
    known: dict[str, Any] = {}
    if headers.get("ETag"):
        known["etag"] = headers["ETag"]
    size = headers.get("Content-Length") or headers.get("X-Linked-Size")
    if size and size.isdecimal():
        known["bytes"] = int(size)
    digest = (headers.get("X-Linked-ETag") or "").removeprefix("W/").strip('"')
    if _SHA256.fullmatch(digest):
        known["sha256"] = digest
    return known
