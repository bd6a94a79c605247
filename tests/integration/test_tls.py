"""TLS on either side and keys: the same bytes as without, the same noticing of who has left, and mistakes named with their file."""

import json
import os
import random
import socket
import ssl
import subprocess
import threading

import pytest

from certificates import Authority, openssl, serving
from scripted_rig import LONG, Rig, open_request, prompt, read_until
from stack import TLS, Backend, Cairn, cairn_binary, call, free_port, quick_run, wait_until
from tcp_gate import TcpGate
from test_fidelity import BODIES, assert_same
from test_life import Watched, dechunk, ended, make_long, request_bytes, resident_mib, through_gate
from test_passthrough import CHAT, COMPLETION, both, normal, raw, status_of, without_logprobs


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server")


@pytest.fixture(autouse=True)
def plain_afterwards(request):
    kept = dict(TLS)
    yield
    TLS.clear()
    TLS.update(kept)


# --- a real backend with TLS ------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pair(tmp_path_factory, authority, server):
    """llama-server with a certificate, and Cairn with one in front of it."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("slots", "state"):
        (folder / name).mkdir()
    certificate, key = server
    backend_port, cairn_port = free_port(), free_port()
    TLS[backend_port] = TLS[cairn_port] = authority.trusting()
    backend = Backend("llama", backend_port, folder / "slots", folder / "backend.log",
                      ("-np", "2", "-c", "8192", "--ssl-cert-file", certificate, "--ssl-key-file", key))
    cairn = None
    try:
        cairn = Cairn(cairn_port, backend_port, folder / "slots", folder / "state", folder / "cairn.log",
                      ("--tls-certificate", certificate, "--tls-key", key, "--backend-ca", authority.file))
        cairn.wait_phase("ready")
        yield backend, cairn
        cairn.stop()
    finally:
        if cairn is not None:
            cairn.kill()
        backend.kill()
        del TLS[backend_port], TLS[cairn_port]


@pytest.mark.parametrize("path", ["/health", "/props", "/v1/models", "/completion", "/v1/chat/completions", "/tokenize", "/", "/nowhere"])
def test_the_same_bytes_on_both_sides(pair, path):
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        assert_same(pair, method, path, headers={"Origin": "http://example.com"})
    for body in BODIES.values():
        assert_same(pair, "POST", path, body)


@pytest.mark.parametrize("extra", [{}, {"stream": True}], ids=json.dumps)
def test_answers_of_the_model(pair, extra):
    for path, body in (("/v1/chat/completions", CHAT), ("/completion", COMPLETION), ("/v1/completions", COMPLETION)):
        assert both(pair, "POST", path, {**body, **extra}, prepare=without_logprobs).status == 200


def test_large_bodies(pair):
    size = 2_000_000 if quick_run() else 16_000_000
    body = json.dumps({"messages": [{"role": "user", "content": "a way back " * (size // 11)}]}).encode()
    assert len(assert_same(pair, "POST", "/apply-template", body).body) > size * 0.99
    body = json.dumps({"prompt": "the way back", "n_predict": 1, "temperature": 0, "comment": "a" * size})
    both(pair, "POST", "/completion", body.encode(), prepare=normal)


def test_a_conversation_is_reused(pair):
    backend, cairn = pair
    text = "the way back is marked by stones " * 60
    first = call(cairn.port, "POST", "/completion", {"prompt": text, "n_predict": 1})
    second = call(cairn.port, "POST", "/completion", {"prompt": text + "and by a river", "n_predict": 1})
    assert first.status == second.status == 200
    latest = cairn.status()["latest_requests"][0]
    assert latest["reused_tokens"] > 0.9 * latest["prompt_tokens"], latest


def test_http_1_0_answers_end_with_a_goodbye(pair):
    """Without one, the end of the connection could be an attacker's."""
    body = json.dumps({**CHAT, "stream": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", pair[1].port), timeout=20) as plain:
        client = TLS[pair[1].port].wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        client.sendall(request + body)
        got = b""
        while piece := client.recv(65536):  # raises where the goodbye is missing
            got += piece
    assert got.endswith(b"data: [DONE]\n\n")


def test_pipelined_in_one_record(pair):
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(pair[1].port, one * 20 + b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 20 and answer.count(b"HTTP/1.1 404") == 1


def test_who_speaks_plainly_is_told(pair):
    with socket.create_connection(("127.0.0.1", pair[1].port), timeout=20) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert status_of(answer) == 400 and b"https://" in answer


def test_both_versions_of_tls(pair, authority):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = authority.trusting()
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", pair[1].port), timeout=20) as plain, \
                context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_until(client, b"ok").startswith(b"HTTP/1.1 200")


# --- a scripted backend: life and death -------------------------------------------------------------------

@pytest.fixture
def rig(tmp_path, watch_log, authority, server):
    """Both sides under TLS."""
    rig = Rig(tmp_path, watch_log)
    certificate, key = server
    TLS[rig.backend_port] = TLS[rig.cairn_port] = authority.trusting()
    rig.flags = ("--tls-certificate", certificate, "--tls-key", key, "--backend-ca", authority.file)
    rig.tls = serving(certificate, key)
    yield rig
    rig.close()


def leave(client, goodbye):
    if goodbye:
        client.settimeout(0.05)
        try:
            client.unwrap()  # waits in vain for the other side's
        except OSError:
            pass
    client.close()


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "silent"])
@pytest.mark.parametrize("step", ["queued", "prefill", "answer"])
def test_client_that_leaves_is_noticed(rig, step, goodbye):
    backend = rig.start(state_version=4, tls=rig.tls)
    watched = Watched(rig)
    holder = None
    hold = threading.Event()
    if step == "prefill":
        backend.hold_prefill = hold
    else:
        backend.hold_stream = hold
    if step == "queued":
        holder = open_request(rig.cairn_port, {"prompt": prompt(100, 1), "n_predict": 2, "stream": True})
        read_until(holder, b"data: ")
    client = open_request(rig.cairn_port, {"prompt": prompt(100, 2), "n_predict": 2, "stream": True})
    if step == "queued":
        wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "it waits")
        leave(client, goodbye)
        wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 0, "it has left", 10)
    else:
        calls = wait_until(lambda: backend.of(lambda made: made.path == "/completion"), "it is served")
        if step == "answer":
            read_until(client, b"data: ")
        leave(client, goodbye)
        assert calls[0].connection_closed.wait(10), "the backend would compute on"
    hold.set()
    if holder is not None:
        holder.close()
    watched.assert_nothing_left()


