"""Print every final that voiced publishes: subscriber.py [ENDPOINT]"""

import json
import sys

import zmq

subscriber = zmq.Context().socket(zmq.SUB)
subscriber.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:8766")
subscriber.subscribe("final/")
while True:
    _topic, body = subscriber.recv_multipart()
    final = json.loads(body)
    print(final["stream"], final["language"], final["text"], flush=True)
