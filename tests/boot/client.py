"""Runs inside the container, with the installed product's Python: one stream, its messages as JSON.

Usage: client.py TARGET SECONDS [FILE.wav]

TARGET is `PORT` on loopback or the path of a Unix socket. SECONDS of noise (or the file) are sent
in real time from 10 s on, else at once. A refused connection is an error; a refused stream
(HTTP 503) is tried again for 30 s, as a client should.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import wave
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

RATE_HZ = 16_000
BLOCK = 640


def open_stream(target: str) -> ClientConnection:
    """Connect; wait while the daemon says that it is not ready."""
    deadline_s = time.monotonic() + 30
    while True:
        try:
            if target.isdecimal():
                url = f"ws://127.0.0.1:{target}/v1/stream"
                return connect(url, proxy=None, compression=None)
            return unix_connect(target, "ws://localhost/v1/stream", compression=None)
        except InvalidStatus as refused:
            if refused.response.status_code != 503 or time.monotonic() > deadline_s:
                raise
            print(json.dumps({"type": "refused", "status": 503}), flush=True)
            time.sleep(0.2)


def sound(seconds: float, file: str | None) -> bytes:
    """Bursts of noise, 1 s each with 1 s of silence behind it, or what is recorded in the file."""
    if file is not None:
        with wave.open(file) as recording:
            assert (recording.getframerate(), recording.getnchannels()) == (RATE_HZ, 1)
            return recording.readframes(recording.getnframes()) + bytes(2 * RATE_HZ * 2)
    chance = random.Random(7)
    burst = b"".join(
        chance.randint(-20_000, 20_000).to_bytes(2, "little", signed=True) for _ in range(RATE_HZ)
    )
    return (burst + bytes(2 * RATE_HZ)) * max(1, round(seconds / 2))


def send(client: ClientConnection, pcm: bytes, *, is_live: bool) -> None:
    """Send all of it; the daemon may end the connection in between."""
    try:
        for start in range(0, len(pcm), BLOCK):
            client.send(pcm[start : start + BLOCK])
            if is_live:
                time.sleep(BLOCK / 2 / RATE_HZ)
        client.send('{"type":"stop"}')
    except ConnectionClosed:
        pass


def main(target: str, seconds: str, file: str | None = None) -> None:
    """Run one stream to its end."""
    pcm = sound(float(seconds), file)
    with open_stream(target) as client:
        client.send(json.dumps({"type": "start", "v": 1, "audio": {}, "language": "en"}))
        sending = threading.Thread(
            target=send, args=(client, pcm), kwargs={"is_live": float(seconds) >= 10}
        )
        sending.start()
        code: Any = None
        try:
            for text in client:
                print(text, flush=True)
        except ConnectionClosed as closed:
            code = closed.code
        else:
            code = client.protocol.close_code
        print(json.dumps({"type": "closed", "code": code}), flush=True)
        sending.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
