"""Clients and backends that stall, cut, corrupt, split, half-close, read slowly or come by the hundred: every answer is right or
an error that says so, and nothing of Cairn's stays behind. CAIRN_FULL: every byte of the exchanges is a place to cut, and more
corruptions."""

import asyncio
import hashlib
import json
import os
import random
import socket
import threading

import pytest

from scripted_rig import LONG, open_request, prompt, read_until
from stack import call, connect, free_port, full_run, wait_until
from tcp_gate import TcpGate


class Watched:
    """Compares what Cairn holds before and after."""

    def __init__(self, rig):
        self.rig = rig
        rig.settle()
        self.files = self.open_files()

    def open_files(self):
        return sorted(name for name in self.rig.descriptors() if not name.startswith("socket:"))

    def state_files(self):
        return [path.name for path in self.rig.slot_dir.iterdir() if path.name != "cairn.lock"]

    def assert_nothing_left(self, connections=16):
        """`connections`: that the pool may keep, listeners included."""
        self.rig.settle()
        wait_until(lambda: self.open_files() == self.files, "every file is closed", 10)
        wait_until(lambda: self.rig.sockets() <= connections, f"connections are closed, of {self.rig.sockets()}", 10)
        # A probe of a backend that hung up, or a save that a client left behind, may still be under way.
        wait_until(lambda: len(self.state_files()) == self.rig.cairn.status()["store"]["checkpoints"], "every file has its entry", 10)


def through_gate(port, request, whole):
    """What comes back for raw bytes, until the end of the connection or `whole(got)`."""
    with connect(port) as client:
        got = b""
        try:
            client.sendall(request)
            while not whole(got):
                piece = client.recv(65536)
                if not piece:
                    break
                got += piece
        except ConnectionError:
            pass
        return got


def request_bytes(body, path="/completion"):
    data = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n")
    return head.encode() + data


def ended(got):
    return got.endswith(b"0\r\n\r\n")


# --- the gate on the client's side ------------------------------------------------------------------------

def test_requests_split_at_every_byte_get_the_same_answer(rig):
    backend = rig.start(state_version=4)
    request = request_bytes({"prompt": "abc", "n_predict": 2, "stream": True})
    expected = backend.expected(list(b"abc")).encode()
    watched = Watched(rig)
    at_byte = [0]

    def script(side, at, data):
        cut = at_byte[0] - at
        return [data[:cut], data[cut:]] if side == "up" and 0 < cut < len(data) else [data]

    gate = TcpGate(free_port(), rig.cairn_port, script)
    try:
        for at_byte[0] in range(1, len(request)):
            got = through_gate(gate.port, request, ended)
            assert ended(got) and expected[:8] in got and expected[8:] in got, at_byte
    finally:
        gate.close()
    watched.assert_nothing_left()


def test_requests_cut_at_every_byte_leave_nothing_behind(rig):
    backend = rig.start(state_version=4)
    request = request_bytes({"prompt": "abc", "n_predict": 2, "stream": True})
    watched = Watched(rig)
    for at in range(0, len(request), 1 if full_run() else 3):
        with socket.create_connection(("127.0.0.1", rig.cairn_port), timeout=30) as client:
            client.sendall(request[:at])
    watched.assert_nothing_left()
    assert backend.of(lambda made: made.path == "/completion") == [], "a request that never came whole was sent"
    assert rig.right(list(b"abc"))


