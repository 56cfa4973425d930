"""The host's side of the graph server: one process, spoken to in lines, replaced when it fails.

Everything that the server holds is described by an object here (`ServerGraph`, `ServerTensor`,
`ServerCall`), which makes itself known to a new server when it is next used. So a crash costs the
time to load what is needed again, and the call that was under way is repeated once.

That does not bring back what was computed into resident tensors. When there were any, the call
raises `StateLost` instead, and the engine repeats the whole request.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import mmap
import os
import re
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.binding import TensorSpec
from voiced.engine.errors import BackendFailed, BackendUnavailable, StateLost

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
T = TypeVar("T")

START_TIMEOUT_S = 60.0
"""A cold import of the library takes 1 to 5 s from a slow disk."""
LOAD_TIMEOUT_S = 300.0
"""Building the largest artifact that fits this machine takes seconds; this only ends a hang."""
_ALIGNMENT = 64
_LAST_WORDS_BYTES = 65_536

_IMPORT_ROOT = Path(__file__).parents[4]
# Appended, not PYTHONPATH: beside an installed voiced lie packages of this interpreter, which must
# not hide the other interpreter's own.
_PROGRAM = (
    "import sys; sys.path.append({root!r}); "
    "from voiced.engine.backends.mindspore_lite.graph_server import main; sys.exit(main())"
)


_OUT_OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT)
"""How a process ends that got no memory: by the kernel, or by an exception of C++ nobody caught."""


_LIBRARY_ERROR = re.compile(r"\[ERROR\] \w+\(.*?\):\S+ \[[^]]*\] (\w+\] )?")
"""[ERROR] ME(9297,7f00cffe6b80,python):2026-01-31-19:36:07.842.335 [file:line] function] text"""


_NO_MEMORY = re.compile(r"bad_alloc|out of memory|malloc\w*\b.*fail", re.IGNORECASE)


class _Died(Exception):
    """The server ended or was killed because it hung; `how` says which."""

    def __init__(self, how: str, lines: Sequence[str], status: int | None = None) -> None:
        super().__init__(how, lines, status)
        self.how, self.lines, self.status = how, lines, status


class _Process:
    """One running graph server: its pipes, its memory file, its last words."""

    def __init__(self, python: Path) -> None:
        self._memory_fd = os.memfd_create("voiced-tensors", os.MFD_CLOEXEC)
        program = _PROGRAM.format(root=str(_IMPORT_ROOT))
        try:
            self._popen = subprocess.Popen(
                # isolated: no PYTHON* variables and no working folder, which are this program's
                [str(python), "-I", "-c", program, str(self._memory_fd)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[self._memory_fd],
                env=os.environ | {"GLOG_v": "3"},  # errors only
            )
        except BaseException:
            os.close(self._memory_fd)
            raise
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._in, self._out, self._err = (
            self._popen.stdin.fileno(),
            self._popen.stdout.fileno(),
            self._popen.stderr.fileno(),
        )
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)
        self._received = b""
        self._errors = b""
        self._errors_open = True
        self.memory = mmap.mmap(-1, 1)
        """The mapped memory file; replaced when it grows."""
        self.bytes = 0

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            _Died: The process ended, or was killed after `timeout_s`.
        """
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        try:
            os.write(self._in, line)
        except BrokenPipeError:
            raise self._death() from None
        return self.receive(timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line; see `ask`."""
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left_s = deadline_s - time.monotonic()
            ready = self._poll.poll(max(0, left_s) * 1000)
            if not ready:
                lines = self.last_words()
                self.end()
                raise _Died(f"gave no answer within {timeout_s:g} s and was killed", lines)
            # its errors are read along with its answers: a full pipe would stop it
            if any(fd == self._err for fd, _ in ready):
                self._read_errors()
            if any(fd == self._out for fd, _ in ready):
                data = os.read(self._out, 65_536)
                if not data:
                    raise self._death()
                self._received += data
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def reserve(self, size: int, timeout_s: float) -> None:
        """Make the memory file at least so large, on both sides."""
        if size <= self.bytes:
            return
        size = max(size, 2 * self.bytes)  # pages that are never touched cost nothing
        os.ftruncate(self._memory_fd, size)
        self.memory = mmap.mmap(self._memory_fd, size)
        self.ask({"op": "map", "bytes": size}, timeout_s)
        self.bytes = size

    def last_words(self) -> list[str]:
        """The lines that it wrote as errors since the last question."""
        while self._errors_open and select.select([self._err], [], [], 0)[0]:
            self._read_errors()
        lines = self._errors.decode(errors="replace").strip().splitlines()
        self._errors = b""
        return lines

    def _read_errors(self) -> None:
        said = os.read(self._err, 65_536)
        self._errors = (self._errors + said)[-_LAST_WORDS_BYTES:]
        if not said:
            self._poll.unregister(self._err)
            self._errors_open = False

    def _death(self) -> _Died:
        status = self._popen.wait()
        if status < 0:
            how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
        else:
            how = f"ended with status {status}"
        return _Died(how, self.last_words(), status)

    def end(self) -> None:
        """Kill it and free the descriptors; may be called again."""
        if self._popen.stdin is None or self._popen.stdin.closed:
            return
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        os.close(self._memory_fd)


class _Refused(Exception):
    """The server answered with an error of `RuntimeRefused`'s kinds."""

    def __init__(self, kind: str, text: str, lines: Sequence[str]) -> None:
        super().__init__(kind, text, lines)
        # the library gives no code for it, and says it in several ways
        is_memory = any(_NO_MEMORY.search(line) for line in (text, *lines))
        self.kind = "memory" if is_memory else kind
        self.text, self.lines = text, lines

    def __str__(self) -> str:
        # the library's exceptions say "Common error code"; the reason is in its log
        reason = reason_in(self.lines)
        return f"{self.text} ({reason})" if reason else self.text


class GraphServer:
    """A graph server that is always there: started at once, replaced when it fails.

    Args:
        python: The interpreter that has the library.
        deadline_s: A run longer than this means a hang; the process is replaced.

    Raises:
        BackendUnavailable: It cannot be started, and why.
    """

    def __init__(self, python: Path, *, deadline_s: float = 10.0) -> None:
        self.python, self.deadline_s = python, deadline_s
        self.restarts = 0
        """Processes that failed and were replaced."""
        self.features: dict[str, bool] = {}
        self.version = ""
        self.holds_results = False
        """Whether a resident tensor holds what only the running process knows."""
        self._process: _Process | None = None
        self._ids = itertools.count(1)
        self._known: dict[int, str] = {}
        self._unneeded: list[int] = []
        self._start()
        have = [name for name, is_there in self.features.items() if is_there]
        logger.info(
            "mindspore_lite runs in a graph server pid=%d python=%s library=%s features=%s",
            self.pid,
            self.python,
            self.version,
            ",".join(have) or "none",
        )

    @property
    def pid(self) -> int:
        """Process id of the server in use."""
        return self._running().pid

    def attempt(self, action: Callable[[], T]) -> T:
        """Do `action`, once more when the server fails in it.

        Raises:
            StateLost: The server failed and with it results that the action may depend on.
            BackendFailed: It failed twice, or refused.
        """
        if self._process is None:
            self._start()
        had_results = self.holds_results
        try:
            return action()
        except _Refused as error:
            raise BackendFailed(f"mindspore_lite: {error}") from error
        except _Died as first:
            self._replace(first)
            if had_results:
                text = f"mindspore_lite: the graph server {first.how} and its tensors are lost"
                raise StateLost(text) from first
            try:
                return action()
            except _Refused as error:
                raise BackendFailed(f"mindspore_lite: {error}") from error
            except _Died as second:
                self._replace(second)
                raise BackendFailed(
                    f"mindspore_lite: the graph server {first.how}, and on the retry it "
                    f"{second.how}"
                ) from second

    def register(self, owner: object) -> int:
        """Give an object a number; the server forgets it when the object is gone."""
        number = next(self._ids)
        weakref.finalize(owner, self._unneeded.append, number).atexit = False
        return number

    def knows(self, number: int) -> bool:
        """Whether the running server was told of the object with this number."""
        return number in self._known

    def ensure(
        self, kind: str, number: int, request: Mapping[str, Any], timeout_s: float | None = None
    ) -> dict[str, Any] | None:
        """Make the running server know an object; returns its answer unless it knew already."""
        if self.knows(number):
            return None
        self._forget_unneeded()
        answer = self.ask({**request, kind: number}, timeout_s=timeout_s)
        self._known[number] = kind
        return answer

    def ask(self, request: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Ask the running server; only inside `attempt`."""
        process = self._running()
        answer = process.ask(request, self.deadline_s if timeout_s is None else timeout_s)
        if "error" in answer:
            raise _Refused(answer["error"], answer["text"], process.last_words())
        return answer

    def memory(self, size: int) -> mmap.mmap:
        """The mapped memory file, with at least `size` bytes; only inside `attempt`."""
        process = self._running()
        process.reserve(size, self.deadline_s)
        return process.memory

    def resident_bytes(self) -> tuple[int, int]:
        """Memory of the server: (now, at its peak)."""
        answer = self.attempt(lambda: self.ask({"op": "memory"}))
        return int(answer["rss"]), int(answer["peak"])

    def close(self) -> None:
        """End the process; a later use starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None
        self.holds_results = False
        self._known.clear()

    def load(self, path: Path, *, threads: int) -> ServerGraph:
        """Build a model."""
        return ServerGraph(self, path, threads=threads)

    def tensor(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> ServerTensor:
        """Allocate a tensor that stays there."""
        return ServerTensor(self, shape, dtype)

    def call(
        self,
        graph: ServerGraph,
        inputs: Mapping[str, Array | ServerTensor],
        outputs: Mapping[str, Array | ServerTensor],
    ) -> ServerCall:
        """Bind memory to a graph."""
        return ServerCall(self, graph, inputs, outputs)

    def _running(self) -> _Process:
        if self._process is None:
            raise BackendFailed("mindspore_lite: the graph server was closed")
        return self._process

    def _replace(self, error: _Died) -> None:
        logger.warning("graph server %s; starting another", error.how)
        self.restarts += 1
        self.close()
        self._start()

    def _forget_unneeded(self) -> None:
        numbers = [self._unneeded.pop() for _ in range(len(self._unneeded))]
        gone: dict[str, list[int]] = {"graph": [], "tensor": [], "call": []}
        for number in numbers:
            if number in self._known:
                gone[self._known.pop(number)].append(number)
        if any(gone.values()):
            self.ask({"op": "drop", **gone})

    def _start(self) -> None:
        try:
            process = _Process(self.python)
        except OSError as error:
            raise BackendUnavailable(
                f"mindspore_lite: found no usable interpreter {self.python} ({error.strerror}); "
                "make one with `make mindspore`, or name one with engine.mindspore_lite.python"
            ) from error
        try:
            hello = process.receive(START_TIMEOUT_S)
        except _Died as error:
            process.end()
            reason = reason_in(error.lines)
            words = f" ({reason})" if reason else ""
            raise BackendUnavailable(
                f"mindspore_lite: {self.python} {error.how} before it was ready{words}; expected "
                "Python 3.7 or newer with numpy: `make mindspore` makes one"
            ) from error
        if "error" in hello:
            process.end()
            raise BackendUnavailable(
                f"mindspore_lite cannot be imported by {self.python} (Python {hello['python']}): "
                f"{hello['text']}; a wheel serves one Python version only: `make mindspore` makes "
                "an environment that fits, engine.mindspore_lite.python names another"
            )
        self._process = process
        self.features, self.version = hello["features"], hello["version"]


class ServerGraph:
    """A model file, loaded into whichever server runs."""

    def __init__(self, server: GraphServer, path: Path, *, threads: int) -> None:
        self._server, self.path, self._threads = server, path, threads
        self._number = server.register(self)
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        server.attempt(self.known)

    def known(self) -> int:
        """Make the running server know it; returns its number there."""
        request = {"op": "load", "path": str(self.path), "threads": self._threads, "shapes": None}
        try:
            answer = self._server.ensure("graph", self._number, request, LOAD_TIMEOUT_S)
        except _Refused as error:
            text = f"{error} [mindspore_lite {self._server.version}]"
            raise load_failure(self.path, error.kind, text) from error
        except _Died as error:
            if error.status not in _OUT_OF_MEMORY:
                raise
            self._server.close()
            raise load_failure(self.path, "memory", f"the graph server {error.how}") from error
        if answer is not None:
            self.inputs, self.outputs = (
                {name: spec_from(*spec) for name, spec in answer[side].items()}
                for side in ("inputs", "outputs")
            )
        return self._number


class ServerTensor:
    """A tensor that stays in the server."""

    def __init__(self, server: GraphServer, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._server = server
        self.spec = TensorSpec(np.dtype(dtype), shape)
        self._nbytes = int(np.prod(shape, dtype=np.int64)) * self.spec.dtype.itemsize
        self._number = server.register(self)
        server.attempt(self.known)

    def known(self) -> int:
        """Make the running server know it (a new one fills it with zeros); returns its number."""
        shape, dtype = self.spec.shape, self.spec.dtype.name
        request = {"op": "allocate", "shape": shape, "dtype": dtype}
        self._server.ensure("tensor", self._number, request)
        return self._number

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and type into it."""

        def copy() -> None:
            number = self.known()
            self._shared()[...] = array
            self._server.ask({"op": "write", "tensor": number, "offset": 0})

        self._server.attempt(copy)
        self._server.holds_results = True

    def read(self) -> Array:
        """Copy its contents out."""

        def copy() -> Array:
            number, shared = self.known(), self._shared()
            self._server.ask({"op": "read", "tensor": number, "offset": 0})
            return shared.copy()

        return self._server.attempt(copy)

    def _shared(self) -> Array:
        memory = self._server.memory(max(1, self._nbytes))
        return np.ndarray(self.spec.shape, self.spec.dtype, memory)  # type: ignore[arg-type]


class ServerCall:
    """A graph with inputs and outputs bound: host arrays cross at each run, tensors do not.

    All calls use the same memory file from its start: one thread makes one call at a time.
    """

    def __init__(
        self,
        server: GraphServer,
        graph: ServerGraph,
        inputs: Mapping[str, Array | ServerTensor],
        outputs: Mapping[str, Array | ServerTensor],
    ) -> None:
        self._server, self._graph = server, graph
        self._number = server.register(self)
        self._sides = {"inputs": dict(inputs), "outputs": dict(outputs)}
        self._offsets: dict[str, int] = {}
        self._bytes = 1
        for values in self._sides.values():
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    self._offsets[name] = self._bytes = _aligned(self._bytes)
                    self._bytes += value.nbytes
        self._fills_tensors = any(isinstance(t, ServerTensor) for t in outputs.values())
        self._memory: mmap.mmap | None = None
        self._copies: dict[str, list[tuple[Array, Array]]] = {}
        self.inside_ns = 0
        """Time of the last run inside the library."""
        self.keep_ns = 0
        """Time that it took to copy results into tensors, on the other side."""
        server.attempt(self._known)

    def run(self) -> None:
        """Copy the host inputs in, run, copy the host outputs out.

        Raises:
            StateLost: The server failed together with the tensors it kept.
            BackendFailed: It failed twice, or the runtime refused.
        """
        self._server.attempt(self._run)
        self._server.holds_results |= self._fills_tensors

    def _run(self) -> None:
        self._known()
        for array, shared in self._copies["inputs"]:
            shared[...] = array
        answer = self._server.ask({"op": "run", "call": self._number})
        self.inside_ns, self.keep_ns = int(answer["ns"]), int(answer["keep_ns"])
        for array, shared in self._copies["outputs"]:
            array[...] = shared

    def _known(self) -> None:
        memory = self._server.memory(self._bytes)
        if memory is not self._memory:
            self._memory = memory
            self._copies = {
                side: [
                    (v, np.ndarray(v.shape, v.dtype, memory, self._offsets[name]))
                    for name, v in values.items()
                    if isinstance(v, np.ndarray)
                ]
                for side, values in self._sides.items()
            }
        if self._server.knows(self._number):
            return  # and so it knows the graph and the tensors
        graph = self._graph.known()
        places = {
            side: {name: self._place(name, value) for name, value in values.items()}
            for side, values in self._sides.items()
        }
        self._server.ensure("call", self._number, {"op": "bind", "graph": graph, **places})

    def _place(self, name: str, value: Array | ServerTensor) -> Any:
        if isinstance(value, ServerTensor):
            return value.known()
        return [self._offsets[name], value.shape, value.dtype.name]


def spec_from(dtype: str, shape: Sequence[int]) -> TensorSpec:
    """What a graph takes or gives."""
    return TensorSpec(np.dtype(dtype), tuple(shape))


def load_failure(path: Path, kind: str, text: str) -> BackendFailed:
    """The error of a model that cannot be built, with what to do about it."""
    convert = "convert the bundle again with `voiced model convert`"
    if not path.is_file():
        return BackendFailed(f"mindspore_lite: found no file {path}; {convert}")
    if kind == "memory":
        megabytes = path.stat().st_size / 1e6
        return BackendFailed(
            f"mindspore_lite: not enough memory to build {path} ({megabytes:.0f} MB on disk, 2 to "
            f"5 times that in memory): {text}; {convert} and fewer --gears"
        )
    return BackendFailed(
        f"mindspore_lite cannot build {path}: {text}; it is truncated, or made for another target "
        f"or version of the library: {convert}"
    )


def reason_in(lines: Sequence[str]) -> str:
    """The line of a log that tells most: the library's first error, else the last line.

    The library logs one error per level of its call stack, the cause first; before that it may
    complain of plugins for other devices.
    """
    for line in lines:
        if (match := _LIBRARY_ERROR.match(line)) and "plugin" not in line:
            return line[match.end() :].strip()
    return lines[-1].strip() if lines else ""


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
