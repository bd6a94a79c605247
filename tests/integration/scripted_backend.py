"""A pretended llama-server whose memory can be looked into, with the bad habits of old builds and a script of mishaps.

It models a recurrent model: a slot's state cannot be cut back, only put back to one of its context checkpoints. Next to the
tokens that a slot *believes* it holds it keeps those it *really* holds, and what it answers is made of the real ones: a
state of another prompt shows in the answer, as it would in a real model's. One byte is one token.

As an old build (`state_version` 2) it keeps a slot's context checkpoints through restore and erase, and its saved files
have none; from version 4 files carry them and restore replaces them (see the hazard in proxy/ARCHITECTURE.md).
"""

import contextlib
import hashlib
import json
import select
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from stack import common

MAGIC = 0x67677371
APPENDIX_MAGIC = 0x504B4353
UBATCH = 512
BEFORE_END = 4
FEWEST = 64
VOCABULARY = 256


@dataclass
class Slot:
    id: int
    used: bool = False
    busy: bool = False
    believed: list = field(default_factory=list)
    real: list = field(default_factory=list)
    checkpoints: list = field(default_factory=list)  # (position, real tokens), ascending
    last_used: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Call:
    """A request as it came."""
    method: str
    path: str
    body: dict
    connection_closed: threading.Event = field(default_factory=threading.Event)  # by Cairn, before the answer ended
    answered: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)  # by the script; which event holds it is settled
    told_busy: int = 0  # slots, by /slots
    headers: str = ""

    @property
    def is_wash(self):
        return self.path == "/completion" and self.body.get("cache_prompt") is False and self.body.get("n_predict") == 0

    @property
    def is_piece(self):
        return self.path == "/completion" and bool(self.body.get("return_progress")) and self.body.get("n_predict") == 0


class ClientGone(Exception):
    pass


def digest(weights, tokens):
    """What a model of these weights answers to exactly these tokens."""
    return hashlib.sha256(repr((weights, list(tokens))).encode()).hexdigest()[:16]


def render(body):
    text = "".join(json.dumps({key: body[key]}) for key in ("tools", "chat_template_kwargs") if key in body)
    text += "".join(f"<{message['role']}>{message['content']}</>" for message in body["messages"])
    return text + ("" if body.get("add_generation_prompt") is False else "<assistant>")