def test_clients_that_stall_in_the_middle_hold_up_nobody(rig):
    backend = rig.start(state_version=4)
    watched = Watched(rig)
    request = request_bytes({"prompt": "abc", "n_predict": 2})
    stalled = []
    for at in (1, 20, len(request) // 2, len(request) - 1) * 5:
        client = connect(rig.cairn_port)
        client.sendall(request[:at])
        stalled.append((client, request[at:]))
    assert rig.right(prompt(300, 1)), "the only slot is not theirs yet"
    for client, rest in stalled:
        client.sendall(rest)
        assert backend.expected(list(b"abc")).encode() in read_until(client, b"timings")
        client.close()
    watched.assert_nothing_left()


def test_corrupted_requests_get_an_answer_or_an_error(rig):
    rig.start(state_version=4)
    request = request_bytes({"prompt": "abc", "n_predict": 2})
    watched = Watched(rig)
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(1000 if full_run() else 150):
        bad = bytearray(request)
        bad[source.randrange(len(bad))] = source.randrange(256)
        with socket.create_connection(("127.0.0.1", rig.cairn_port), timeout=30) as client:
            client.sendall(bad)
            client.shutdown(socket.SHUT_WR)  # a longer length than sent must not hang
            got = b""
            try:
                while piece := client.recv(65536):
                    got += piece
            except ConnectionError:
                pass
        assert not got or got.startswith(b"HTTP/1.1 "), (bad, got)
    watched.assert_nothing_left()
    assert rig.right(prompt(300, 1))


# --- the gate between Cairn and the backend ---------------------------------------------------------------

@pytest.fixture
def gated(rig):
    """Cairn in front of a gate in front of the backend. The gate's script may be set at any time."""
    backend_port = free_port()
    gate_port, rig.backend_port = rig.backend_port, backend_port
    rig.start_backend(state_version=4)
    gate = TcpGate(gate_port, backend_port)
    rig.backend_port = gate_port  # what Cairn gets to know
    try:
        rig.start_cairn()
        rig.backend.forget_calls()
        yield rig, gate
        gate.script = lambda side, at, data: [data]
        rig.close()
    finally:
        gate.close()


def test_answers_split_at_every_byte_are_the_same(gated):
    rig, gate = gated
    tokens = prompt(300, 1)
    body = {"prompt": tokens, "n_predict": 2, "stream": True}
    gate.script = lambda side, at, data: [bytes([byte]) for byte in data] if side == "down" else [data]
    watched = Watched(rig)
    expected = rig.backend.expected(tokens)
    for _ in range(5):
        got = through_gate(rig.cairn_port, request_bytes(body), ended)
        assert got.startswith(b"HTTP/1.1 200")
        text = dechunk(got)
        assert expected[:8].encode() in text and expected[8:].encode() in text and text.endswith(b"data: [DONE]\n\n")
    watched.assert_nothing_left()


def test_answers_cut_at_every_byte_never_look_whole(gated):
    rig, gate = gated
    tokens = prompt(100, 1)  # too short for pieces and saves: what is cut is the client's own exchange
    request = request_bytes({"prompt": tokens, "n_predict": 2, "stream": True})
    whole = through_gate(rig.cairn_port, request, ended)
    assert ended(whole)
    watched = Watched(rig)
    limit = [0]

    def script(side, at, data):
        if side == "up":
            return [data]
        if at == 0 and b"text/event-stream" in data or at > 0:
            return [data] if at + len(data) <= limit[0] else [data[:max(0, limit[0] - at)], None]
        return [data]

    # A fresh connection for each: `at` counts from the beginning of one.
    for limit[0] in range(0, 900, 1 if full_run() else 11):
        gate.script = lambda side, at, data: [data]
        rig.cairn.wait_phase("ready")
        gate.script = script
        got = through_gate(rig.cairn_port, request, ended)
        assert got.startswith((b"HTTP/1.1 200", b"HTTP/1.1 502")), got
        if got.startswith(b"HTTP/1.1 200") and ended(got):
            assert b"[DONE]" in got
    gate.script = lambda side, at, data: [data]
    rig.cairn.wait_phase("ready")
    watched.assert_nothing_left()
    assert rig.right(tokens)


def test_corrupted_answers_never_take_cairn_down(gated):
    rig, gate = gated
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    source = random.Random(seed)

    def script(side, at, data):
        bad = bytearray(data)
        if side == "down":
            bad[source.randrange(len(bad))] = source.randrange(256)
        return [bytes(bad)]

    watched = Watched(rig)
    for number in range(300 if full_run() else 12):
        gate.script = script
        got = through_gate(rig.cairn_port, request_bytes({"prompt": prompt(100, number), "n_predict": 2}),
                           lambda so_far: b"\r\n\r\n" in so_far)
        assert got == b"" or got.startswith(b"HTTP/1.1 "), got
        gate.script = lambda side, at, data: [data]
        gate.cut()
        rig.cairn.wait_phase("ready")
    watched.assert_nothing_left()
    tokens = prompt(LONG, 1)
    assert rig.right(tokens)


def test_the_status_is_text_whatever_bytes_an_error_quotes(gated):
    rig, gate = gated
    gate.script = lambda side, at, data: [data.replace(b" 200 OK", b" 500 OK").replace(b'{"', b'{\xab\x01')] if side == "down" else [data]
    rig.cairn.stop()
    rig.start_cairn("connecting")
    trouble = wait_until(lambda: rig.cairn.status()["backend"].get("trouble"), "the trouble is told")  # json.loads wants UTF-8
    assert "{??" in trouble


def test_a_garbled_probe_does_not_end_caching_for_good(gated):
    rig, gate = gated
    asked = threading.Event()

    def script(side, at, data):
        if side == "up" and b'"n_probs"' in data:
            asked.set()
        return [data.replace(b'"content"', b'"content"!')] if side == "down" and asked.is_set() else [data]

    gate.script = script
    rig.cairn.stop()
    rig.start_cairn("plain")
    assert asked.is_set()
    tokens = prompt(LONG, 1)
    gate.script = lambda side, at, data: [data]
    assert rig.post({"prompt": tokens, "n_predict": 2}).status == 200
    rig.cairn.wait_phase("ready")
    assert rig.right(tokens)


def test_a_stalled_backend_holds_up_only_those_who_want_it(gated):
    rig, gate = gated
    tokens = prompt(300, 1)
    assert rig.right(tokens)
    rig.settle()
    watched = Watched(rig)
    stall = threading.Event()
    gate.stall = stall
    clients = [open_request(rig.cairn_port, {"prompt": tokens, "n_predict": 2}) for _ in range(5)]
    for _ in range(20):
        assert call(rig.cairn_port, "GET", "/cairn/status", timeout=10).status == 200
    for client in clients[1:]:
        client.close()
    stall.set()
    gate.stall = None
    assert rig.backend.expected(tokens).encode() in read_until(clients[0], b"timings")
    clients[0].close()
    watched.assert_nothing_left()


# --- half-closed clients ----------------------------------------------------------------------------------

def half_closed(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while piece := client.recv(65536):
            got += piece
        return got


def test_half_closed_client_gets_what_is_answered_at_once(rig):
    """It got nothing at all: `printf ... | nc -N` works with llama-server."""
    rig.start(state_version=4)
    assert half_closed(rig.cairn_port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b'{"status": "ok"}')
    two = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    assert half_closed(rig.cairn_port, two).count(b"HTTP/1.1 200") == 2


def test_half_closed_client_of_a_stream_has_left(rig):
    backend = rig.start(state_version=4)
    backend.hold_stream = threading.Event()
    got = half_closed(rig.cairn_port, request_bytes({"prompt": prompt(300, 1), "n_predict": 2, "stream": True}))
    assert not ended(got)
    rig.wait_free(15)


# --- what others have left in a slot ----------------------------------------------------------------------

@pytest.mark.parametrize("step", ["queued", "saving", "prefill"])
def test_client_that_leaves_destroys_no_unsaved_state(rig, step):
    """One that came for the only slot, whose state was not saved yet."""
    backend = rig.start(state_version=4)
    begun = prompt(LONG, 1)
    assert rig.right(begun)  # a conversation: what has gone on once is worth saving
    rig.settle()
    backend.forget_calls()
    first = begun + prompt(LONG, 4)
    backend.hold_stream = threading.Event()
    backend.hold_save = threading.Event()
    one = open_request(rig.cairn_port, {"prompt": first, "n_predict": 2, "stream": True})
    read_until(one, b"data: ")
    other = open_request(rig.cairn_port, {"prompt": prompt(LONG, 2), "n_predict": 2})
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "the other waits")
    if step == "queued":
        other.close()
        wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 0, "it has left")
    if step == "prefill":
        backend.hold_answers_of = "piece"
        backend.hold_prefill = threading.Event()
    backend.hold_stream.set()
    read_until(one, b"[DONE]")
    one.close()
    wait_until(lambda: backend.slot_actions("save"), "the first one's state is being saved", 10)
    if step == "saving":
        other.close()
    backend.hold_save.set()
    if step == "prefill":
        wait_until(lambda: backend.of(lambda made: made.is_piece and made.body["prompt"][:9] == prompt(LONG, 2)[:9]), "it is computed")
        other.close()
        backend.hold_prefill.set()
    rig.settle()
    computed = backend.computed
    assert rig.right(first + prompt(40, 3))
    assert backend.computed - computed < 640, "the first one's state was lost"


