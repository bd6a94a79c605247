"""A backend that dies, or only loses its connections, at each step of a request; and a real one that is idle soon after its client
has left, whoever was in between."""

import http.client
import json
import threading
from pathlib import Path

import pytest

from certificates import Authority
from scripted_backend import ScriptedBackend
from scripted_rig import LONG, open_request, prompt
from stack import TLS, Backend, Cairn, free_port, quick_run, tokens, wait_until
from test_life import Watched, gated  # noqa: F401

MARKERS = {"template": b"POST /apply-template", "tokenize": b"POST /tokenize", "same process": b"GET /props", "restore": b"action=restore",
           "piece": b'"n_predict":0', "forward": b"POST /v1/chat/completions", "save": b"action=save"}


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "hangs up"])
@pytest.mark.parametrize("step", MARKERS)
def test_backend_that_dies_at_any_step(gated, step, dies):
    """An error that says so, or an answer; afterwards nothing is left behind, and what it lost is restored from its file."""
    rig, gate = gated
    text = {number: bytes(prompt(LONG, number)).decode().replace("<", "x") for number in (1, 2)}

    def ask(number, more=""):
        messages = [{"role": "user", "content": text[number]}]
        if more:
            messages += [{"role": "assistant", "content": "well"}, {"role": "user", "content": more}]
        return rig.post({"messages": messages, "max_tokens": 2, "stream": False}, "/v1/chat/completions")

    def expected(number, more):
        return rig.backend.expected(list(f"<user>{text[number]}</><assistant>well</><user>{more}</><assistant>".encode()))

    for number in (1, 2, 1, 2):  # each conversation is known, the second in the only slot
        assert ask(number, "and then?").status == 200
        rig.settle()
    watched = Watched(rig)
    died = threading.Event()

    def script(side, at, data):
        if side == "up" and MARKERS[step] in data and not died.is_set():
            died.set()
            return [None]
        return [data]

    old = rig.backend
    gate.script = script
    killer = threading.Thread(target=lambda: died.wait(60) and dies and old.stop())
    killer.start()
    try:
        answer = ask(1, "and then? And what else?" if step != "piece" else "and then? " + bytes(prompt(LONG, 3)).decode().replace("<", "x"))
    except http.client.IncompleteRead:  # it died after the head of its answer: nothing can be said any more
        assert dies
        answer = None
    wait_until(died.is_set, f"the step {step} was reached", 30)
    killer.join()
    if answer is not None and answer.status == 200:
        assert answer.json()["choices"][0]["message"]["content"]
    elif answer is not None:
        assert answer.status in (502, 503), answer.body
        message = answer.json()["error"]["message"]
        assert "backend" in message or "connect" in message, message
    gate.script = lambda side, at, data: [data]
    if dies:
        rig.backend = ScriptedBackend(old.port, rig.slot_dir, state_version=4)
    rig.cairn.wait_phase("ready")
    rig.settle()
    computed = rig.backend.computed
    answer = ask(2, "and at last?")
    assert answer.status == 200 and answer.json()["choices"][0]["message"]["content"] == expected(2, "and at last?")
    assert rig.backend.computed - computed < 640, "it was computed anew, although its state is in a file"
    watched.assert_nothing_left()


def test_the_kernel_watches_over_both_ends_of_a_running_answer(rig):
    """A backend whose machine lost its power, or the way to it, was waited for without end, and comments kept its client waiting, too."""
    keepalive = 2  # the timer of /proc/net/tcp

    def watched(port, sees):
        rows = [line.split() for line in Path(f"/proc/{rig.cairn.child.pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
        ports = {row[9]: row[sees].rpartition(":")[2] for row in rows if int(row[5].partition(":")[0], 16) == keepalive}
        ours = {name.removeprefix("socket:[").removesuffix("]") for name in rig.descriptors() if name.startswith("socket:")}
        return any(int(ports[inode], 16) == port for inode in ours & ports.keys())

    rig.start()
    local, remote = 1, 2
    with rig.streaming({"prompt": prompt(100, 1), "n_predict": 2}):
        wait_until(lambda: watched(rig.backend_port, remote), "the connection to the backend is probed")
        wait_until(lambda: watched(rig.cairn_port, local), "the client's is")


# --- a real backend ---------------------------------------------------------------------------------------

WHOLE = 40_000


@pytest.mark.parametrize("under_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("stream", [True] if quick_run() else [True, False], ids=lambda stream: "stream" if stream else "whole")
def test_backend_is_idle_soon_after_its_client_has_left(tmp_path, watch_log, stream, under_tls):
    """It looks when nothing has come back for a second, and finishes its batch: neither Cairn's pieces nor its polling put that off."""
    for name in ("slots", "state"):
        (tmp_path / name).mkdir()
    backend_port, cairn_port = free_port(), free_port()
    backend_flags, cairn_flags = (), ("--log-level", "debug")
    if under_tls:
        authority = Authority(tmp_path / "authority")
        certificate, key = authority.issue("server")
        TLS[backend_port] = TLS[cairn_port] = authority.trusting()
        backend_flags = ("--ssl-cert-file", certificate, "--ssl-key-file", key)
        cairn_flags += ("--tls-certificate", certificate, "--tls-key", key, "--backend-ca", authority.file)
    log = tmp_path / "backend.log"
    watch_log("backend", log)
    watch_log("cairn", tmp_path / "cairn.log")
    backend = Backend("llama", backend_port, tmp_path / "slots", log, ("-np", "2", "-c", str(2 * (WHOLE + 1000)), *backend_flags))
    cairn = None
    try:
        cairn = Cairn(cairn_port, backend_port, tmp_path / "slots", tmp_path / "state", tmp_path / "cairn.log", cairn_flags)
        cairn.wait_phase("ready")
        before = backend.total()

        def processing():
            """Tasks begun and not ended, as its log tells: asking it would put off what is tested."""
            text = log.read_text(errors="replace")
            return text.count("processing task") - text.count("stop processing")

        idle = processing()
        client = open_request(cairn_port, {"prompt": tokens(WHOLE, 1), "n_predict": 2, "stream": stream})
        wait_until(lambda: processing() > idle, "it has begun")
        client.close()
        wait_until(lambda: cairn.status()["queue"]["leased"] == 0, "Cairn has noticed")
        wait_until(lambda: processing() <= idle, "it has stopped", 120)
        computed = backend.total() - before
        assert computed < WHOLE / 2, json.dumps({"computed": computed})
        cairn.stop()
    finally:
        if cairn is not None:
            cairn.kill()
        backend.kill()
        TLS.pop(backend_port, None)
        TLS.pop(cairn_port, None)
