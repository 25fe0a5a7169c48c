"""A server that is told to stop does so, even where a client never reads what it asked for."""

import json
import socket
import threading
import time

from ragjax.config import Serve
from ragjax.serving import Service, bind, serve


def test_who_does_not_read_holds_up_the_end_no_longer_than_is_allowed(service):
    # Of the same models, since one that was stopped stays so.
    shared = Service(Serve(port=0, drain=0.3))
    shared.models, shared.metrics, shared.stop = service.models, service.metrics, lambda: None
    bound, ready = bind("127.0.0.1", 0), threading.Event()
    # So that little lies between the two.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = threading.Thread(target=serve, args=(shared, bound, ready.set), daemon=True)
    server.start()
    assert ready.wait(10)
    asked = {"prompt": "ab", "n": 16, "max_tokens": 28, "ignore_eos": True, "logprobs": 20, "stream": True}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(bound.getsockname())
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        written, until = service.models["teacher"].scheduler, time.monotonic() + 20
        while not shared.active or written._seated or written._waiting:
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.3)
        assert shared.active == 1
        shared.draining = True
        server.join(timeout=10)
        assert not server.is_alive()
