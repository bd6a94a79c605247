"""What Cairn does not understand, or need not, goes through unchanged: the same bytes as from the backend itself."""

import http.client
import json
import re
import socket

import pytest

from stack import Backend, Cairn, call, connect, free_port, tokens

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A real backend, and Cairn in front of it with small limits from a configuration file."""
    folder = tmp_path_factory.mktemp("passthrough")
    for name in ("slots", "state"):
        (folder / name).mkdir()
    backend = Backend("llama", free_port(), folder / "slots", folder / "backend.log", ("-np", "2", "-c", "8192"))
    cairn = None
    try:
        (folder / "cairn.yaml").write_text("max_body: 200K\nmax_header: 16K\n")
        cairn = Cairn(free_port(), backend.port, folder / "slots", folder / "state", folder / "cairn.log",
                      ("--config", folder / "cairn.yaml"))
        cairn.wait_phase("ready")
        yield backend, cairn
        cairn.stop()
    finally:
        if cairn is not None:
            cairn.kill()
        backend.kill()


def normal(text):
    """Without what differs between any two answers of llama-server itself."""
    text = re.sub(rb'"(id|created|system_fingerprint|id_slot|tokens_cached)":\s*("[^"]*"|-?[0-9]+)', rb'"\1":0', text)
    text = re.sub(rb'"(timings|prompt_tokens_details|prompt_progress)":\s*\{[^{}]*\}', rb'"\1":{}', text)
    # On a busy machine a stream may have comments where it was silent for long, of the backend's or of Cairn's.
    text = re.sub(rb"(?m)^:[^\n]*\n\n", b"", text)
    # Cairn may add the reuse of its own pieces; the counts of the prompt itself stay.
    return re.sub(rb'"(t_[a-z_]+|[a-z_]+_ms|[a-z_]+_per_second)":\s*[0-9.e+-]+', rb'"\1":0', text)


# A token may itself hold brackets and quotes.
TOP_LOGPROBS = re.compile(rb'"top_logprobs":\s*\[(?:[^\[\]"]|"(?:[^"\\]|\\.)*"|\[[0-9, ]*\])*\]', re.DOTALL)
LOGPROB = re.compile(rb'"logprob":\s*(-?[0-9.e+-]+)')


def without_logprobs(text):
    """The second answer goes on from what the first left in the slot: the same tokens, batched differently, are off a little,
    and two unlikely tokens may change places in a list."""
    return LOGPROB.sub(b'"logprob":0', TOP_LOGPROBS.sub(b'"top_logprobs":[]', normal(text)))


def assert_near_logprobs(through, direct):
    through, direct = (LOGPROB.findall(TOP_LOGPROBS.sub(b"", text)) for text in (through, direct))
    pairs = list(zip(through, direct, strict=True))
    assert all(abs(float(one) - float(other)) <= 0.05 for one, other in pairs), pairs


def fields(answer):
    return sorted((name.lower(), value) for name, value in answer.headers if name.lower() not in HOP_BY_HOP)


def both(pair, method, path, body=None, headers=None, prepare=lambda text: text):
    backend, cairn = pair
    direct = call(backend.port, method, path, body, headers)
    through = call(cairn.port, method, path, body, headers)
    assert through.status == direct.status
    assert fields(through) == fields(direct)
    assert prepare(through.body) == prepare(direct.body)
    if prepare is without_logprobs:
        assert_near_logprobs(through.body, direct.body)
    assert (through.header("Content-Length") is None) == (direct.header("Content-Length") is None)
    return through


# --- the same bytes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", ["/health", "/v1/health", "/props", "/v1/models", "/models", "/slots", "/lora-adapters",
                                  "/", "/index.html", "/nowhere", "/v1/nowhere?a=b%20c", "/slots/0", "/cairnish"])
def test_get(pair, path):
    # Two identical questions to the backend, before anything runs in between.
    both(pair, "GET", path, prepare=lambda text: re.sub(rb'"created":[0-9]+', b"", text))


def test_get_compressed(pair):
    both(pair, "GET", "/", headers={"Accept-Encoding": "gzip"})  # the web page, in builds that have one


def test_metrics(pair):
    both(pair, "GET", "/metrics", prepare=lambda text: re.sub(rb"(?m) [0-9.e+naif-]+$", b"", text))


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/props", "/nowhere"])
def test_head(pair, path):
    answer = both(pair, "HEAD", path)
    assert answer.body == b""


@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health", "/nowhere"])
def test_other_methods(pair, method, path):
    both(pair, method, path, headers={"Origin": "http://example.com", "Access-Control-Request-Method": "POST"})


def test_cors_on_an_answer(pair):
    answer = both(pair, "GET", "/v1/models", headers={"Origin": "http://example.com"},
                  prepare=lambda text: re.sub(rb'"created":[0-9]+', b"", text))
    assert answer.header("Access-Control-Allow-Origin") is not None


@pytest.mark.parametrize("path, body", [
    ("/tokenize", {"content": "a cairn marks the way back", "with_pieces": True}),
    ("/detokenize", {"tokens": [300, 301, 302]}),
    ("/apply-template", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/embeddings", {"input": "hello"}),
    ("/embedding", {"content": "hello"}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ("/props", {"default": 1}),
    ("/v1/messages/count_tokens", {"model": "x", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}),
])
def test_post(pair, path, body):
    both(pair, "POST", path, body, prepare=normal)


MALFORMED = [b"", b"{", b"[]", b"null", b"42", b'"text"', b"{}", b'{"prompt"', b'{"prompt": 1e999}', b'{"prompt": {"a": 1}}',
             b'{"prompt": "\xff\xfe"}', b'{"prompt": [[]]}', b'{"prompt": [1e9]}', b'{"prompt": [-5]}',
             b'{"messages": "x"}', b'{"messages": []}', b'{"messages": [{"role": "user"}]}',
             b'{"messages": [{"role": 1, "content": 2}]}', b'{"prompt": "x", "n_predict": "many"}',
             b'{"prompt": "x", "n_predict": 2} trailing', b"\x00\x01\x02",
             b'{"prompt": "x", "prompt": 5}', b'{"messages": [{"role": "user", "content": "x"}], "tools": 5}']


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body.decode("latin-1")[:40] or "empty")
def test_malformed_body(pair, path, body):
    # Some of these the backend takes for good: then a short answer, and the same one each time.
    limited = body.replace(b'{"', b'{"max_tokens": 2, "temperature": 0, "', 1) if body.endswith(b"}") else body
    both(pair, "POST", path, limited, prepare=normal)


CHAT = {"messages": [{"role": "system", "content": "You are brief. " * 30},
                     {"role": "user", "content": "Say something."}], "temperature": 0, "seed": 1, "max_tokens": 6}
LOOK = {"name": "look", "description": "look at it",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}
TOOLS = {**CHAT, "tools": [{"type": "function", "function": LOOK}], "tool_choice": "none"}
COMPLETION = {"prompt": "the way back is marked by stones " * 30, "temperature": 0, "seed": 1, "max_tokens": 6,
              "n_predict": 6}


@pytest.mark.parametrize("extra", [
    {}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"logprobs": True, "top_logprobs": 3},
    {"cache_prompt": False}, {"n": 1}, {"id_slot": 1}, {"stop": ["e"]},
], ids=json.dumps)
@pytest.mark.parametrize("path, body", [("/v1/chat/completions", CHAT), ("/chat/completions", TOOLS)], ids=["chat", "tools"])
def test_chat(pair, path, body, extra):
    answer = both(pair, "POST", path, {**body, **extra}, prepare=without_logprobs)
    assert answer.status == 200
    if extra.get("stream"):
        assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("extra", [
    {}, {"stream": True}, {"prompt": ["the way back ", 400, 401, "is marked"]}, {"prompt": tokens(100, 1)},
    {"prompt": ["one prompt", "another prompt"]}, {"n_probs": 3}, {"return_tokens": True}, {"response_fields": ["content"]},
], ids=lambda extra: json.dumps(extra)[:40])
@pytest.mark.parametrize("path", ["/completion", "/completions", "/v1/completions"])
def test_completion(pair, path, extra):
    if path == "/v1/completions" and "n_probs" in extra:
        extra = {"logprobs": 3}
    answer = both(pair, "POST", path, {**COMPLETION, **extra}, prepare=without_logprobs)
    assert answer.status == 200


def test_prompt_beyond_the_context(pair):
    both(pair, "POST", "/completion", {"prompt": [400] * 9000, "n_predict": 1}, prepare=normal)


# --- framing ----------------------------------------------------------------------------------------------

def raw(port, data, end_early=False):
    """Sends bytes as they are; what comes back until the other side closes, or an answer with a length is whole."""
    with connect(port, timeout=20) as client:
        client.sendall(data)
        if end_early:
            client.shutdown(socket.SHUT_WR)
        got = b""
        while True:
            try:
                piece = client.recv(65536)
            except ConnectionResetError:
                break
            if not piece:
                break
            got += piece
        return got


def status_of(answer):
    assert answer.startswith(b"HTTP/1."), answer[:200]
    return int(answer.split(b" ", 2)[1])


def openai_error(answer):
    error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert error["message"] and error["code"] == status_of(answer)


@pytest.mark.parametrize("head", [
    b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 2",
    b"Content-Length: 2\r\nContent-Length: 3",
    b"Content-Length: 2, 3",
    b"Content-Length: +2",
    b"Content-Length: -2",
    b"Content-Length: 0x2",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b" Content-Length: 2",
    b"Host: y\r\nContent-Length: 2",
    b"Content-Length: 2\r\nX: a\rb",
    b"Content-Length: 2\r\nX: a\x00b",
    b"Content-Length: 2\nX: y",
], ids=repr)
def test_ambiguous_framing_is_400(pair, head):
    answer = raw(pair[1].port, b"POST /completion HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n{}")
    assert status_of(answer) == 400
    openai_error(answer)


def test_chunked_in_http_1_0_is_400(pair):
    assert status_of(raw(pair[1].port, b"POST /completion HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")) == 400


def test_unknown_version_is_505(pair):
    assert status_of(raw(pair[1].port, b"GET /health HTTP/3.0\r\nHost: x\r\n\r\n")) == 505


@pytest.mark.parametrize("head", [b"X-Long: " + b"a" * 20000, b"\r\n".join(b"X-%d: y" % i for i in range(4000))],
                         ids=["one field", "many fields"])
def test_long_head_is_431(pair, head):
    answer = raw(pair[1].port, b"GET /health HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    assert status_of(answer) == 431
    openai_error(answer)


@pytest.mark.parametrize("path", ["/completion", "/v1/embeddings"])
def test_long_body_is_413(pair, path):
    body = json.dumps({"prompt": "a" * 300_000, "input": ""}).encode()
    declared = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
    answer = raw(pair[1].port, declared + body)
    assert status_of(answer) == 413
    openai_error(answer)
    # The length alone is enough to say no.
    assert status_of(raw(pair[1].port, declared)) == 413
    chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    answer = raw(pair[1].port, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert status_of(answer) == 413


def test_expect_100_continue(pair):
    body = json.dumps({"content": "hello"}).encode()
    with socket.create_connection(("127.0.0.1", pair[1].port), timeout=20) as client:
        client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        got = client.recv(4096)
        assert got.startswith(b"HTTP/1.1 100"), got
        client.sendall(body)
        rest = got.split(b"\r\n\r\n", 1)[1]
        while b'"tokens"' not in rest:
            piece = client.recv(4096)
            assert piece, rest
            rest += piece
    assert rest.startswith(b"HTTP/1.1 200")


def test_expect_100_continue_with_a_body_too_long(pair):
    answer = raw(pair[1].port, b"POST /completion HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                 b"Content-Length: 999999\r\n\r\n")
    assert status_of(answer) == 413


def test_http_1_0(pair):
    answer = raw(pair[1].port, b"GET /health HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200
    assert b"chunked" not in answer.lower()
    assert answer.endswith(b'{"status":"ok"}')
    body = json.dumps({**CHAT, "stream": True}).encode()
    answer = raw(pair[1].port, b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert status_of(answer) == 200
    assert b"chunked" not in answer.lower()
    assert answer.endswith(b"data: [DONE]\n\n")


def test_chunked_request_body(pair):
    body = json.dumps(COMPLETION).encode()
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 100]), body[i:i + 100]) for i in range(0, len(body), 100))
    answer = raw(pair[1].port, b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + pieces + b"0\r\n\r\n")
    assert status_of(answer) == 200


def test_pipelined_requests_are_answered_in_order(pair):
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = raw(pair[1].port, one * 3 + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"200", b"404"]


def test_kept_connection_serves_many(pair):
    connection = http.client.HTTPConnection("127.0.0.1", pair[1].port, timeout=20)
    try:
        sockets = set()
        for _ in range(5):
            connection.request("POST", "/v1/completions", json.dumps(COMPLETION), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200
            response.read()
            sockets.add(id(connection.sock))
        assert len(sockets) == 1
    finally:
        connection.close()


def test_own_endpoints(pair):
    port = pair[1].port
    status = call(port, "GET", "/cairn/status")
    assert status.status == 200 and status.json()["backend"]["memory_kind"] == "truncatable"
    metrics = call(port, "GET", "/cairn/metrics")
    assert metrics.status == 200 and b"cairn_requests_total" in metrics.body
    nowhere = call(port, "GET", "/cairn/nowhere")
    assert nowhere.status == 404
    told = call(port, "HEAD", "/cairn/nowhere")  # its answer was chunked, and told no length
    assert told.status == 404 and told.header("Content-Length") == nowhere.header("Content-Length") and not told.body
    assert call(port, "POST", "/cairn/status", {}).status == 405
