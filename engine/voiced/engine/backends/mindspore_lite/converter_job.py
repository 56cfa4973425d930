"""One conversion, in the interpreter that has the library: Python 3.7, as the graph server.

`voiced.engine.build.mindspore.tools` starts it with one argument, a JSON object: source (an ONNX
file), output (without suffix), save_type (an attribute of ModelType), optimize. What the library
prints goes where it likes; the exit status says whether it raised. An empty object only asks which
library there is.
"""

from __future__ import annotations

import json
import sys

from voiced.engine.backends.mindspore_lite.runtime import import_library


def main() -> int:
    """Convert, or print the library's version."""
    lite = import_library()
    job = json.loads(sys.argv[1])
    if not job:
        print(lite.__version__ if hasattr(lite, "Converter") else "")
        return 0
    converter = lite.Converter()
    converter.save_type = getattr(lite.ModelType, job["save_type"])
    converter.optimize = job["optimize"]
    converter.convert(lite.FmkType.ONNX, job["source"], job["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
