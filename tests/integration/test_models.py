"""Several models: a router with real children, several backends by name, and llama-swap's documented behaviour (a stand-in) in
front of real servers. Each model's later turns reuse its earlier ones, whatever was swapped, and Cairn's own calls load nothing."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import threading

import pytest

from stack import (Backend, Cairn, Process, cairn_binary, call, free_port, llama_server, model_path, prose, tail, tokens, wait_until)
from swap_stand_in import SwapStandIn

PROMPT = 1500
TURN = 600  # worth a save also where that takes long
KINDS = {"alpha": "llama", "beta": "granitehybrid"}


class Router(Process):
    """llama-server without a model: it starts a child for each one that is asked for. `al` is an alias of alpha."""

    def __init__(self, port, folder, flags=()):
        self.port = port
        preset = folder / "models.ini"
        lines = ["version = 1"]
        for name, kind in KINDS.items():
            lines += [f"[{name}]", f"model = {model_path(kind)}", "ctx-size = 8192", "parallel = 2"]
            if name == "alpha":
                lines.append("alias = al")
        preset.write_text("\n".join(lines) + "\n")
        command = [*llama_server(), "--models-preset", preset, "--host", "127.0.0.1", "--port", port, "--slot-save-path",
                   folder / "slots", "--metrics", "--no-warmup", "-t", os.environ.get("CAIRN_BACKEND_THREADS", "2"), "-ub", 512]
        super().__init__([*command, *flags], folder / "router.log")
        wait_until(self._up, "the router answers", 60)

    def _up(self):
        assert self.running, f"llama-server ended:\n{tail(self.log)}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return call(self.port, "GET", "/health", timeout=5).status == 200
        return False

    def states(self):
        return {one["id"]: one["status"]["value"] for one in call(self.port, "GET", "/models").json()["data"]}

    def wait_state(self, model, state):
        wait_until(lambda: self.states()[model] == state, f"{model} is {state}")


class Front:
    """Cairn, and what its requests were counted as."""

    def __init__(self, folder, arguments):
        self.folder = folder
        self.port = free_port()
        self.arguments = arguments
        self.cairn = None
        self.start()

    def start(self):
        self.cairn = FrontProcess(self.port, self.arguments, self.folder / "cairn.log")

    def stop(self):
        self.settle()
        assert self.cairn.stop() == 0

    def settle(self):
        def quiet():
            models = self.cairn.status().get("models", [])
            return all(one["queue"]["leased"] == 0 and one["queue"]["unpinned"] == 0 and
                       not any(slot["unsaved"] or slot["leased"] for slot in one["slots"]) for one in models)
        wait_until(quiet, "Cairn has saved what it wanted to")

    def ask(self, model, prompt, path="/completion"):
        """One request; what Cairn said of it."""
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0}
        if model is not None:
            body["model"] = model
        answer = call(self.port, "POST", path, body)
        assert answer.status == 200, f"{answer.status} {answer.body[:500]!r}"
        latest = self.cairn.status()["latest_requests"]
        record = latest[0]
        assert record["prompt_tokens"] == len(prompt), record
        return record


class FrontProcess(Cairn):
    def __init__(self, port, arguments, log):
        self.port = port
        self.headers = {}
        Process.__init__(self, arguments(port), log)
        wait_until(self._up, "Cairn listens", 60)


def serve(folder, *more):
    return lambda port: [cairn_binary(), "serve", "--listen", f"127.0.0.1:{port}", "--slot-dir", folder / "slots", "--state-dir",
                         folder / "state", "--checkpoint-interval", "1024", *more]


@pytest.fixture
def folder(tmp_path, watch_log):
    (tmp_path / "slots").mkdir()
    (tmp_path / "state").mkdir()
    watch_log("router", tmp_path / "router.log")
    watch_log("cairn", tmp_path / "cairn.log")
    yield tmp_path
    shutil.rmtree(tmp_path / "slots", ignore_errors=True)


@pytest.fixture
def running():
    """Processes and threads that end with the test."""
    with contextlib.ExitStack() as stack:
        def keep(one):
            stack.callback(one.kill)
            return one
        yield keep


def start_router(folder, running, *flags):
    return running(Router(free_port(), folder, flags))


def start_front(folder, running, backend_port, *more):
    front = Front(folder, serve(folder, "--backend", f"http://127.0.0.1:{backend_port}", *more))
    running(front.cairn)
    return front


def conversation(seed, first=PROMPT):
    """Three prompts, each going on from the one before."""
    whole = tokens(first + 2 * TURN, seed)
    return whole[:first], whole[:first + TURN], whole


def test_models_swapped_at_each_request_reuse_what_they_computed(folder, running):
    """Room for one model: each request unloads the other's."""
    router = start_router(folder, running, "--models-max", "1")
    front = start_front(folder, running, router.port)
    assert set(router.states().values()) == {"unloaded"}, "to start Cairn loads no model"
    first = 2600  # saved before its model is unloaded, also where that takes long
    talks = {name: conversation(seed, first) for seed, name in enumerate(KINDS)}
    for name, talk in talks.items():
        assert front.ask(name, talk[0])["reused_tokens"] == 0
        assert router.states()[name] == "loaded"
    for name, talk in talks.items():
        record = front.ask("al" if name == "alpha" else name, talk[1])
        assert record["plan"] == "restore" and record["reused_tokens"] >= first - 1, record
        front.settle()
    front.stop()
    router.stop()
    router = running(Router(router.port, folder, ("--models-max", "1")))
    front.start()
    running(front.cairn)
    assert set(router.states().values()) == {"unloaded"}
    for name, talk in talks.items():
        record = front.ask(name, talk[2])
        assert record["plan"] == "restore" and record["reused_tokens"] >= first + TURN - 1, record
    spaces = {one["name"]: one["backend"]["namespace"] for one in front.cairn.status()["models"]}
    assert len(set(spaces.values())) == 2, f"a namespace each: {spaces}"
    front.stop()