def test_shutdown_ends_within_its_limit(rig):
    """A stream that does not end is cut, and what was computed is saved."""
    config = rig.folder / "cairn.yaml"
    config.write_text("shutdown_limit_s: 3\n")
    rig.flags = ("--config", config)
    backend = rig.start(state_version=4)
    backend.hold_stream = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2, "stream": True})
    read_until(client, b"data: ")
    rig.cairn.stop(30)
    rest = b""
    try:
        while piece := client.recv(65536):
            rest += piece
    except ConnectionError:
        pass
    client.close()
    assert not ended(rest), "it looks whole"
    assert list(rig.slot_dir.glob("*.state")), "what its slot held was worth saving"


# --- slow readers and crowds ------------------------------------------------------------------------------

def make_long(backend, pieces):
    """A kilobyte each, between the first chunk of a stream and its end."""
    backend.filler = [hashlib.sha256(str(number).encode()).hexdigest() * 16 for number in range(pieces)]
    return backend.filler


def resident_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_slow_reader_frees_its_slot_when_the_backend_is_done(rig):
    """It held the one slot until it had read all: everybody else waited for it."""
    backend = rig.start(state_version=4)
    watched = Watched(rig)
    filler = make_long(backend, 24_000)  # 24 MB, more than the kernel takes on the way
    before = resident_mib(rig.cairn.child.pid)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(60)
    slow.connect(("127.0.0.1", rig.cairn_port))
    slow.sendall(request_bytes({"prompt": prompt(300, 1), "n_predict": 2, "stream": True}))
    read = slow.recv(1000)
    assert read
    rig.wait_free(60)
    backend.filler = []
    assert rig.right(prompt(300, 2)), "another is served while the slow one reads"
    if "ASAN_OPTIONS" not in os.environ:  # which keeps what was freed
        assert resident_mib(rig.cairn.child.pid) - before < 16, "its answer is kept in memory"
    got = bytearray(read)
    while not got.endswith(b"0\r\n\r\n"):
        piece = slow.recv(1 << 20)
        assert piece, "the connection ended before the answer did"
        got += piece
    slow.close()
    text = dechunk(bytes(got))
    contents = [json.loads(line[6:])["content"] for line in text.split(b"\n\n") if line.startswith(b"data: {")]
    assert contents[1:-2] == filler
    watched.assert_nothing_left()