def test_slow_reader_gets_everything_and_holds_up_nobody(rig):
    backend = rig.start(state_version=4, tls=rig.tls)
    watched = Watched(rig)
    filler = make_long(backend, 6_000 if quick_run() else 24_000)
    before = resident_mib(rig.cairn.child.pid)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(60)
    plain.connect(("127.0.0.1", rig.cairn_port))
    slow = TLS[rig.cairn_port].wrap_socket(plain, server_hostname="127.0.0.1")
    slow.sendall(request_bytes({"prompt": prompt(300, 1), "n_predict": 2, "stream": True}))
    got = bytearray(slow.recv(1000))
    rig.wait_free(60)
    backend.filler = []
    assert rig.right(prompt(300, 2)), "another is served while the slow one reads"
    if "ASAN_OPTIONS" not in os.environ:  # which keeps what was freed
        assert resident_mib(rig.cairn.child.pid) - before < 16, "it is kept in memory"
    while not ended(got):
        piece = slow.recv(1 << 20)
        assert piece, "the connection ended before the answer did"
        got += piece
    slow.close()
    contents = [json.loads(line[6:])["content"] for line in dechunk(bytes(got)).split(b"\n\n") if line.startswith(b"data: {")]
    assert contents[1:-2] == filler
    watched.assert_nothing_left()


