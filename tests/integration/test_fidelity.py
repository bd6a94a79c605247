"""Cairn against the backend itself, byte by byte: every endpoint that llama-server has, with every method, and large bodies."""

import json

import pytest

from stack import Backend, Cairn, call, free_port, http_connection, quick_run
from test_passthrough import fields, normal

ENDPOINTS = [
    "/health", "/v1/health", "/metrics", "/props", "/api/show", "/models", "/v1/models", "/api/tags", "/completion", "/completions",
    "/v1/completions", "/chat/completions", "/v1/chat/completions", "/api/chat", "/v1/chat/completions/input_tokens",
    "/chat/completions/input_tokens", "/v1/chat/completions/control", "/v1/responses", "/responses", "/v1/responses/input_tokens",
    "/v1/messages", "/v1/messages/count_tokens", "/infill", "/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/reranking",
    "/v1/rerank", "/v1/reranking", "/v1/audio/transcriptions", "/tokenize", "/detokenize", "/apply-template", "/lora-adapters",
    "/slots", "/slots/0", "/slots/0?action=nonsense", "/slots/x?action=save", "/models/load", "/models/unload", "/models/sse",
    "/v1/stream", "/v1/streams/lookup", "/v1/systemone", "/tools", "/cors-proxy", "/", "/index.html", "/bundle.js", "/nowhere",
]
BODIES = {"empty": b"", "object": b"{}", "list": b"[]", "cut": b'{"prompt": "a', "not UTF-8": b'{"prompt": "\xff", "content": "\xff"}',
          "wrong types": b'{"prompt": {}, "messages": 5, "input": {}, "content": {}, "tokens": "x", "documents": 1, "model": [],'
                         b' "max_tokens": 1, "n_predict": 1, "temperature": 0}',
          "deep": b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}"}
CORS = {"Origin": "http://example.com", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fidelity")
    for name in ("slots", "state"):
        (folder / name).mkdir()
    backend = Backend("llama", free_port(), folder / "slots", folder / "backend.log", ("-np", "2", "-c", "8192"))
    cairn = None
    try:
        cairn = Cairn(free_port(), backend.port, folder / "slots", folder / "state", folder / "cairn.log")
        cairn.wait_phase("ready")
        yield backend, cairn
        cairn.stop()
    finally:
        if cairn is not None:
            cairn.kill()
        backend.kill()


def without_numbers(path, body):
    """/metrics, /slots and the usage of a message tell of what was asked before; they are compared without it."""
    if path.startswith(("/metrics", "/slots", "/v1/messages")):
        return bytes(byte for byte in normal(body) if byte not in b"0123456789.e+-")
    return normal(body)


def assert_same(pair, method, path, body=None, headers=None):
    direct, through = (call(process.port, method, path, body, headers, timeout=120) for process in pair)
    where = (method, path, body[:60] if body else body)
    assert through.status == direct.status, (where, direct.body[:300], through.body[:300])
    assert fields(through) == fields(direct), where
    assert through.header("Content-Length") == direct.header("Content-Length") or path.startswith(("/metrics", "/slots")) \
        or direct.status == 200, where
    assert without_numbers(path, through.body) == without_numbers(path, direct.body), where
    return through


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_method_of_every_endpoint(pair, path):
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        assert_same(pair, method, path, headers=CORS)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_bodies_that_mean_nothing_at_every_endpoint(pair, path):
    for body in BODIES.values():
        assert_same(pair, "POST", path, body)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_content_types(pair, kind):
    for path in ("/tokenize", "/v1/audio/transcriptions", "/v1/chat/completions"):
        assert_same(pair, "POST", path, b'{"content": "a"}', {"Content-Type": kind})


LARGE = 64_000_000


def test_64_mb_that_pass_through(pair):
    body = json.dumps({"messages": [{"role": "user", "content": "a way back " * (LARGE // 11)}]}).encode()
    answer = assert_same(pair, "POST", "/apply-template", body)
    assert answer.status == 200 and len(answer.body) > LARGE * 0.99


@pytest.mark.parametrize("chunked", [True] if quick_run() else [False, True])
def test_64_mb_on_a_cached_endpoint(pair, chunked):
    """The body is read whole and goes up with a slot in front, large or not."""
    body = json.dumps({"prompt": "the way back", "n_predict": 1, "temperature": 0, "comment": "a" * LARGE}).encode()
    answers = []
    for process in pair:
        connection = http_connection(process.port, 120)
        pieces = (body[at:at + 100_000] for at in range(0, len(body), 100_000)) if chunked else body
        connection.request("POST", "/completion", pieces, {"Content-Type": "application/json"}, encode_chunked=chunked)
        response = connection.getresponse()
        answers.append((response.status, json.loads(response.read())))
        connection.close()
    (direct, expected), (through, got) = answers
    assert (through, got["content"]) == (direct, expected["content"])