def test_slow_reader_that_leaves_takes_its_file_along(rig):
    backend = rig.start(state_version=4)
    watched = Watched(rig)
    make_long(backend, 24_000)
    slow = open_request(rig.cairn_port, {"prompt": prompt(300, 1), "n_predict": 2, "stream": True})
    assert slow.recv(100)
    rig.wait_free(60)
    backend.filler = []
    rig.settle()  # a state that is being saved is open as well
    wait_until(lambda: len(watched.open_files()) == len(watched.files) + 1, "the answer waits in a file")
    slow.close()
    watched.assert_nothing_left()


def dechunk(answer):
    rest = answer.split(b"\r\n\r\n", 1)[1]
    out = []
    at = 0
    while True:
        line = rest.index(b"\r\n", at)
        size = int(rest[at:line], 16)
        if size == 0:
            return b"".join(out)
        out.append(rest[line + 2:line + 2 + size])
        at = line + 2 + size + 2


def test_500_concurrent_streams(rig):
    """Each gets its own answer, whole; a fifth of the clients leave at some step."""
    backend = rig.start(state_version=4, slots=8)
    watched = Watched(rig)
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    leaving = set(random.Random(seed).sample(range(500), 100))

    async def one(number):
        tokens = prompt(60, number)
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.cairn_port)
        writer.write(request_bytes({"prompt": tokens, "n_predict": 2, "stream": True}))
        try:
            if number in leaving:
                await reader.read(number % 300)
                return None
            got = b""
            while not ended(got):
                piece = await asyncio.wait_for(reader.read(65536), 120)
                if not piece:
                    break
                got += piece
            expected = backend.expected(tokens)
            whole = ended(got) and expected[:8].encode() in got and expected[8:].encode() in got
            if not whole:
                print("answer of", number, got)
            return whole
        finally:
            writer.close()

    async def all_of_them():
        return await asyncio.gather(*(one(number) for number in range(500)))

    answers = asyncio.run(all_of_them())
    assert all(answer in (True, None) for answer in answers), [n for n, answer in enumerate(answers) if answer not in (True, None)]
    watched.assert_nothing_left(64)
