"""MindSpore Lite on an Ascend card, in this process: one artifact with many gears.

What is different from a CPU:

- one artifact holds all gears; the model is resized when a call of another gear runs, never else,
- all memory of a call is on the card and is made once: device tensors are the caller's, for host
  arrays a session keeps one tensor per gear and name, which all calls of that gear share,
- `predict` is given its outputs, so that results stay on the card until somebody reads them,
- graphs that run in turn share their workspace: `share_workspace` before they are loaded,
- one thread owns the card, the one that made the backend.

Written from the vendor's documents (2.7) and tested on `fake_api.py`. No card has run it yet:
`voiced selftest` is for the first who has one.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Bindable, Tensors, Traffic
from voiced.engine.backends.binding import TensorSpec, check_binding, check_same, host_bytes
from voiced.engine.backends.mindspore_lite.gear_text import SHOWN, parse_gears, show_shapes
from voiced.engine.backends.mindspore_lite.runtime import probe
from voiced.engine.errors import BackendFailed, BackendUnavailable

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Gear = tuple[tuple[int, ...], ...]
"""Shapes of all inputs, in the graph's order."""

NEEDED = ("predict_outputs", "device_tensors")
"""Features without which the caches would cross at every step."""
REFUSALS = (RuntimeError, ValueError, TypeError, MemoryError)
"""What the library raises."""