def test_more_models_at_once_than_can_run_are_left_to_the_router(folder, running):
    """Cairn's own calls, each for a model that was there a moment before, made it load models more often."""
    router = start_router(folder, running, "--models-max", "1")
    front = start_front(folder, running, router.port)
    bodies = [{"model": name, "prompt": tokens(700, seed=80 + i), "n_predict": 2} for i, name in enumerate(list(KINDS) * 3)]
    front.ask("alpha", bodies[0]["prompt"])  # how many can run is known from then on
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: call(front.port, "POST", "/completion", body), bodies))
    assert [answer.status for answer in answers] == [200] * len(bodies)
    metrics = call(front.port, "GET", "/cairn/metrics").body.decode()
    assert 'cairn_requests_total{status="200",cache="other_model_wanted"}' in metrics
    front.settle()


def test_models_side_by_side_go_on_in_their_slots_and_come_back_after_unload(folder, running):
    router = start_router(folder, running)
    front = start_front(folder, running, router.port)
    talks = {name: conversation(seed + 10) for seed, name in enumerate(KINDS)}
    for name, talk in talks.items():
        front.ask(name, talk[0])
    for name, talk in talks.items():
        record = front.ask(name, talk[1])
        assert record["plan"] == "live" and record["reused_tokens"] >= PROMPT - 1, record
    front.settle()
    answer = call(front.port, "POST", "/models/unload", {"model": "alpha"})
    assert answer.status == 200 and answer.json() == {"success": True}
    router.wait_state("alpha", "unloaded")
    record = front.ask("alpha", talks["alpha"][2])
    assert record["plan"] == "restore" and record["reused_tokens"] >= PROMPT + TURN - 1, record
    record = front.ask("beta", talks["beta"][2])
    assert record["plan"] == "live" and record["reused_tokens"] >= PROMPT + TURN - 1, record
    for path in ("/v1/chat/completions", "/v1/messages"):
        messages = [{"role": "user", "content": prose(400, seed=len(path))}]
        first = call(front.port, "POST", path, {"model": "al", "messages": messages, "max_tokens": 4})
        assert first.status == 200, first.body
        messages += [{"role": "assistant", "content": "so it is"}, {"role": "user", "content": "and then?"}]
        second = call(front.port, "POST", path, {"model": "alpha", "messages": messages, "max_tokens": 4})
        record = front.cairn.status()["latest_requests"][0]
        assert second.status == 200 and record["path"] == path and record["model"] == "alpha"
        assert record["reused_tokens"] > 0.8 * record["prompt_tokens"] > 400, record
    listed = call(front.port, "GET", "/v1/models").json()["data"]
    assert [one["id"] for one in listed] == [one["id"] for one in call(router.port, "GET", "/v1/models").json()["data"]]
    metrics = call(front.port, "GET", "/cairn/metrics").body.decode()
    assert 'cairn_model_ready{model="alpha"} 1' in metrics
    front.stop()


def plain_fields(answer):
    return sorted((name.lower(), value) for name, value in answer.headers if name.lower() not in ("date", "connection", "keep-alive"))


