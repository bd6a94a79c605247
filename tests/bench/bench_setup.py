"""The two sides that never_slower compares, a llama-server alone and another one behind Cairn, and how they are asked."""

import contextlib
import http.client
import json
import re
import shlex
import statistics
import subprocess
import time
from pathlib import Path

from stack import KINDS, REPOSITORY, Stack, call, common, model_path, prose

# What README.md and `cairn check` tell users to give: a number of slots.
FLAG_SETS = {"default": (), "recommended": ("-np", "2")}
ROOM = 2048  # context tokens beyond the longest prompt, whose words may come out as a tenth more: answers, template, turns


def ensure_model(kind):
    """KIND-think.gguf, where an older folder of models lacks it; other models must be there."""
    with contextlib.suppress(AssertionError):
        return model_path(kind)
    plain = kind.removesuffix("-think")
    if plain not in KINDS or plain == kind:
        return model_path(kind)
    python = subprocess.run([REPOSITORY / "tests/backend/get_llama_server", "--gguf-python"], check=True,
                            capture_output=True, text=True).stdout.split()
    subprocess.run([*python, "-B", REPOSITORY / "tests/backend/make_model.py", plain,
                    model_path(plain).with_name(f"{kind}.gguf"), "--template", "think"], check=True)
    return model_path(kind)


class Side:
    """One of the two: a stack, and how many prompt tokens its backend has computed since the last question."""

    def __init__(self, stack):
        self.stack = stack
        self.name = "Cairn" if stack.with_cairn else "direct"
        self.seen = stack.backend.total()

    @property
    def port(self):
        return self.stack.port

    def settle(self):
        """Cairn has saved all, and the backend has put away what its last request left (it answers this behind it)."""
        if self.stack.with_cairn:
            self.stack.cairn.settle(300)
        self.stack.backend.total()

    def computed(self):
        """Since the last call; Cairn's own pieces and probes count."""
        before, self.seen = self.seen, self.stack.backend.total()
        return self.seen - before

    def written(self):
        """Bytes that the processes of this side wrote to files: saved states and indexes, and a few log lines."""
        children = [self.stack.backend, self.stack.cairn] if self.stack.with_cairn else [self.stack.backend]
        return sum(int(re.search(r"wchar: (\d+)", Path(f"/proc/{process.child.pid}/io").read_text(encoding="utf-8"))[1])
                   for process in children)

    def ask(self, path, body):
        """The answer and what was computed for it."""
        answer = call(self.port, "POST", path, body, timeout=1800)
        assert answer.status == 200, f"{self.name} {path}: {answer.status} {answer.body[:300]!r}"
        return answer.json(), self.computed()

    def stream(self, path, body):
        """(seconds to the first token, seconds in all). Comment and progress lines are no tokens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1800)
        try:
            sent = json.dumps({**body, "stream": True}).encode()
            began = time.perf_counter()
            connection.request("POST", path, body=sent, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, f"{self.name} {path}: {response.status} {response.read()[:300]!r}"
            first = None
            for line in response:
                if first is None and line.startswith(b"data: {") and has_content(json.loads(line[6:])):
                    first = time.perf_counter() - began
            total = time.perf_counter() - began
            assert first is not None, f"{self.name} {path}: no token in the answer"
            return first, total
        finally:
            connection.close()


def has_content(event):
    if event.get("content"):
        return True
    return any(choice.get("text") or choice.get("delta", {}).get("content") for choice in event.get("choices", ()))


class Pair:
    """Both sides, on the same model and flags. Ends what it started."""

    def __init__(self, options, model, flags, longest):
        """`longest`: tokens of the longest prompt."""
        ensure_model(model)
        extra = shlex.split(options.backend_flags)
        flags = [*flags, *extra]
        slots = int(flags[flags.index("-np") + 1]) if "-np" in flags else 1  # on default flags they share the context
        if "-c" not in flags and "--ctx-size" not in flags:
            flags += ["-c", str(max(65536, slots * (longest * 11 // 10 + ROOM)))]
        folder = Path(options.folder) / f"{model}{'_'.join(flags)}".replace("/", "_")
        while folder.exists():
            folder = folder.with_name(folder.name + "+")
        self.stacks = []
        try:
            if not options.no_direct:
                self.stacks.append(Stack(folder / "direct", model, flags, with_cairn=False))
            self.stacks.append(Stack(folder / "cairn", model, flags, shlex.split(options.cairn_flags)))
        except BaseException:
            self.close()
            raise
        self.cairn = Side(self.stacks[-1])
        self.direct = None if options.no_direct else Side(self.stacks[0])

    @property
    def backend(self):
        """For counting tokens, which changes no slot."""
        return self.cairn.stack.backend

    def sides(self):
        return [side for side in (self.direct, self.cairn) if side is not None]

    def close(self):
        for stack in self.stacks:
            stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is not None:
            for stack in self.stacks:
                stack.kill()
        self.close()


# --- counting ---------------------------------------------------------------------------------------------

class Known:
    """Prompts so far: what an unbounded cache with a state at every token would know."""

    def __init__(self):
        self.prompts = []

    def shared(self, ids):
        """At least one token of a prompt is always computed."""
        return min(max((common(ids, other) for other in self.prompts), default=0), len(ids) - 1)

    def add(self, ids):
        """Returns how many of its tokens are new."""
        new = len(ids) - self.shared(ids)
        self.prompts.append(ids)
        return new


def ids_of(backend, path, body):
    """The tokens of a prompt as the server will see them."""
    if path.endswith("/chat/completions"):
        return backend.chat_tokens(body)
    return body["prompt"] if isinstance(body["prompt"], list) else backend.tokenize(body["prompt"])


def words_for(backend, tokens):
    """How many words of stack.prose make about that many tokens."""
    return round(tokens * 1000 / len(backend.tokenize(prose(1000, "measure"))))


def interval_of(status):
    """What /cairn/status says of the distance between states inside a prompt, wherever it says so."""
    found = []

    def look(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "checkpoint_interval_tokens" and isinstance(inner, (int, float)) and inner > 0:
                    found.append(int(inner))
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)
    look(status)
    return max(found, default=1024)


def median(values):
    return statistics.median(values)


def percentile(values, percent):
    """By nearest rank: the largest of few."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]