class AscendTensor:
    """Memory on the card."""

    def __init__(self, tensor: Any, spec: TensorSpec, traffic: Traffic) -> None:
        self.tensor = tensor
        self._spec = spec
        self._traffic = traffic
        self.nbytes = int(tensor.data_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one value."""
        return self._spec.dtype

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and type to the card."""
        check_same("device tensor", self._spec, array)
        self._send(array)
        self._traffic.to_device += self.nbytes

    def fill_zeros(self) -> None:
        """Clear it; a part of allocating, so not counted as traffic."""
        self._send(np.zeros(self.shape, self.dtype))

    def _send(self, array: Array) -> None:
        try:
            self.tensor.set_data_from_numpy(np.ascontiguousarray(array))
        except REFUSALS as error:
            raise BackendFailed(f"mindspore_lite: copy to the card failed: {error}") from error

    def read(self) -> Array:
        """Copy the values from the card into a new array."""
        found = np.empty(self.shape, self.dtype)
        self.read_into(found)
        return found

    def read_into(self, array: Array) -> None:
        """Copy the values from the card into `array`."""
        try:
            found = self.tensor.get_data_to_numpy()
        except REFUSALS as error:
            raise BackendFailed(f"mindspore_lite: copy from the card failed: {error}") from error
        np.copyto(array, np.asarray(found).reshape(array.shape))
        self._traffic.from_device += self.nbytes


class StagedTensor:
    """A device tensor that is kept on the host and crosses at every run: how much the card's own
    memory gains is measured against it."""

    def __init__(self, spec: TensorSpec, traffic: Traffic) -> None:
        self._spec = spec
        self._traffic = traffic
        self.array: Array = np.zeros([n or 0 for n in spec.shape], spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one value."""
        return self._spec.dtype

    def write(self, array: Array) -> None:
        """Take new values; they cross when a call runs."""
        check_same("device tensor", self._spec, array)
        self.array[...] = array

    def read(self) -> Array:
        """Copy the values."""
        return self.array.copy()


class AscendCall:
    """One gear of a graph with its memory."""

    def __init__(
        self,
        session: AscendSession,
        gear: Gear,
        inputs: Sequence[tuple[Bindable, AscendTensor]],
        outputs: Sequence[tuple[Bindable, AscendTensor]],
    ) -> None:
        self._session = session
        self._gear = gear
        self._uploads = [(a, t) for a, t in inputs if isinstance(a, np.ndarray)]
        self._downloads = [(a, t) for a, t in outputs if isinstance(a, np.ndarray)]
        self._inputs = [tensor.tensor for _, tensor in inputs]
        self._outputs = [tensor.tensor for _, tensor in outputs]
        self.bytes_up = host_bytes(array for array, _ in inputs)
        self.bytes_down = host_bytes(array for array, _ in outputs)
        """What crosses at each run, either way."""

    def run(self) -> None:
        """Send the host inputs, run on the card, fetch the host outputs."""
        self._session.shift(self._gear)
        for array, tensor in self._uploads:
            tensor.write(array)  # counts the bytes
        self._session.predict(self._inputs, self._outputs)
        for array, tensor in self._downloads:
            tensor.read_into(array)


class AscendSession:
    """One artifact."""

    def __init__(self, backend: AscendBackend, model: Any, path: Path) -> None:
        self._backend = backend
        self._model = model
        self._name = path.name
        self._inputs = list(model.get_inputs())
        self.gears = self._named_gears()
        """Gears that the artifact names; None where the library does not say."""
        self._current: Gear | None = None
        self._outputs: dict[Gear, dict[str, TensorSpec]] = {}
        self._own: dict[tuple[Gear, str], AscendTensor] = {}
        self.traffic = Traffic()

    @property
    def own_bytes(self) -> int:
        """Memory on the card that stands in for host arrays."""
        return sum(tensor.nbytes for tensor in self._own.values())

    def bind(self, inputs: Tensors, outputs: Tensors) -> AscendCall:
        """Bind memory to every input and output; the shapes of the inputs choose the gear.

        Raises:
            BackendFailed: The artifact has no such gear, or something does not fit it.
        """
        self._backend.check_thread()
        missing = [tensor.name for tensor in self._inputs if tensor.name not in inputs]
        if missing:
            raise BackendFailed(f"input {missing[0]!r} of {self._name} is not bound")
        gear = tuple(tuple(inputs[tensor.name].shape) for tensor in self._inputs)
        if self.gears is not None and len(self.gears) == 1:
            (gear,) = self.gears  # nothing to choose: the check below names what does not fit
        self.shift(gear)
        wanted = {
            tensor.name: TensorSpec(_numpy_type(tensor.dtype), shape)
            for tensor, shape in zip(self._inputs, gear, strict=True)
        }
        given = self._outputs[gear]
        check_binding(wanted, given, inputs, outputs)
        return AscendCall(
            self, gear, self._on_card(gear, wanted, inputs), self._on_card(gear, given, outputs)
        )

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> AscendTensor | StagedTensor:
        """Allocate a device tensor of zeros, for all sessions of the backend."""
        spec = TensorSpec(np.dtype(dtype), tuple(shape))
        if not self._backend.device_buffers:
            return StagedTensor(spec, self.traffic)
        tensor = self._backend.allocate(spec, self.traffic)
        tensor.fill_zeros()
        return tensor

    def shift(self, gear: Gear) -> None:
        """Bring the model to a gear; at the first visit also learn its outputs."""
        self._backend.check_thread()
        if self._current == gear:
            return
        if self.gears is not None and gear not in self.gears:
            have = "; ".join(show_shapes(each) for each in self.gears)
            names = " ".join(tensor.name for tensor in self._inputs[:SHOWN])
            raise BackendFailed(
                f"{self._name} has no gear {show_shapes(gear)} ({names}); it has {have}: "
                "convert the bundle again with this gear"
            )
        self._current = None  # a resize that fails leaves nobody knows what
        try:
            self._model.resize(self._inputs, [list(shape) for shape in gear])
            if gear not in self._outputs:
                self._outputs[gear] = {
                    meta.name: TensorSpec(
                        _numpy_type(meta.dtype), tuple(int(n) for n in meta.shape)
                    )
                    for meta in self._model.get_outputs()
                }
        except REFUSALS as error:
            raise BackendFailed(
                f"mindspore_lite: {self._name}, gear {show_shapes(gear)}: {error}"
            ) from error
        self._current = gear

    def predict(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Run at the current gear, from tensors on the card into tensors on the card."""
        try:
            self._model.predict(inputs, outputs=outputs)
        except REFUSALS as error:
            raise BackendFailed(f"mindspore_lite: {self._name}: {error}") from error

    def _on_card(
        self, gear: Gear, specs: Mapping[str, TensorSpec], given: Tensors
    ) -> list[tuple[Bindable, AscendTensor]]:
        """Pair what was given with its tensor on the card, in the graph's order."""
        pairs: list[tuple[Bindable, AscendTensor]] = []
        for name, spec in specs.items():
            bound = given[name]
            if isinstance(bound, StagedTensor):
                bound = bound.array
            if isinstance(bound, AscendTensor):
                pairs.append((bound, bound))
                continue
            if not isinstance(bound, np.ndarray):
                raise BackendFailed(f"{name!r} is a {type(bound).__name__} of another backend")
            if (gear, name) not in self._own:
                self._own[gear, name] = self._backend.allocate(spec, self.traffic)
            pairs.append((bound, self._own[gear, name]))
        return pairs

    def _named_gears(self) -> tuple[Gear, ...] | None:
        if not self._backend.features["model_info"]:
            return None
        try:
            names, gears = parse_gears(
                str(self._model.get_model_info("input_shape")),
                str(self._model.get_model_info("dynamic_dims")),
            )
        except (RuntimeError, ValueError):
            return None  # how the library writes these texts is not documented; resize will tell
        return gears if list(names) == [tensor.name for tensor in self._inputs] else None


class AscendBackend:
    """Loads artifacts for one card.

    Args:
        device: `ascend:<number>`.
        library: Instead of the installed `mindspore_lite`.
        device_buffers: False keeps device tensors on the host, for comparisons only.
    """

    name = "mindspore_lite"
    target: str | None = "mindspore-ascend"
    compiles_shapes = True

    def __init__(
        self, device: str = "ascend:0", library: Any = None, *, device_buffers: bool = True
    ) -> None:
        kind, _, number = device.partition(":")
        if kind != "ascend" or not (number or "0").isdigit():
            raise BackendUnavailable(f"found device {device!r}, expected ascend:<number>")
        if library is None:
            try:
                library = importlib.import_module("mindspore_lite")
            except ImportError as error:
                raise BackendUnavailable(
                    f"mindspore_lite cannot be imported ({error}); install the vendor's wheel for "
                    "this Python and source CANN's set_env.sh, see docs/ascend.md"
                ) from error
        self.device = device
        self.device_buffers = device_buffers
        self.device_id = int(number or 0)
        self.library = library
        self.version = str(getattr(library, "__version__", "unknown"))
        self.features = probe(library)
        missing = [name for name in NEEDED if not self.features[name]]
        if missing:
            raise BackendUnavailable(
                f"mindspore_lite {self.version} lacks {', '.join(missing)}, which {device} needs; "
                "install the vendor's wheel 2.7 or later, see docs/ascend.md"
            )
        logger.info(
            "mindspore_lite found version=%s device=%s features=%s",
            self.version,
            device,
            ",".join(name for name, there in self.features.items() if there),
        )
        self._owner = threading.get_ident()
        self._sessions: dict[Path, AscendSession] = {}
        self._groups: dict[tuple[Path, ...], Any] = {}

    def share_workspace(self, paths: Sequence[Path]) -> bool:
        """Let graphs that never run at the same time use one workspace; before they are loaded.

        Returns:
            Whether the library can. Asking again for the same graphs changes nothing.

        Raises:
            BackendFailed: One is loaded already, or the library refuses.
        """
        self.check_thread()
        if tuple(paths) in self._groups:
            return True
        loaded = [path.name for path in paths if path in self._sessions]
        if loaded:
            raise BackendFailed(f"{loaded[0]} is loaded already; share its workspace before that")
        if not self.features["model_group"]:
            return False
        lite = self.library
        try:
            group = lite.ModelGroup(lite.ModelGroupFlag.SHARE_WORKSPACE)
            group.add_model([str(path) for path in paths])
            group.cal_max_size_of_workspace(lite.ModelType.MINDIR, self._context())
        except REFUSALS as error:
            raise BackendFailed(f"mindspore_lite: shared workspace refused: {error}") from error
        self._groups[tuple(paths)] = group
        return True

    def load(self, path: Path, *, threads: int) -> AscendSession:
        """Load an artifact with all its gears, once however often it is asked for.

        Args:
            path: A `.mindir`.
            threads: Of no meaning on a card.
        """
        self.check_thread()
        if path in self._sessions:
            return self._sessions[path]
        lite = self.library
        model = lite.Model()
        try:
            model.build_from_file(str(path), lite.ModelType.MINDIR, self._context())
            self._sessions[path] = AscendSession(self, model, path)
        except REFUSALS as error:
            raise BackendFailed(
                f"mindspore_lite cannot build {path} for {self.device}: {error}; it is truncated, "
                "or made for another chip or version: convert the bundle again"
            ) from error
        return self._sessions[path]

    def allocate(self, spec: TensorSpec, traffic: Traffic) -> AscendTensor:
        """Reserve memory on the card; its contents are unknown."""
        self.check_thread()
        kind = getattr(self.library.DataType, spec.dtype.name.upper())
        try:
            tensor = self.library.Tensor(shape=list(spec.shape), dtype=kind, device=self.device)
        except REFUSALS as error:
            raise BackendFailed(
                f"mindspore_lite: no room for {spec} on the card: {error}"
            ) from error
        return AscendTensor(tensor, spec, traffic)

    def close(self) -> None:
        """Let go of every artifact; memory on the card goes with the last call that uses it."""
        self._sessions.clear()
        self._groups.clear()

    def check_thread(self) -> None:
        """Refuse every thread but the one that made the backend."""
        if threading.get_ident() != self._owner:
            raise BackendFailed(f"{self.device} belongs to another thread of this process")

    def _context(self) -> Any:
        context = self.library.Context()
        context.target = ["ascend"]
        context.ascend.device_id = self.device_id
        return context


def _numpy_type(kind: Any) -> np.dtype[Any]:
    """The library's DataType as numpy's."""
    dtype: np.dtype[Any] = np.dtype(kind.name.lower())
    return dtype