def test_connections_to_the_backend_are_kept(rig):
    backend = rig.start(state_version=4, tls=rig.tls)
    requests = 20
    for number in range(requests):
        assert rig.right(prompt(100, number))
    rig.settle()
    # As many as calls that met; upkeep may meet a request's two. Each request makes more calls than two.
    assert backend.accepted < 2 * requests, f"{backend.accepted} connections: each request shook hands anew"


def test_a_backend_that_dies_in_the_middle_never_looks_whole(rig):
    backend = rig.start(state_version=4, tls=rig.tls)
    backend.die_after_chunks = 1
    got = through_gate(rig.cairn_port, request_bytes({"prompt": prompt(100, 1), "n_predict": 2, "stream": True}), ended)
    assert got.startswith(b"HTTP/1.1 200") and not ended(got)
    backend.die_after_chunks = None
    rig.cairn.wait_phase("ready")
    assert rig.right(prompt(100, 1))


@pytest.fixture(params=["client", "backend"])
def gated(rig, request):
    """A gate on either side of Cairn."""
    gate_port, backend_port = free_port(), rig.backend_port
    if request.param == "client":
        rig.start(state_version=4, tls=rig.tls)
        gate, door = TcpGate(gate_port, rig.cairn_port), gate_port
    else:
        rig.start_backend(state_version=4, tls=rig.tls)
        gate, door = TcpGate(gate_port, backend_port), rig.cairn_port
        rig.backend_port = gate_port  # what Cairn gets to know
    TLS[gate_port] = TLS[backend_port]
    try:
        if request.param == "backend":
            rig.start_cairn()
        yield rig, gate, door
        gate.script = whole_pieces
        rig.close()
    finally:
        gate.close()


def whole_pieces(_, at, data):
    return [data]


def test_records_that_come_byte_by_byte(gated):
    rig, gate, door = gated
    watched = Watched(rig)
    gate.cut()  # what is kept open
    gate.script = lambda side, at, data: [bytes([byte]) for byte in data]
    tokens = prompt(100, 1)
    got = through_gate(door, request_bytes({"prompt": tokens, "n_predict": 2, "stream": True}), ended)
    expected = rig.backend.expected(tokens).encode()
    assert expected[:8] in got and expected[8:] in got and b"[DONE]" in got
    gate.script = whole_pieces
    watched.assert_nothing_left()


@pytest.mark.parametrize("trouble", ["cut", "corrupt"])
def test_what_is_cut_or_changed_on_the_way_never_looks_whole(gated, trouble):
    rig, gate, door = gated
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    source = random.Random(seed)
    left = [0]

    def script(_, at, data):
        before, left[0] = left[0], left[0] - len(data)
        if before < 0 or left[0] >= 0:
            return [data]
        if trouble == "cut":
            return [data[:before], None]
        return [data[:before] + bytes([data[before] ^ 1 << source.randrange(8)]) + data[before + 1:]]

    tokens = prompt(100, 1)
    request = request_bytes({"prompt": tokens, "n_predict": 2, "stream": True})
    expected = rig.backend.expected(tokens).encode()
    watched = Watched(rig)
    for number in range(12 if quick_run() else 80):
        gate.cut()  # what is kept open: the handshake is in the way as well
        left[0] = source.randrange(6000)
        gate.script = script
        try:
            # A changed length may have both sides wait for the other: the comments that keep a client waiting come for ever then.
            got = through_gate(door, request, lambda so_far: ended(so_far) or b": waiting" in so_far)
        except OSError:
            got = b""
        gate.script = whole_pieces
        assert got == b"" or got.startswith((b"HTTP/1.1 200", b"HTTP/1.1 502")), got
        if got.startswith(b"HTTP/1.1 200") and ended(got):
            assert expected[:8] in got and expected[8:] in got and b"[DONE]" in got, (number, got)
        rig.cairn.wait_phase("ready")
    watched.assert_nothing_left()
    assert rig.right(tokens)


# --- whom to trust ----------------------------------------------------------------------------------------

