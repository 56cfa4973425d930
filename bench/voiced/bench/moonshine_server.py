"""A small server around the library moonshine-voice, to measure it as a process like any other.

`python -m voiced.bench.moonshine_server PORT`. A client sends blocks of s16 at 16 kHz, each after
its length in bytes (4 bytes, little endian); length 0 ends the stream. It gets a line of JSON
whenever the library reports a line of text: `line, start_ms, end_ms, text, is_complete`. The
library works inside `add_audio`, every half second of sound (its default), so all streams share one
thread.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_PCM_SCALE = 32_768


def event(line: Any) -> dict[str, Any]:
    """Return what the client is told of a line of the transcript."""
    return {
        "line": int(line.line_id),
        "start_ms": round(1000 * line.start_time),
        "end_ms": round(1000 * (line.start_time + line.duration)),
        "text": str(line.text).strip(),
        "is_complete": bool(line.is_complete),
    }


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    import moonshine_voice
    from moonshine_voice.moonshine_api import ModelArch
    from moonshine_voice.transcriber import Transcriber

    folder = Path(str(moonshine_voice.__file__)).parent / "assets" / "tiny-en"
    transcriber = Transcriber(str(folder), ModelArch.TINY)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = transcriber.create_stream()
        stream.add_listener(lambda each: tell(writer, each))
        stream.start()
        try:
            while size := int.from_bytes(await reader.readexactly(4), "little"):
                block = np.frombuffer(await reader.readexactly(size), "<i2")
                stream.add_audio((block / _PCM_SCALE).tolist(), 16_000)
                await writer.drain()
            stream.stop()
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    def tell(writer: asyncio.StreamWriter, each: Any) -> None:
        line = getattr(each, "line", None)
        if type(each).__name__ in ("LineTextChanged", "LineCompleted") and line is not None:
            writer.write(json.dumps(event(line)).encode() + b"\n")

    listening = await asyncio.start_server(one, "127.0.0.1", port)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
