"""The converter, as it is found on this machine: the library's Python API, or `converter_lite`."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import voiced.engine.backends.mindspore_lite.converter_job as job_module
from voiced.engine.errors import BackendUnavailable, EngineError

SUFFIX = {"MINDIR_LITE": ".ms", "MINDIR": ".mindir"}

_IMPORT_ROOT = Path(job_module.__file__).parents[4]
_PROGRAM = (
    "import sys; sys.path.append({root!r}); "
    f"from {job_module.__name__} import main; sys.exit(main())"
)


class ConversionFailed(EngineError):
    """The converter gave no artifact, or one that computes wrongly."""

    code = "conversion_failed"


@dataclass(frozen=True, slots=True)
class Form:
    """What the converter is asked for."""

    save_type: str
    optimize: str

    @property
    def options(self) -> dict[str, str]:
        """As they stand in the manifest."""
        return {"save_type": self.save_type, "optimize": self.optimize}


class Converter(Protocol):
    """Makes artifacts for a CPU."""

    library: str
    """Name and version."""

    def convert(self, source: Path, output: Path, form: Form, log: Path) -> Path:
        """Convert an ONNX file; everything the converter says is added to `log`.

        Returns:
            The artifact: `output` with the suffix of the form.

        Raises:
            ConversionFailed: There is none.
        """
        ...


def find_converter(python: Path | None) -> Converter:
    """Return the Python API of the interpreter, or else `converter_lite` on PATH.

    Raises:
        BackendUnavailable: There is neither.
    """
    reason = "no interpreter with mindspore_lite"
    if python is not None:
        try:
            version = _run(python, {}, None)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = f"{python} cannot import mindspore_lite ({_last_line(error)})"
        else:
            if version:
                return PythonConverter(python, f"mindspore_lite {version}")
            reason = f"mindspore_lite of {python} has no Converter"
    if tool := shutil.which("converter_lite"):
        return ToolConverter(Path(tool))
    raise BackendUnavailable(
        f"found {reason} and no converter_lite on PATH; make one with `make mindspore`, or name an "
        "interpreter with engine.mindspore_lite.python"
    )


class PythonConverter:
    """The library's own `Converter`, in a process of its interpreter for each conversion."""

    def __init__(self, python: Path, library: str) -> None:
        self._python, self.library = python, library

    def convert(self, source: Path, output: Path, form: Form, log: Path) -> Path:
        """Convert an ONNX file."""
        job = {"source": str(source), "output": str(output), **form.options}
        try:
            _run(self._python, job, log)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConversionFailed(
                f"the converter failed on {source.name} ({_last_line(error)}); "
                f"it said: {_tail(log)}"
            ) from error
        return _made(output, form, log)


class ToolConverter:
    """The vendor's command."""

    def __init__(self, tool: Path) -> None:
        self._tool = tool
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
        words = (said.stdout or said.stderr).split()
        self.library = f"converter_lite {words[-1] if words else 'unknown'}"

    def convert(self, source: Path, output: Path, form: Form, log: Path) -> Path:
        """Convert an ONNX file."""
        command = [
            str(self._tool),
            "--fmk=ONNX",
            f"--modelFile={source}",
            f"--outputFile={output}",
            f"--saveType={form.save_type}",
            f"--optimize={form.optimize}",
        ]
        with log.open("ab") as file:
            status = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False
            ).returncode
        if status:
            raise ConversionFailed(
                f"converter_lite ended with status {status} on {source.name}; it said: {_tail(log)}"
            )
        return _made(output, form, log)


def _run(python: Path, job: dict[str, str], log: Path | None) -> str:
    command = [str(python), "-I", "-c", _PROGRAM.format(root=str(_IMPORT_ROOT)), json.dumps(job)]
    if log is None:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()
    with log.open("ab") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)
    return ""


def _made(output: Path, form: Form, log: Path) -> Path:
    artifact = output.with_name(output.name + SUFFIX[form.save_type])
    if not artifact.is_file():
        raise ConversionFailed(
            f"the converter reported no error and made no {artifact.name}; it said: {_tail(log)}"
        )
    artifact.chmod(0o644)  # it is written readable by its owner only
    return artifact


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    lines = said.strip().splitlines() if isinstance(said, str) else []
    return lines[-1] if lines else str(error)
