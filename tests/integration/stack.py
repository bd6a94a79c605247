"""Starts and stops the two processes under test, a llama-server and Cairn in front of it, and asks them things.

Everything waits for a condition with a deadline; nothing sleeps for a fixed time.
"""

import contextlib
import ctypes
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("llama", "gemma3", "granitehybrid", "mamba2")


# --- what is tested ---------------------------------------------------------------------------------------

def _given(variable, found, missing):
    """What the environment names must be there; without it, a test is skipped when nothing is found."""
    value = os.environ.get(variable)
    if value:
        return value
    for candidate in found:
        if candidate and Path(candidate).exists():
            return str(candidate)
    pytest.skip(f"{missing}; tests/run sets {variable}")


def cairn_binary():
    builds = sorted(REPOSITORY.glob("build*/cairn")) + sorted(REPOSITORY.glob("build*/*/cairn"))
    path = _given("CAIRN_BINARY", builds, "no built cairn")
    assert os.access(path, os.X_OK), f"CAIRN_BINARY: {path} is no program"
    return path


def llama_server():
    """The command, as a list."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = [shutil.which("llama-server"), cache / "cairn/forky/cairn-llama-server"]
    command = shlex.split(_given("CAIRN_LLAMA_SERVER", found, "no llama-server"))
    assert shutil.which(command[0]), f"CAIRN_LLAMA_SERVER: {command[0]} is no program"
    return command


def model_path(kind):
    folder = Path(_given("CAIRN_MODELS", [REPOSITORY / "build-test/models"], "no test models"))
    path = folder / f"{kind}.gguf"
    assert path.is_file(), f"CAIRN_MODELS: {path} is missing (tests/backend/make_model.py makes it)"
    return path


def full_run():
    """CAIRN_FULL: longer walks, every comparison."""
    return bool(os.environ.get("CAIRN_FULL"))


def quick_run():
    """CAIRN_QUICK: fewer cases and shorter walks, for a second pass under sanitizers."""
    return bool(os.environ.get("CAIRN_QUICK"))


# --- waiting and asking -----------------------------------------------------------------------------------

def wait_until(condition, what, seconds=60.0, pause=0.02):
    """Polls `condition` until it returns something true, which is returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)


_ports_given = set()


def free_port():
    """Below the range that the kernel takes for outgoing connections, so that a port stays ours over a restart."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers  # list of (name, value) as they came
        self.body = body

    def json(self):
        return json.loads(self.body)

    def header(self, name):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return None


TLS = {}  # port: the SSLContext that its clients use; who is not in it speaks plainly


def connect(port, timeout=30):
    client = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    return TLS[port].wrap_socket(client, server_hostname="127.0.0.1") if port in TLS else client


def http_connection(port, timeout=600):
    if port in TLS:
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=TLS[port])
    return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)


def call(port, method, path, body=None, headers=None, timeout=600):
    """`body`: bytes as they are, anything else as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    fields = {"Content-Type": "application/json"} if body is not None else {}
    fields.update(headers or {})
    connection = http_connection(port, timeout)
    try:
        connection.request(method, path, body=body, headers=fields)
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def _die_with_parent():
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Process:
    """A child with its log in a file; it dies with the test, whatever happens to that."""

    def __init__(self, command, log):
        self.command = [str(part) for part in command]
        self.log = Path(log)
        with open(self.log, "ab") as sink:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=sink,
                                          stderr=subprocess.STDOUT, preexec_fn=_die_with_parent)

    @property
    def running(self):
        return self.child.poll() is None

    def stop(self, seconds=60):
        """SIGTERM, and wait. Returns the exit status."""
        if self.running:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.command[0]} did not stop within {seconds} s of SIGTERM") from None
        return self.child.returncode

    def kill(self):
        if self.running:
            self.child.kill()
            self.child.wait()


