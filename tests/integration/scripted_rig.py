"""A scripted backend with Cairn in front of it, and clients on plain sockets, for the tests of what no real server does on demand."""

import contextlib
import json
import os
import random
import re
import threading

from scripted_backend import ScriptedBackend
from stack import Cairn, call, connect, free_port, wait_until

# A restore must pay: the scripted backend says that a prompt token takes a millisecond.
LONG = 1500


def prompt(count, seed):
    """`count` bytes; another seed, another prompt."""
    return random.Random(seed).choices(range(32, 127), k=count)


class Rig:
    """A scripted backend with Cairn in front of it."""

    def __init__(self, folder, watch_log):
        self.folder = folder
        self.slot_dir = folder / "slots"
        self.state_dir = folder / "state"
        self.slot_dir.mkdir()
        self.state_dir.mkdir()
        self.backend_port = free_port()
        self.cairn_port = free_port()
        self.backend = None
        self.cairn = None
        self.asked = 0  # of this Cairn
        self.interval = "512"
        self.flags = ()
        self.own_key = None
        self.log = folder / "cairn.log"
        watch_log("cairn", self.log)

    def start_backend(self, *, saving=True, **options):
        self.backend = ScriptedBackend(self.backend_port, self.slot_dir if saving else None, **options)
        return self.backend

    def start_cairn(self, phase="ready"):
        flags = ("--checkpoint-interval", self.interval, "--log-level", "debug", *self.flags)
        self.cairn = Cairn(self.cairn_port, self.backend_port, self.slot_dir, self.state_dir, self.log, flags,
                           own_key=self.own_key)
        self.asked = 0
        self.cairn.wait_phase(phase)
        return self.cairn

    def start(self, phase="ready", **options):
        self.start_backend(**options)
        self.start_cairn(phase)
        self.backend.forget_calls()
        return self.backend

    def post(self, body, path="/completion", timeout=60):
        self.asked += 1
        return call(self.cairn_port, "POST", path, body, timeout=timeout)

    def open(self, body, path="/completion"):
        self.asked += 1
        return open_request(self.cairn_port, body, path)

    @contextlib.contextmanager
    def streaming(self, body, path="/completion", past_cairn=False):
        """A stream past its first chunk: the slot it has is in use. It ends with the block."""
        self.backend.hold_stream = hold = threading.Event()
        body = {**body, "stream": True}
        client = open_request(self.backend_port, body, path) if past_cairn else self.open(body, path)
        read_until(client, b"data: ")
        self.backend.hold_stream = None
        try:
            yield
        finally:
            hold.set()
            read_until(client, b"[DONE]")
            client.close()

    def ask(self, tokens, n_predict=2, **more):
        """A completion that must succeed."""
        answer = self.post({"prompt": tokens, "n_predict": n_predict, **more})
        assert answer.status == 200, answer.body
        return answer.json()

    def right(self, tokens, **more):
        """Whether the answer is that of the prompt alone."""
        return self.ask(tokens, **more)["content"] == self.backend.expected(tokens)

    def settle(self):
        self.cairn.settle()

    def latest(self):
        """What Cairn tells of the latest request (of at most 32), once it is done with all: their clients have their answers before."""
        wait_until(lambda: len(self.cairn.status()["latest_requests"]) == self.asked, "Cairn is done with all")
        return self.cairn.status()["latest_requests"][0]

    def client_calls(self):
        """What reached the backend for clients: no pieces, no washes and nothing of a probe."""
        paths = ("/completion", "/v1/chat/completions")
        return self.backend.of(lambda made: made.path in paths and not made.is_piece and not made.is_wash and "n_probs" not in made.body)

    def descriptors(self):
        """What Cairn has open."""
        found = []
        for name in os.listdir(f"/proc/{self.cairn.child.pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{self.cairn.child.pid}/fd/{name}"))
        return found

    def sockets(self):
        return sum(name.startswith("socket:") for name in self.descriptors())

    def wait_free(self, seconds=10):
        def free():
            status = self.cairn.status()
            return status["queue"]["leased"] == 0 and status["queue"]["waiting"] == 0
        wait_until(free, "no slot is leased", seconds)

    def close(self):
        # Whatever a test still holds is let go first, so that Cairn can end in peace.
        if self.backend is not None:
            for event in (self.backend.hold_prefill, self.backend.hold_stream, self.backend.hold_save, self.backend.hold_restore,
                          self.backend.hold_slots, self.backend.hold_props):
                if event is not None:
                    event.set()
        try:
            if self.cairn is not None:
                self.cairn.stop()
        finally:
            if self.cairn is not None:
                self.cairn.kill()
            if self.backend is not None:
                self.backend.stop()


def open_request(port, body, path="/completion"):
    """Sends a request and leaves the connection open; close the socket to leave."""
    data = json.dumps(body).encode()
    client = connect(port)
    client.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                   % (path.encode(), len(data)) + data)
    return client


def read_until(client, marker):
    got = b""
    while marker not in got:
        piece = client.recv(65536)
        assert piece, f"the connection ended before {marker!r}: {got!r}"
        got += piece
    return got


def told(got):
    """The contents of a stream, put together."""
    return "".join(json.loads(event)["content"] for event in re.findall(rb"data: (\{.*\})", got))


def read_all(client):
    got = b""
    while True:
        try:
            piece = client.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece
