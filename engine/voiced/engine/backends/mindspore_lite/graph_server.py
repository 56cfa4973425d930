"""The graph server: MindSpore Lite in a process of its own, under an interpreter of its own.

Started by `client.py`. Python 3.7 and numpy, as `runtime.py`. One thread. Requests come as one line
of JSON on standard input, each is answered with one line on what was standard output; contents of
arrays never go through a pipe but lie in a mapped memory file, whose descriptor is an argument.
Ends when standard input does.

    {"op": "map", "bytes": n}                                the memory file now has n bytes
    {"op": "load", "graph": id, "path": s, "threads": n, "shapes": {name: [..]} | null}
        → {"inputs": {name: [dtype, [..]]}, "outputs": {name: [dtype, [..]]}}
    {"op": "allocate", "tensor": id, "shape": [..], "dtype": s}
    {"op": "bind", "call": id, "graph": id, "inputs": {name: place}, "outputs": {name: place}}
        place: a tensor's id, or [offset, shape, dtype] in the memory file
    {"op": "run", "call": id}
        → {"ns": time in predict, "keep_ns": time to copy results into residents}
    {"op": "write" | "read", "tensor": id, "offset": n}
    {"op": "drop", "graph": [ids], "tensor": [ids], "call": [ids]}
    {"op": "memory"}                                         → {"rss": bytes, "peak": bytes}

A refusal is {"error": kind, "text": s} with a kind of `RuntimeRefused`. The first line, unasked, is
{"python": s, "version": s, "features": {..}, "pid": n}.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Dict, Tuple  # noqa: UP035 (aliases are evaluated by 3.7)

import numpy as np

from voiced.engine.backends.mindspore_lite.runtime import (
    Bound,
    Graph,
    Runtime,
    RuntimeRefused,
)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Place = Tuple[int, Tuple[int, ...], Any]  # noqa: UP006
"""Offset in the memory file, shape, type."""
Message = Dict[str, Any]  # noqa: UP006


class _Call:
    """A bound graph, where its host arrays lie in the memory file, and the arrays themselves."""

    def __init__(self, bound: Bound, read: dict[str, Place], written: dict[str, Place]) -> None:
        self.bound, self.read, self.written = bound, read, written
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.memory: mmap.mmap | None = None
        """The mapping that the arrays are views of; they are made anew with another."""


class GraphServer:
    """The tables behind the ids, and one method per request."""

    def __init__(self, runtime: Runtime, memory_fd: int) -> None:
        self._runtime = runtime
        self._memory_fd = memory_fd
        self._memory: mmap.mmap | None = None
        self._graphs: dict[int, Graph] = {}
        self._tensors: dict[int, np.ndarray] = {}
        self._calls: dict[int, _Call] = {}

    def answer(self, request: Message) -> Message:
        """Do one request; raises RuntimeRefused."""
        handlers: dict[str, Callable[[Message], Message | None]] = {
            "map": self._map,
            "load": self._load,
            "allocate": self._allocate,
            "bind": self._bind,
            "run": self._run,
            "write": self._write,
            "read": self._read,
            "drop": self._drop,
            "memory": self._report,
        }
        return handlers[request["op"]](request) or {}

    def _map(self, request: Message) -> None:
        # the old mapping goes with the last view of it
        self._memory = mmap.mmap(self._memory_fd, request["bytes"])

    def _load(self, request: Message) -> Message:
        graph = self._runtime.load(request["path"], request["threads"], request["shapes"])
        self._graphs[request["graph"]] = graph
        return {"inputs": graph.takes, "outputs": graph.gives}

    def _allocate(self, request: Message) -> None:
        self._tensors[request["tensor"]] = np.zeros(request["shape"], request["dtype"])

    def _bind(self, request: Message) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        sides = []
        for side in ("inputs", "outputs"):
            residents: dict[str, np.ndarray | None] = {}
            places: dict[str, Place] = {}
            for name, place in request[side].items():
                if isinstance(place, list):
                    offset, shape, dtype = place
                    places[name] = (offset, tuple(shape), np.dtype(dtype))
                    residents[name], shapes[name] = None, tuple(shape)
                else:
                    residents[name] = tensor = self._tensors[place]
                    shapes[name] = tensor.shape
            sides.append((residents, places))
        (inputs, read), (outputs, written) = sides
        graph = self._graphs[request["graph"]]
        bound = self._runtime.bind(graph, inputs, outputs, shapes)
        self._calls[request["call"]] = _Call(bound, read, written)

    def _run(self, request: Message) -> Message:
        call = self._calls[request["call"]]
        if call.memory is not self._memory:
            call.inputs = {name: self._view(place) for name, place in call.read.items()}
            call.outputs = {name: self._view(place) for name, place in call.written.items()}
            call.memory = self._memory
        self._runtime.run(call.bound, call.inputs, call.outputs)
        return {"ns": self._runtime.run_ns, "keep_ns": self._runtime.keep_ns}

    def _write(self, request: Message) -> None:
        tensor = self._tensors[request["tensor"]]
        np.copyto(tensor, self._view((request["offset"], tensor.shape, tensor.dtype)))

    def _read(self, request: Message) -> None:
        tensor = self._tensors[request["tensor"]]
        np.copyto(self._view((request["offset"], tensor.shape, tensor.dtype)), tensor)

    def _drop(self, request: Message) -> None:
        tables: dict[str, dict[int, Any]] = {
            "call": self._calls,
            "tensor": self._tensors,
            "graph": self._graphs,
        }
        for kind, table in tables.items():
            for key in request[kind]:
                table.pop(key, None)

    def _report(self, request: Message) -> Message:
        fields = {}
        with open("/proc/self/status") as file:
            for line in file:
                name, _, rest = line.partition(":")
                fields[name] = rest.split()
        return {
            "rss": int(fields["VmRSS"][0]) * 1024,
            "peak": int(fields["VmHWM"][0]) * 1024,
        }

    def _view(self, place: Place) -> np.ndarray:
        offset, shape, dtype = place
        assert self._memory is not None
        return np.ndarray(shape, dtype, self._memory, offset)


def main() -> int:
    """Serve until standard input ends."""
    # The library prints on standard output: answers go to a copy, its prints join the errors.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the parent ends us in order
    # A hung native call does not read standard input; the kernel still ends us with our parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))

    def say(message: Message) -> None:
        answers.write(json.dumps(message, separators=(",", ":")) + "\n")
        answers.flush()

    try:
        runtime = Runtime()
    except RuntimeRefused as error:
        say({"error": error.kind, "text": error.text, "python": sys.version.split()[0]})
        return 1
    say(
        {
            "python": sys.version.split()[0],
            "version": runtime.version,
            "features": runtime.features,
            "pid": os.getpid(),
        }
    )
    server = GraphServer(runtime, int(sys.argv[1]))
    for line in sys.stdin:
        try:
            say(server.answer(json.loads(line)))
        except RuntimeRefused as error:
            say({"error": error.kind, "text": error.text})
        except MemoryError as error:
            say({"error": "memory", "text": str(error) or "out of memory"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