def test_requests_without_a_known_model_get_the_routers_own_answer_and_load_nothing(folder, running):
    router = start_router(folder, running, "--no-models-autoload")
    front = start_front(folder, running, router.port)
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    cases = [("POST", path, body)
             for path in ("/completion", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/infill", "/v1/embeddings")
             for body in (chat, {**chat, "model": "nobody"}, {**chat, "model": 7}, {**chat, "model": ""}, b"[]", b'{"model": "alpha"')]
    # Not loaded, and not to be.
    cases += [("POST", "/completion", {"prompt": "x", "model": "alpha"}), ("POST", "/completion?autoload=false", {"model": "alpha"}),
              ("POST", "/completion?model=alpha", {"prompt": "x"})]
    cases += [("GET", path, None) for path in ("/slots", "/props", "/props?model=nobody", "/slots?model=alpha", "/lora-adapters", "/health")]
    cases += [("POST", "/tokenize", {"content": "x"}), ("POST", "/lora-adapters", []), ("POST", "/models/load", {"model": "nobody"})]
    for method, path, body in cases:
        own, theirs = (call(port, method, path, body) for port in (front.port, router.port))
        assert (own.status, own.body) == (theirs.status, theirs.body), f"{method} {path} {body}"
        assert plain_fields(own) == plain_fields(theirs), f"{method} {path} {body}"
    assert set(router.states().values()) == {"unloaded"}
    front.stop()


def test_a_model_asleep_is_left_asleep_until_a_client_asks_for_it(folder, running):
    router = start_router(folder, running, "--sleep-idle-seconds", "2")
    front = start_front(folder, running, router.port)
    talk = conversation(20)
    front.ask("alpha", talk[0])
    router.wait_state("alpha", "sleeping")
    front.ask("beta", conversation(21)[0])  # whose upkeep is not alpha's
    assert call(front.port, "GET", "/props?model=alpha").json()["is_sleeping"]
    front.stop()
    front.start()
    running(front.cairn)
    assert router.states()["alpha"] == "sleeping"
    record = front.ask("alpha", talk[1])
    assert record["plan"] == "restore" and record["reused_tokens"] >= PROMPT - 1, record
    router.wait_state("alpha", "sleeping")
    record = front.ask("alpha", talk[2])
    assert record["plan"] == "restore" and record["reused_tokens"] >= PROMPT + TURN - 1, record
    front.stop()


def test_a_single_server_asleep_is_not_woken_by_upkeep(folder, running):
    backend = running(Backend("llama", free_port(), folder / "slots", folder / "router.log", ("--sleep-idle-seconds", "2", "-np", "2")))
    asleep = lambda: call(backend.port, "GET", "/props").json()["is_sleeping"]  # noqa: E731
    wait_until(asleep, "the server sleeps")
    front = start_front(folder, running, backend.port)
    assert asleep()
    talk = conversation(30)
    front.ask(None, talk[0])
    wait_until(asleep, "the server sleeps again")
    record = front.ask(None, talk[1])
    assert record["plan"] == "restore" and record["reused_tokens"] >= PROMPT - 1, record
    front.cairn.stop()


def test_backends_by_the_names_of_models(folder, running):
    backends = {name: running(Backend(kind, free_port(), folder / "slots", folder / f"{name}.log", ("-np", "2")))
                for name, kind in KINDS.items()}
    config = {"slot_dir": str(folder / "slots"), "state_dir": str(folder / "state"), "checkpoint_interval": 1024,
              "backends": [{"url": f"http://127.0.0.1:{backend.port}", "models": [name, f"{name}-too"]} for name, backend in backends.items()]}
    (folder / "cairn.yaml").write_text(json.dumps(config))  # which is YAML
    front = Front(folder, lambda port: [cairn_binary(), "serve", "--config", folder / "cairn.yaml", "--listen", f"127.0.0.1:{port}"])
    running(front.cairn)
    talks = {name: conversation(seed + 40) for seed, name in enumerate(KINDS)}
    for name, talk in talks.items():
        before = backends[name].total()
        front.ask(name, talk[0])
        assert backends[name].total() >= before + PROMPT
    assert front.ask(None, talks["alpha"][1])["reused_tokens"] >= PROMPT - 1, "without a name it is the first's"
    front.stop()
    for name, backend in backends.items():
        backend.stop()
        running(Backend(KINDS[name], backend.port, folder / "slots", folder / f"{name}.log", ("-np", "2")))
    front.start()
    running(front.cairn)
    for name, talk in talks.items():
        record = front.ask(f"{name}-too", talk[2])
        assert record["plan"] == "restore" and record["reused_tokens"] >= PROMPT - 1, record
    listed = {one["id"]: one["meta"]["size"] for one in call(front.port, "GET", "/v1/models").json()["data"]}
    assert set(listed) == {"alpha", "alpha-too", "beta", "beta-too"} and listed["alpha"] == listed["alpha-too"] != listed["beta"]
    lengths = {call(front.port, method, "/v1/models").header("Content-Length") for method in ("GET", "HEAD")}
    assert len(lengths) == 1, lengths  # HEAD told of the first server's
    checked = subprocess.run([cairn_binary(), "check", "--config", folder / "cairn.yaml"], capture_output=True, text=True, timeout=60)
    for name, backend in backends.items():
        assert f"backend http://127.0.0.1:{backend.port} for {name}, {name}-too" in checked.stdout, checked.stdout
    # What is not cached finds its way by the name as well.
    for name in KINDS:
        path = call(front.port, "GET", f"/props?model={name}").json()["model_path"]
        assert path == str(model_path(KINDS[name]))
        own = call(front.port, "POST", "/tokenize", {"content": "hello", "model": name})
        assert own.status == 200 and own.json()["tokens"]
    unknown = call(front.port, "POST", "/v1/chat/completions", {"model": "nobody", "messages": []})
    assert unknown.status == 400 and "nobody" in unknown.json()["error"]["message"]
    status = front.cairn.status()
    assert {one["name"]: one["backend"]["phase"] for one in status["models"]} == {"alpha": "ready", "beta": "ready"}
    front.stop()


def test_behind_llama_swap_each_model_comes_back_with_its_states_and_nothing_else_is_swapped(folder, running):
    """Against a stand-in that does what llama-swap documents, one model at a time, in front of real servers."""
    def start(name, port):
        flags = ("-np", "2", "-c", "8192")
        return Backend(KINDS[name], port, folder / "slots", folder / "router.log", flags)

    swap = running(SwapStandIn(free_port(), list(KINDS), start))
    front = start_front(folder, running, swap.port)
    assert swap.started == []
    talks = {name: conversation(seed + 50) for seed, name in enumerate(KINDS)}
    for turn in range(3):
        for name, talk in talks.items():
            record = front.ask(name, talk[turn])
            if turn > 0:
                assert record["plan"] == "restore" and record["reused_tokens"] >= len(talk[turn - 1]) - 1, record
            front.settle()
    assert swap.started == list(KINDS) * 3, "one start for each request that wanted another model"
    for path in ("/completions", "/v1/nothing"):  # which it does not know
        assert call(front.port, "POST", path, {"model": "alpha", "prompt": "x"}).status == 404
    assert swap.running() == ["beta"]
    own, theirs = (call(port, "POST", "/v1/chat/completions", {"model": "nobody", "messages": []}) for port in (front.port, swap.port))
    assert (own.status, own.body) == (theirs.status, theirs.body)
    call(front.port, "GET", "/unload")
    assert swap.running() == []
    front.cairn.stop()
    assert swap.started == list(KINDS) * 3, "not even to save at the end"


def test_requests_for_both_models_at_once_behind_llama_swap_do_not_swap_back_and_forth(folder, running):
    def start(name, port):
        return Backend(KINDS[name], port, folder / "slots", folder / "router.log", ("-np", "2", "-c", "8192"))

    swap = running(SwapStandIn(free_port(), list(KINDS), start))
    front = start_front(folder, running, swap.port)
    wanted = [name for name in KINDS for _ in range(3)]
    bodies = [{"model": name, "prompt": tokens(700, seed=60 + i), "n_predict": 4, "stream": i % 2 == 0} for i, name in enumerate(wanted)]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: call(front.port, "POST", "/completion", body), bodies))
    assert [answer.status for answer in answers] == [200] * len(bodies)
    # Without Cairn at most one start a request; with it a request makes several calls.
    assert len(swap.started) <= len(wanted), swap.started
    front.cairn.stop()