class Backend(Process):
    """A llama-server. `slot_dir` None: without --slot-save-path."""

    def __init__(self, model, port, slot_dir, log, flags=()):
        self.port = port
        command = [*llama_server(), "-m", model_path(model), "--host", "127.0.0.1", "--port", port, "--metrics",
                   "-t", os.environ.get("CAIRN_BACKEND_THREADS", "2"), "-ub", 512, "--no-warmup"]
        if slot_dir is not None:
            command += ["--slot-save-path", slot_dir]
        if not any(flag in ("-c", "--ctx-size") for flag in flags):
            command += ["-c", 65536]
        super().__init__([*command, *flags], log)
        wait_until(self._up, "llama-server answers", 120)

    def _up(self):
        assert self.running, f"llama-server ended:\n{tail(self.log)}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return call(self.port, "GET", "/health", timeout=5).status == 200
        return False

    def total(self):
        """Prompt tokens computed since it started, whoever asked for them."""
        for line in call(self.port, "GET", "/metrics").body.decode().splitlines():
            if line.startswith("llamacpp:prompt_tokens_total"):
                return round(float(line.split()[1]))
        raise AssertionError("/metrics does not say prompt_tokens_total")

    def tokenize(self, text):
        answer = call(self.port, "POST", "/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return answer.json()["tokens"]

    def chat_tokens(self, body):
        return self.tokenize(call(self.port, "POST", "/apply-template", body).json()["prompt"])


def without_roots_powers():
    """Begins a command that is to write where its user may alone, though it is root's."""
    return ["setpriv", "--bounding-set", "-dac_override,-fowner"] if os.geteuid() == 0 else []


def take_write_access(folder):
    """From such a command; of the backend only where it is not root's."""
    if os.geteuid() == 0:
        nobody = 65534
        os.chown(folder, nobody, nobody)
    folder.chmod(0o755 if os.geteuid() == 0 else 0o555)


def give_write_access(folder):
    if os.geteuid() == 0:
        os.chown(folder, 0, 0)
    folder.chmod(0o755)


class Cairn(Process):
    def __init__(self, port, backend_port, slot_dir, state_dir, log, flags=(), prefix=(), own_key=None):
        """`prefix`: a command that executes the rest, such as env."""
        self.port = port
        self.headers = {"Authorization": f"Bearer {own_key}"} if own_key else {}
        command = [*prefix, cairn_binary(), "serve", "--listen", f"127.0.0.1:{port}", "--backend",
                   f"{'https' if backend_port in TLS else 'http'}://127.0.0.1:{backend_port}"]
        if slot_dir is not None:
            command += ["--slot-dir", slot_dir, "--state-dir", state_dir]
        super().__init__([*command, *flags], log)
        wait_until(self._up, "Cairn listens", 60)

    def _up(self):
        assert self.running, f"cairn ended with {self.child.returncode}:\n{tail(self.log)}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return call(self.port, "GET", "/cairn/status", headers=self.headers, timeout=5).status == 200
        return False

    def status(self):
        return call(self.port, "GET", "/cairn/status", headers=self.headers).json()

    def wait_phase(self, phase, seconds=30):
        try:
            wait_until(lambda: self.status()["backend"]["phase"] == phase, f"Cairn is {phase}", seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}; it is {self.status()['backend']}") from None

    def settle(self, seconds=60):
        """Waits until nobody is served and nothing is left to save now."""
        def quiet():
            status = self.status()
            queue = status["queue"]
            paused = status.get("store", {}).get("saving_paused", False)
            return (queue["leased"] == 0 and queue["waiting"] == 0 and queue["unpinned"] == 0
                    and not any((slot["unsaved"] and not paused) or slot["leased"] for slot in status["slots"]))
        wait_until(quiet, "Cairn has saved what it wanted to", seconds)

    def stop(self, seconds=60):
        status = super().stop(seconds)
        assert status == 0, f"cairn ended with {status}:\n{tail(self.log)}"
        return status


def tail(path, lines=60):
    try:
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


# --- both together ----------------------------------------------------------------------------------------

class Outcome:
    def __init__(self, answer, computed, seconds):
        self.answer = answer
        self.computed = computed  # by the backend, pieces and washes included
        self.seconds = seconds

    @property
    def timings(self):
        return self.answer.json()["timings"]


class Stack:
    """A llama-server with Cairn in front of it, or alone (`with_cairn` False), and the folders that outlive both."""

    def __init__(self, folder, model, backend_flags=(), cairn_flags=("--checkpoint-interval", "1024"), with_cairn=True):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.backend_flags = tuple(backend_flags)
        self.cairn_flags = tuple(cairn_flags)
        self.with_cairn = with_cairn
        self.slot_dir = self.folder / "slots"
        self.state_dir = self.folder / "state"
        self.slot_dir.mkdir(exist_ok=True)
        self.state_dir.mkdir(exist_ok=True)
        self.backend_log = self.folder / "backend.log"
        self.cairn_log = self.folder / "cairn.log"
        self.backend_port = free_port()
        self.cairn_port = free_port()
        self.backend = None
        self.cairn = None
        self.probe_tokens = 0
        try:
            self.start()
        except BaseException:
            self.kill()
            raise

    @property
    def port(self):
        return self.cairn_port if self.with_cairn else self.backend_port

    def start_backend(self):
        self.backend = Backend(self.model, self.backend_port, self.slot_dir, self.backend_log, self.backend_flags)

    def start_cairn(self):
        self.cairn = Cairn(self.cairn_port, self.backend_port, self.slot_dir, self.state_dir, self.cairn_log,
                           self.cairn_flags)

    def start(self):
        self.start_backend()
        if self.with_cairn:
            self.start_cairn()
            self.cairn.wait_phase("ready")
            self.probe_tokens = self.backend.total()

    def stop(self, first="cairn"):
        if self.with_cairn and first == "backend":
            self.cairn.settle()
            self.backend.stop()
        if self.with_cairn:
            self.cairn.stop()
        if self.backend.running:
            self.backend.stop()

    def restart(self, first="cairn"):
        """Both processes end and start anew; `first` names the one that is told to end first."""
        self.stop(first)
        self.start()

    def restart_cairn(self):
        self.cairn.stop()
        self.start_cairn()
        self.cairn.wait_phase("ready")

    def restart_backend(self):
        """Under the running Cairn."""
        if self.with_cairn:
            self.cairn.settle()
        self.backend.stop()
        self.start_backend()

    def kill(self):
        for process in (self.cairn, self.backend):
            if process is not None:
                process.kill()

    def close(self):
        try:
            if self.cairn is not None and self.cairn.running:
                self.cairn.stop()
        finally:
            self.kill()
            shutil.rmtree(self.slot_dir, ignore_errors=True)

    def ask(self, body, path="/completion", expect=200):
        """One request through the front door, and what the backend computed for it."""
        before = self.backend.total()
        began = time.monotonic()
        answer = call(self.port, "POST", path, body)
        seconds = time.monotonic() - began
        assert answer.status == expect, f"{path}: {answer.status} {answer.body[:500]!r}"
        return Outcome(answer, self.backend.total() - before, seconds)

    def complete(self, tokens, n_predict=1, **more):
        body = {"prompt": tokens, "n_predict": n_predict, "temperature": 0, "seed": 1,
                "response_fields": ["timings", "content", "tokens", "completion_probabilities"], **more}
        return self.ask(body)


# --- prompts ----------------------------------------------------------------------------------------------

def tokens(count, seed):
    """Random ids, all of them plain tokens of the test vocabulary."""
    source = random.Random(seed)
    return [source.randrange(300, 2500) for _ in range(count)]


WORDS = """the server keeps a state for each slot and when a prompt comes back it restores what was saved before so that
the model need not compute it again which matters most for long conversations with tools and many turns where every turn
adds only a little to what is there already""".split()


def prose(words, seed):
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


def common(a, b):
    n = 0
    for left, right in zip(a, b):
        if left != right:
            break
        n += 1
    return n


# --- log-probabilities of the first token -----------------------------------------------------------------

def first_logprobs(answer):
    """{token id or bytes: log-probability} of the first answer token, from any of the three endpoints' answers."""
    data = answer.json()
    if data.get("completion_probabilities"):
        top = data["completion_probabilities"][0]["top_logprobs"]
    else:
        top = data["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {tuple(entry["bytes"]): entry["logprob"] for entry in top}


def clear_beginning(port, body):
    """Of what a chat is answered: the text up to the first near tie, and whether that is all of it. What is computed in other batches
    is off a little (0.02 at most was seen), and may turn a tie round."""
    answer = call(port, "POST", "/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 2})
    assert answer.status == 200, answer.body[:500]
    clear = b""
    for token in answer.json()["choices"][0]["logprobs"]["content"]:
        first, second = (candidate["logprob"] for candidate in token["top_logprobs"])
        if first - second <= 0.1:
            return clear.decode(errors="ignore"), False
        clear += bytes(token["bytes"])
    return clear.decode(errors="ignore"), True


def logprob_distance(a, b, likeliest):
    """The largest difference over the `likeliest` first of each; a token that the other has not counts as 9."""
    worst = 0.0
    for one, other in ((a, b), (b, a)):
        for token in sorted(one, key=one.get, reverse=True)[:likeliest]:
            worst = max(worst, abs(one[token] - other[token]) if token in other else 9.0)
    return worst