class ScriptedBackend:
    def __init__(self, port, slot_dir, *, slots=1, state_version=2, weights="a", clears_idle=False,
                 keeps_checkpoints=True, n_ctx=32768, tls=None, cell="i", drift=0.0):
        self.port = port
        self.slot_dir = Path(slot_dir) if slot_dir else None
        self.state_version = state_version
        self.weights = weights
        self.clears_idle = clears_idle
        self.keeps_checkpoints = keeps_checkpoints
        self.n_ctx = n_ctx
        self.adapters = []  # as GET and POST /lora-adapters have them; what is computed with others is another state
        self.cell = cell  # how a token's state is packed: as another type of the KV cache would be
        self.drift = drift  # of the log-probabilities, as weights that differ a little have
        self.process = uuid.uuid4().hex
        self.marker = None  # as LLAMA_MEDIA_MARKER sets it, the same for each process
        self.model_path = "/nowhere/model.gguf"
        self.role = "model"  # or "router"
        self.slots = [Slot(number) for number in range(slots)]
        self.calls = []
        self.computed = 0
        self._clock = 0
        self._lock = threading.Lock()
        self._connections = set()
        self.accepted = 0  # connections, ever

        # --- the script: set these at any time
        self.refuse_restore = False     # 400, and the slot is empty afterwards
        self.refuse_save = False        # True: 400; or another status
        self.no_saving = "This server does not support slots action. Start it with `--slot-save-path`"
        self.hold_save = None           # an Event: a slot is not saved before it is set
        self.hold_restore = None        # likewise; it goes on when whoever asked for it has hung up
        self.hold_props = None          # an Event: which process it is, is not told before it is set
        self.hold_slots = None          # likewise what its slots hold
        self.comments = b""             # comes before a client's prompt is computed
        self.misreads = False           # another tokenizer than the one it computes with
        self.filler = []                # contents of events after the first chunk of a client's stream
        self.die_after_chunks = None    # of a client's stream: then the connection is cut
        self.omit_probabilities = 0     # of so many answers
        self.counts_tokens = True       # /v1/messages/count_tokens is there
        self.tells_timings = True       # to clients; pieces are always told
        self.sampled_by = ()            # names of what a request may say that the answer depends on
        self.unseen = ""                # what it puts before each prompt of /v1/messages
        self.hold_prefill = None        # an Event: a prompt is not computed before it is set
        self.hold_stream = None         # an Event: after the first chunk of an answer
        self.hold_answers_of = "client"  # "client": the client's own requests are held; "piece": Cairn's pieces

        self._server = _Server(("127.0.0.1", port), _Handler)
        if tls is not None:
            # Shaken hands with by whoever reads first, not in the thread that accepts.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.backend = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    # --- for tests

    def stop(self):
        """As a process that dies: nobody listens, and every connection is cut."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _cut(connection)
        self._thread.join()

    def expected(self, prompt, weights=None, body=()):
        """`body`: of the request, where what is sampled depends on it."""
        return self.sampled(self.with_adapters(prompt), weights, body)

    def sampled(self, real, weights=None, body=()):
        said = {name: body[name] for name in self.sampled_by if name in body}
        return digest((weights or self.weights, said) if said else weights or self.weights, real)

    def with_adapters(self, tokens):
        """What the adapters make of them."""
        mark = int(sum(adapter["scale"] for adapter in self.adapters)) * 1000
        return [token + mark for token in tokens]

    def of(self, test):
        with self._lock:
            return [call for call in self.calls if test(call)]

    def slot_actions(self, action):
        return self.of(lambda call: call.path == f"/slots/action/{action}")

    def forget_calls(self):
        with self._lock:
            self.calls.clear()

    # --- memory

    def pick(self, wanted, prompt):
        if wanted is not None and wanted >= 0:
            return self.slots[wanted % len(self.slots)]
        idle = [slot for slot in self.slots if not slot.busy] or self.slots
        best = max(idle, key=lambda slot: common(slot.believed, prompt))
        if common(best.believed, prompt) > len(prompt) / 10:
            return best
        return min(idle, key=lambda slot: slot.last_used)

    def start_task(self, slot):
        with self._lock:
            self._clock += 1
            slot.last_used = self._clock
            slot.used = True
            slot.busy = True
            if self.clears_idle:
                for other in self.slots:
                    if other is not slot and not other.busy:
                        other.believed, other.real, other.checkpoints = [], [], []

    def reuse(self, slot, prompt, cache_prompt):
        """Puts the slot back as far as it must; returns how many tokens of the prompt need not be computed."""
        shared = common(slot.believed, prompt) if cache_prompt else 0
        if shared == len(slot.believed) and shared < len(prompt):
            return shared
        limit = min(shared, len(prompt) - 1)
        usable = [point for point in slot.checkpoints if point[0] <= limit]
        position, real = usable[-1] if usable else (0, [])
        slot.checkpoints = usable
        slot.believed = prompt[:position]
        slot.real = list(real)  # an old build does not notice that these are another prompt's
        return position

    def compute(self, slot, prompt, base):
        slot.real = slot.real[:base] + self.with_adapters(prompt[base:])
        slot.believed = list(prompt)
        if self.keeps_checkpoints:
            for back in (BEFORE_END + UBATCH, BEFORE_END):
                at = len(prompt) - back
                if at >= FEWEST and at >= base:
                    slot.checkpoints = [point for point in slot.checkpoints if point[0] < at]
                    slot.checkpoints.append((at, slot.real[:at]))
        with self._lock:
            self.computed += len(prompt) - base

    # --- saved files

    def save(self, slot, name):
        tokens = slot.believed
        state = struct.pack(f"<i{len(slot.real)}{self.cell}", len(slot.real), *slot.real)
        if self.state_version < 4:
            words = tokens
        else:
            words = [-1, 1, len(tokens), *tokens, 0]
        data = struct.pack(f"<3I{len(words)}i", MAGIC, self.state_version, len(words), *words) + state
        if self.state_version >= 4 and slot.checkpoints:
            data += struct.pack("<3I", APPENDIX_MAGIC, 1, len(slot.checkpoints))
            for position, real in slot.checkpoints:
                blob = struct.pack(f"<{len(real)}i", *real)
                data += struct.pack("<qii", position, 0, position - 1)
                data += struct.pack("<Q", len(blob)) + blob + struct.pack("<QQ", 0, 0)
        (self.slot_dir / name).write_bytes(data)
        return len(tokens), len(data)

    def restore(self, slot, name):
        data = (self.slot_dir / name).read_bytes()
        magic, version, count = struct.unpack_from("<3I", data)
        if magic != MAGIC or version != self.state_version or count > self.n_ctx:
            raise ValueError("not a file of this build, or no room")
        words = list(struct.unpack_from(f"<{count}i", data, 12))
        tokens = words if version < 4 else words[3:3 + words[2]]
        at = 12 + 4 * count
        length, = struct.unpack_from("<i", data, at)
        layout = f"<{length}{self.cell}"
        slot.real = list(struct.unpack_from(layout, data, at + 4))
        slot.believed = tokens
        at += 4 + struct.calcsize(layout)
        if version >= 4:
            slot.checkpoints = []
            if at < len(data):
                _, _, points = struct.unpack_from("<3I", data, at)
                at += 12
                for _ in range(points):
                    position, _, _ = struct.unpack_from("<qii", data, at)
                    size, = struct.unpack_from("<Q", data, at + 16)
                    real = struct.unpack_from(f"<{size // 4}i", data, at + 24)
                    slot.checkpoints.append((position, list(real)))
                    at += 24 + size + 16
        return len(tokens), len(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024  # with fewer, the kernel resets some of 500 that come at once

    def handle_error(self, request, client_address):
        pass  # connections are cut on purpose


def _cut(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    @property
    def backend(self):
        return self.server.backend

    def setup(self):
        super().setup()
        with self.backend._lock:
            self.backend._connections.add(self.connection)
            self.backend.accepted += 1

    def finish(self):
        with self.backend._lock:
            self.backend._connections.discard(self.connection)
        super().finish()

    # --- answers

    def reply(self, value, status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, message, status=400, kind="invalid_request_error"):
        self.reply({"error": {"code": status, "message": message, "type": kind}}, status)

    def event(self, value):
        text = value if isinstance(value, str) else json.dumps(value)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def hold(self, event, call):
        """Waits for the event; notices when the other side hangs up."""
        if event is not None:
            call.held.set()
        while event is not None and not event.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.01)
            if readable:
                try:
                    # Of the socket itself, also under TLS: so llama-server looks.
                    gone = socket.socket.recv(self.connection, 1, socket.MSG_PEEK) == b""
                except OSError:
                    gone = True
                if gone:
                    call.connection_closed.set()
                    raise ClientGone

    # --- routes

    def do_GET(self):
        backend = self.backend
        path = urlsplit(self.path).path
        call = Call("GET", path, {})
        with backend._lock:
            backend.calls.append(call)
        if path == "/health":
            self.reply({"status": "ok"})
        elif path == "/props":
            if (hold := backend.hold_props) is not None:
                hold.wait(60)
            self.reply({"total_slots": len(backend.slots), "model_path": str(backend.model_path), "build_info": "b1-scripted",
                        "chat_template": "scripted", "media_marker": backend.marker or f"<__media_{backend.process}__>",
                        "endpoint_slots": True, "endpoint_metrics": True, "is_sleeping": False, "role": backend.role})
        elif path == "/v1/models":
            self.reply({"data": [{"id": "scripted", "meta": {"n_vocab": VOCABULARY, "n_ctx": backend.n_ctx, "n_embd": 8,
                                                             "n_params": 1000, "size": 4000, "ftype": "F32"}}]})
        elif path == "/slots":
            if (hold := backend.hold_slots) is not None:
                hold.wait(60)
            rows = []
            for slot in backend.slots:
                row = {"id": slot.id, "is_processing": slot.busy}
                if slot.used:
                    row["n_prompt_tokens"] = len(slot.believed)
                rows.append(row)
            call.told_busy = sum(row["is_processing"] for row in rows)
            self.reply(rows)
        elif path == "/lora-adapters":
            self.reply(backend.adapters)
        elif path == "/metrics":
            self.reply(f"llamacpp:prompt_tokens_total {backend.computed}\n".encode())
        else:
            self.refuse("File Not Found", 404, "not_found_error")
        call.answered.set()

    def do_POST(self):
        backend = self.backend
        parts = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(data or b"{}")
        except ValueError:
            return self.refuse("parse error")
        path = parts.path
        if path.startswith("/slots/"):
            path = f"/slots/action/{parse_qs(parts.query).get('action', [''])[0]}"
        call = Call("POST", path, body, headers=str(self.headers))
        with backend._lock:
            backend.calls.append(call)
        try:
            if path == "/tokenize":
                pieces = [{"id": byte ^ backend.misreads, "piece": [byte]} for byte in body["content"].encode()]
                self.reply({"tokens": pieces if body.get("with_pieces") else [piece["id"] for piece in pieces]})
            elif path == "/lora-adapters":
                backend.adapters = body
                self.reply({"success": True})
            elif path == "/apply-template":
                self.reply({"prompt": render(body)})
            elif path.startswith("/slots/action/"):
                self.slot_action(parts, body, call)
            elif path == "/v1/messages/count_tokens" and backend.counts_tokens:
                self.reply({"input_tokens": len(self.prompt_of(Call("POST", "/v1/messages", body)))})
            elif path in ("/completion", "/v1/completions", "/v1/chat/completions", "/v1/messages"):
                self.completion(call)
            else:
                self.refuse("File Not Found", 404, "not_found_error")
            call.answered.set()
        except ClientGone:
            self.close_connection = True
        except OSError:
            call.connection_closed.set()
            self.close_connection = True

    def slot_action(self, parts, body, call):
        backend = self.backend
        if backend.slot_dir is None:
            return self.refuse(backend.no_saving, 501, "not_supported_error")
        slot = backend.slots[int(parts.path.split("/")[2]) % len(backend.slots)]
        action = parse_qs(parts.query)["action"][0]
        with slot.lock:
            began = time.monotonic()
            if action == "save":
                if (hold := backend.hold_save) is not None:
                    hold.wait(60)
                if backend.refuse_save:
                    return self.refuse("Unable to save slot", 400 if backend.refuse_save is True else backend.refuse_save)
                count, size = backend.save(slot, body["filename"])
                return self.reply({"id_slot": slot.id, "filename": body["filename"], "n_saved": count, "n_written": size,
                                   "timings": {"save_ms": (time.monotonic() - began) * 1000}})
            if action == "restore":
                try:
                    with contextlib.suppress(ClientGone):
                        self.hold(backend.hold_restore, call)
                    if (hold := backend.hold_restore) is not None:
                        hold.wait(60)
                    if backend.refuse_restore:
                        raise ValueError("refused")
                    count, size = backend.restore(slot, body["filename"])
                except (OSError, ValueError, struct.error):
                    slot.believed, slot.real = [], []
                    return self.refuse("Unable to restore slot, no available space in KV cache or invalid slot save file")
                return self.reply({"id_slot": slot.id, "filename": body["filename"], "n_restored": count, "n_read": size,
                                   "timings": {"restore_ms": (time.monotonic() - began) * 1000}})
            slot.believed, slot.real = [], []
            self.reply({"id_slot": slot.id, "n_erased": 0})

    def prompt_of(self, call):
        if call.path == "/v1/messages":
            system = [{"role": "system", "content": call.body["system"]}] if "system" in call.body else []
            return list((self.backend.unseen + render({"messages": system + call.body["messages"]})).encode())
        if call.path == "/v1/chat/completions":
            return list(render(call.body).encode())
        prompt = call.body["prompt"]
        return list(prompt.encode()) if isinstance(prompt, str) else prompt

    def completion(self, call):
        backend = self.backend
        body = call.body
        prompt = self.prompt_of(call)
        if len(prompt) >= backend.n_ctx:
            return self.refuse("the request exceeds the available context size", 400, "exceed_context_size_error")
        by_client = body.get("n_predict") != 0 and "n_probs" not in body
        self.stream_begun = False
        held = by_client if backend.hold_answers_of == "client" else call.is_piece
        slot = backend.pick(None if call.path == "/v1/messages" else body.get("id_slot"), prompt)
        with slot.lock:
            backend.start_task(slot)
            try:
                base = backend.reuse(slot, prompt, body.get("cache_prompt", True))
                if held and backend.hold_prefill is not None:
                    # Cancelled meanwhile, it keeps the part that it had done.
                    half = prompt[:base + (len(prompt) - base) // 2]
                    slot.real, slot.believed = slot.real[:base] + backend.with_adapters(half[base:]), list(half)
                    if body.get("stream"):
                        self.begin_stream()
                        if body.get("return_progress"):
                            self.event({"content": "", "prompt_progress": {"total": len(prompt), "cache": base,
                                                                           "processed": len(half), "time_ms": 1}})
                    if by_client and backend.comments:
                        self.begin_stream()
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(backend.comments), backend.comments))
                    self.hold(backend.hold_prefill, call)
                backend.compute(slot, prompt, base)
                self.answer(call, slot, prompt, base, by_client)
            finally:
                slot.busy = False

    def begin_stream(self):
        if self.stream_begun:
            return
        self.stream_begun = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def answer(self, call, slot, prompt, base, by_client):
        backend = self.backend
        body = call.body
        text = backend.sampled(slot.real, body=body)
        predicted = body.get("n_predict", body.get("max_tokens", 2))
        timings = {"cache_n": base, "prompt_n": len(prompt) - base, "prompt_ms": (len(prompt) - base) * 1.0,
                   "predicted_n": max(1, predicted), "predicted_ms": 1.0}
        if body.get("stream"):
            self.begin_stream()
            hold_stream = backend.hold_stream  # the same for all of an answer
            for number, piece in enumerate((text[:8], text[8:])):
                if by_client and backend.die_after_chunks is not None and number >= backend.die_after_chunks:
                    _cut(self.connection)
                    raise ClientGone
                if not call.is_piece:
                    self.event({"content": piece, "stop": False})
                if by_client:
                    self.hold(hold_stream, call)
                    for content in backend.filler if number == 0 else ():
                        self.event({"content": content, "stop": False})
            told = {"timings": timings} if backend.tells_timings or call.is_piece else {}
            self.event({"content": "", "stop": True, **told})
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
            return
        answer = {"content": text, "timings": timings}
        if call.path == "/v1/messages":
            answer = {"content": [{"type": "text", "text": text}],
                      "usage": {"cache_read_input_tokens": base, "input_tokens": len(prompt) - base, "output_tokens": predicted}}
        elif call.path != "/completion":
            answer = {"choices": [{"index": 0, "text": text, "message": {"role": "assistant", "content": text}}],
                      "timings": timings}
        if "n_probs" in body:
            if backend.omit_probabilities > 0:
                backend.omit_probabilities -= 1
            else:
                answer["completion_probabilities"] = [{"top_logprobs": self.top(slot.real, body["n_probs"])}]
        self.reply(answer)

    def top(self, real, count):
        seed = int(digest(self.backend.weights, real), 16)
        return [{"id": (seed + 37 * rank) % VOCABULARY, "token": "x", "bytes": [120],
                 "logprob": -0.5 * (rank + 1) - (seed >> 8) % 1000 / 2000.0 - self.backend.drift} for rank in range(count)]