def test_request_for_another_model_behind_llama_swap_does_not_come_between_two_calls_for_one(folder, running):
    """It was passed on there at once: the model that was about to answer was started once more."""
    def start(name, port):
        return Backend(KINDS[name], port, folder / "slots", folder / "router.log", ("-np", "2", "-c", "8192"))

    swap = running(SwapStandIn(free_port(), list(KINDS), start))
    front = start_front(folder, running, swap.port)
    held, release, came, answering = (threading.Event() for _ in range(4))

    def before(name, target):
        if target == "/tokenize" and not held.is_set():
            held.set()
            release.wait(60)
        if name == "beta":
            came.set()
            answering.wait(5 if release.is_set() else 0)  # who is let in first is not Cairn's to say

    def entered(name, target):
        if target == "/completion" and name == "alpha" and held.is_set():  # not the probe's
            answering.set()

    swap.before = before
    swap.entered = entered
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        def ask(name):
            return pool.submit(call, front.port, "POST", "/completion", {"model": name, "prompt": prose(100, 5), "n_predict": 2})

        first = ask("alpha")
        wait_until(held.is_set, "alpha was probed, and the prompt is on its way to be tokenized", 60)
        second = ask("beta")
        came.wait(1)
        release.set()
        assert [one.result().status for one in (first, second)] == [200, 200]
    assert swap.started == ["alpha", "beta"]
    front.cairn.stop()
