"""A stand-in for llama-swap: what its documentation says of /v1/models, /running, /unload, /upstream/MODEL/… and of requests by
`model`, for one model at a time: another one is started when the requests of the one that runs have ended, and that one is stopped."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stack import free_port

BY_BODY = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings",
           "/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/infill", "/completion")
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "server", "date")


class SwapStandIn:
    def __init__(self, port, models, start):
        """`start(name, port)` starts a server and returns when it answers; it has stop() and kill()."""
        self.port = port
        self.models = models
        self.start = start
        self.starter = ThreadPoolExecutor(1)  # a server dies with the thread that started it: not in that of a connection
        self.started = []  # names, in order
        self.before = lambda name, target: None   # called with each call for a model, before it takes its turn
        self.entered = lambda name, target: None  # and when it has it
        self.turn = threading.Condition()
        self.current = None  # (name, server)
        self.busy = 0        # requests that the current one serves
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each call takes 40 ms, and a state of 200 tokens is not worth a save

            def log_message(self, *_):
                pass

            def do_GET(self):
                stand_in.handle(self)

            do_POST = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def running(self):
        with self.turn:
            return [self.current[0]] if self.current else []

    def kill(self):
        self.server.shutdown()
        self.server.server_close()
        if self.current:
            self.current[1].kill()
        self.starter.shutdown()

    def unload(self):
        with self.turn:
            self.turn.wait_for(lambda: self.busy == 0)
            if self.current:
                self.current[1].stop()
            self.current = None

    def enter(self, name):
        """Returns the server of `name`; the caller calls leave()."""
        with self.turn:
            if self.current is None or self.current[0] != name:
                self.turn.wait_for(lambda: self.busy == 0)
            if self.current is None or self.current[0] != name:
                if self.current:
                    self.current[1].stop()
                self.started.append(name)
                self.current = (name, self.starter.submit(self.start, name, free_port()).result())
            self.busy += 1
            return self.current[1]

    def leave(self):
        with self.turn:
            self.busy -= 1
            self.turn.notify_all()

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = request.path.partition("?")[0]
        if path.startswith("/upstream/"):
            name, _, rest = request.path[len("/upstream/"):].partition("/")
            return self.forward(request, name, "/" + rest, body, "model id required in path")
        if request.command == "POST" and path in BY_BODY:
            try:
                name = json.loads(body).get("model")
            except (ValueError, AttributeError):
                name = None
            if not name:
                return self.answer(request, 400, {"error": "missing or invalid 'model' key"})
            return self.forward(request, name, request.path, body, f"could not find suitable inference handler for {name}")
        if path == "/v1/models":
            return self.answer(request, 200, {"object": "list", "data": [
                {"id": name, "object": "model", "created": 1, "owned_by": "llama-swap"} for name in self.models]})
        if path == "/running":
            return self.answer(request, 200, {"running": [{"model": name, "state": "ready"} for name in self.running()]})
        if path == "/unload":
            self.unload()
            return self.plain(request, 200, b"OK")
        if path == "/health":
            return self.plain(request, 200, b"OK")
        return self.plain(request, 404, b"404 page not found")

    def forward(self, request, name, target, body, unknown):
        if name not in self.models:
            return self.answer(request, 400, {"error": unknown})
        self.before(name, target)
        server = self.enter(name)
        self.entered(name, target)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
            fields = {key: value for key, value in request.headers.items() if key.lower() not in (*HOP_BY_HOP, "host")}
            connection.request(request.command, target, body=body or None, headers=fields)
            answer = connection.getresponse()
            request.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in HOP_BY_HOP:
                    request.send_header(key, value)
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            while piece := answer.read1(65536):
                request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            request.wfile.write(b"0\r\n\r\n")
            connection.close()
        finally:
            self.leave()

    def answer(self, request, status, value):
        self.plain(request, status, json.dumps(value).encode(), "application/json; charset=utf-8")

    def plain(self, request, status, body, kind="text/plain"):
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