def cairn(*arguments, timeout=60):
    done = subprocess.run([cairn_binary(), *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def refusals(authority):
    other = Authority(authority.folder / "other", "other")
    return {
        "unknown authority": (authority.issue("unknown"), other.file, "not trusted by backend_ca"),
        "expired": (authority.issue("expired", days=-1), authority.file, "certificate has expired"),
        "another name": (authority.issue("elsewhere", names="DNS:elsewhere.example"), authority.file, "mismatch"),
        "the system's authorities": (authority.issue("private"), None, "not trusted by the system's authorities"),
    }


@pytest.mark.parametrize("case", ["unknown authority", "expired", "another name", "the system's authorities"])
def test_a_backend_that_is_not_trusted(rig, authority, case):
    """Said at start and by `check`; requests get a 502 that says it, and nothing is sent to that backend."""
    files, ca, words = refusals(authority)[case]
    trusted = ("--backend-ca", ca) if ca else ()
    backend = rig.start_backend(state_version=4, tls=serving(*files))
    del TLS[rig.cairn_port]
    rig.flags = trusted
    rig.start_cairn("connecting")
    answer = rig.post({"prompt": "x"})
    assert answer.status == 502 and words in answer.json()["error"]["message"], answer.body
    assert words in rig.log.read_text()
    assert backend.calls == []
    url = f"https://127.0.0.1:{rig.backend_port}"
    status, said = cairn("check", "--backend", url, *trusted)
    assert status == 1 and words in said, said
    status, said = cairn("check", "--backend", url, "--backend-tls-verify", "false")
    assert "no llama-server" not in said and "backend_tls_verify is off" in said, said


def test_its_own_certificate_will_do(rig, server):
    """Nothing more is needed for a self-signed one."""
    rig.flags = (*rig.flags[:-1], server[0])
    rig.start(state_version=4, tls=rig.tls)
    assert rig.right(prompt(100, 1))


def test_https_where_the_backend_speaks_plainly(rig):
    rig.start_backend(state_version=4)
    rig.start_cairn("connecting")
    answer = rig.post({"prompt": "x"})
    assert answer.status == 502 and "speaks no TLS" in answer.json()["error"]["message"], answer.body


def test_a_client_that_does_not_trust_us(rig, authority):
    rig.start(state_version=4, tls=rig.tls)
    stranger = Authority(authority.folder / "stranger", "stranger").trusting()
    with socket.create_connection(("127.0.0.1", rig.cairn_port), timeout=20) as plain, pytest.raises(ssl.SSLCertVerificationError):
        stranger.wrap_socket(plain, server_hostname="127.0.0.1")
    assert rig.right(prompt(100, 1))


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("mistake", ["no file", "folder", "no certificate", "no key", "another key", "passphrase", "no CA", "empty CA"])
def test_mistakes_name_the_key_and_the_file(tmp_path, authority, server, command, mistake):
    certificate, key = server
    other_key = authority.issue("other_key")[1]
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense\n")
    locked = tmp_path / "locked.pem"
    openssl("pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked)
    ours = {"tls_certificate": certificate, "tls_key": key}
    theirs = {"backend": "https://127.0.0.1:1"}
    settings, words = {
        "no file": ({**ours, "tls_certificate": tmp_path / "none.pem"}, ("tls_certificate", "none.pem", "No such file")),
        "folder": ({**ours, "tls_key": tmp_path}, ("tls_key", str(tmp_path), "cannot be read")),
        "no certificate": ({**ours, "tls_certificate": nonsense}, ("tls_certificate", "nonsense.pem", "no certificate")),
        "no key": ({**ours, "tls_key": nonsense}, ("tls_key", "nonsense.pem", "no private key")),
        "another key": ({**ours, "tls_key": other_key}, ("tls_key", str(other_key), "is not the key of", str(certificate))),
        "passphrase": ({**ours, "tls_key": locked}, ("tls_key", str(locked), "passphrase")),
        "no CA": ({**theirs, "backend_ca": tmp_path / "none.pem"}, ("backend_ca", "none.pem", "No such file")),
        "empty CA": ({**theirs, "backend_ca": nonsense}, ("backend_ca", "nonsense.pem", "no certificate")),
    }[mistake]
    config = tmp_path / "cairn.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    status, said = cairn(command, "--config", config, "--listen", f"127.0.0.1:{free_port()}")
    assert status == 1 and all(word in said for word in words), said


@pytest.mark.parametrize("settings, words", [
    ("tls_certificate: /x\n", "tls_key: missing"),
    ("tls_key: /x\n", "tls_certificate: missing"),
    ("backend: http://127.0.0.1:1\nbackend_ca: /x\n", "backend_ca: the backend is http://127.0.0.1:1, without TLS"),
    ("backend_tls_verify: perhaps\n", "cairn.yaml:1: backend_tls_verify:"),
])
def test_settings_that_do_not_fit_each_other(tmp_path, settings, words):
    (tmp_path / "cairn.yaml").write_text(settings)
    status, said = cairn("serve", "--config", tmp_path / "cairn.yaml")
    assert status == 2 and words in said, said


def test_an_expired_certificate_of_our_own_is_told(tmp_path, authority):
    certificate, key = authority.issue("over", days=-1)
    said = cairn("check", "--backend", "http://127.0.0.1:1", "--tls-certificate", certificate, "--tls-key", key)[1]
    assert "has expired on" in said and "clients will refuse" in said


# --- a key of Cairn's own endpoints -----------------------------------------------------------------------

OWN = ["/cairn/status", "/cairn/metrics", "/cairn/checkpoints", "/cairn/checkpoints/1", "/cairn/nowhere", "/cairn"]


@pytest.fixture
def guarded(rig):
    rig.own_key = "sesame"
    rig.flags += ("--own-api-key", rig.own_key)
    rig.start(state_version=4, tls=rig.tls)
    return rig


WRONG = [{}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer sesame2"}, {"Authorization": "Basic sesame"},
         {"X-Api-Key": "Sesame"}, {"Authorization": "Bearer "}, {"Authorization": ""}, {"Authorization": "sesame"}]


def test_own_endpoints_want_their_key(guarded):
    for path in OWN:
        for wrong in WRONG:
            for method in ("GET", "POST", "DELETE", "HEAD"):
                answer = call(guarded.cairn_port, method, path, headers=wrong)
                assert answer.status == 401 and answer.header("WWW-Authenticate") == "Bearer", (method, path, wrong)
                assert method == "HEAD" or answer.json()["error"]["type"] == "authentication_error"
    for right in ({"Authorization": "Bearer sesame"}, {"X-Api-Key": "sesame"}, {"Authorization": "bearer sesame"}):
        assert call(guarded.cairn_port, "GET", "/cairn/status", headers=right).status == 200
        assert call(guarded.cairn_port, "GET", "/cairn/nowhere", headers=right).status == 404


def test_the_backends_endpoints_do_not(guarded):
    assert call(guarded.cairn_port, "GET", "/health").status == 200
    assert guarded.right(prompt(100, 1))


def test_commands_send_the_key_and_know_their_server(guarded, tmp_path):
    assert guarded.right(prompt(LONG, 1))
    guarded.settle()
    flags = ("--listen", f"127.0.0.1:{guarded.cairn_port}", "--slot-dir", guarded.slot_dir, "--state-dir", guarded.state_dir)
    ours, key = guarded.flags[:4], guarded.flags[-2:]
    status, said = cairn("list", *flags, *ours, *key)
    assert status == 0 and "states" in said, said
    text = tmp_path / "prompt.txt"
    text.write_text("a way back " * 60)
    status, said = cairn("warm", *flags, *ours, *key, text)
    assert status == 0 and "tokens computed" in said, said
    assert not guarded.backend.of(lambda made: "sesame" in made.headers), "the key is none of the backend's business"
    status, said = cairn("list", *flags, *ours)
    assert status == 1 and "own_api_key" in said, said
    status, said = cairn("list", *flags, *key)
    assert status == 1 and "https://" in said, said
