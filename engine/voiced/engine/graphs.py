"""Which file of a bundle answers for a graph at one shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from voiced.engine.backends.base import Backend, Session, SharesWorkspace, Traffic
from voiced.engine.bundle import Bundle, Manifest


class Graphs(Protocol):
    """The graphs of one bundle, loaded when they are first needed."""

    def session(self, role: str, axes: Mapping[str, int]) -> Session:
        """Return the graph `role` for these values of its symbolic axes.

        Raises:
            BundleError: The bundle has no such graph, or not at this shape.
            BackendFailed: The runtime cannot load it.
        """
        ...

    @property
    def traffic(self) -> Traffic:
        """What all sessions have moved."""
        ...


class OnnxGraphs:
    """One file per role, which takes any shape."""

    def __init__(self, root: Path, manifest: Manifest, backend: Backend, *, threads: int) -> None:
        self._root = root
        self._manifest = manifest
        self._backend = backend
        self._threads = threads
        self._sessions: dict[str, Session] = {}

    def session(self, role: str, axes: Mapping[str, int]) -> Session:
        """Return the graph `role`; `axes` need nothing of their own."""
        if role not in self._sessions:
            path = self._root / self._manifest.graphs[role]
            self._sessions[role] = self._backend.load(path, threads=self._threads)
        return self._sessions[role]

    @property
    def traffic(self) -> Traffic:
        """What all sessions have moved."""
        return _sum(self._sessions.values())


class TargetGraphs:
    """One artifact per graph and shape, made by `voiced model convert`."""

    def __init__(
        self, root: Path, manifest: Manifest, backend: Backend, target: str, *, threads: int
    ) -> None:
        self._bundle = Bundle(root, manifest, manifest_sha256="")
        self._backend = backend
        self._target = target
        self._threads = threads
        self._sessions: dict[Path, Session] = {}
        made = self._bundle.target(target)
        if isinstance(backend, SharesWorkspace):
            backend.share_workspace([root / artifact.file for artifact in made.artifacts])

    def session(self, role: str, axes: Mapping[str, int]) -> Session:
        """Return the artifact of the graph `role` at these axes."""
        path = self._bundle.artifact(self._target, role, axes)
        if path not in self._sessions:
            self._sessions[path] = self._backend.load(path, threads=self._threads)
        return self._sessions[path]

    @property
    def traffic(self) -> Traffic:
        """What all sessions have moved."""
        return _sum(self._sessions.values())


def _sum(sessions: Iterable[Session]) -> Traffic:
    total = Traffic()
    for session in sessions:
        total += session.traffic
    return total


def open_graphs(root: Path, manifest: Manifest, backend: Backend, *, threads: int) -> Graphs:
    """Open the graphs of the bundle in folder `root` with a runtime.

    Args:
        root: The bundle's folder (a staged one while it is being built).
        manifest: Its manifest.
        backend: Runs the graphs.
        threads: Threads of one graph call.

    Raises:
        BundleError: The bundle was not converted for the runtime.
    """
    if backend.target is not None:
        return TargetGraphs(root, manifest, backend, backend.target, threads=threads)
    return OnnxGraphs(root, manifest, backend, threads=threads)
