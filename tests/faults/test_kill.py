"""Cairn killed with SIGKILL at calls that change files, in front of a real llama-server: while it starts, saves and evicts.

After each kill: no entry of the index without its file, and none missing of which Cairn has said that it is saved, unless it has said
as well why it goes; after the next start also no file without its entry, no entry lost, the budget respected, and answers from what it
restores as a cold run gives them. CAIRN_KILLS says how many (300 for the long proof), CAIRN_TEST_SEED repeats a run.
"""

import collections
import contextlib
import http.client
import os
import random
import re
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from stack import Cairn, call, cairn_binary, first_logprobs, logprob_distance, quick_run, tail, tokens, wait_until

KILLS = int(os.environ.get("CAIRN_KILLS") or (8 if quick_run() else 20))
BUDGET = 28 << 20  # eight states or so: most saves evict one once it is full
RAM_BUDGET = 12 << 20  # with tiers, of the slot directory


def kill_library():
    given = os.environ.get("CAIRN_KILL_LIBRARY")
    path = Path(given) if given else Path(cairn_binary()).parent / "tests" / "libkill_at_call.so"
    if not path.is_file():
        pytest.skip(f"{path} is not built")
    return path


class Announced:
    """What Cairn says in its log of its states: each must be there until it says that it goes."""

    SAVED = re.compile(rb" slot \d+ is saved: checkpoint (\d+), ")
    REPLACED = re.compile(rb" checkpoint (\d+) takes the place of checkpoint (\d+)$")
    GOES = re.compile(rb" checkpoint (\d+) goes: (\w+)$")
    RESTORED = re.compile(rb" status=200 .* plan=restore\(.* reused=[1-9]\d* .* checkpoint=(\d+) ")

    def __init__(self, log):
        self.log = log
        self.heard = 0  # bytes of it
        self.saved = 0
        self.there = set()
        self.successors = {}
        self.gone = {}
        self.restored = []  # once an answer

    def listen(self):
        with open(self.log, "rb") as log:
            log.seek(self.heard)
            said = log.read()
        whole = said.rfind(b"\n") + 1
        self.heard += whole
        for line in said[:whole].splitlines():
            if found := self.SAVED.search(line):
                self.saved += 1
                self.there.add(int(found[1]))
            elif found := self.REPLACED.search(line):
                self.successors[int(found[2])] = int(found[1])
            elif found := self.GOES.search(line):
                self.gone[int(found[1])] = found[2].decode()
            elif found := self.RESTORED.search(line):
                self.restored.append(int(found[1]))

    def begin(self, present):
        """Another life: what of the last one's end was said and not done counts no more."""
        self.there = set(present)
        self.successors.clear()
        self.gone.clear()

    def check(self, present):
        self.listen()
        assert "bad_file" not in self.gone.values(), self.gone  # nobody but Cairn touches the files
        lost = sorted(row for row in self.there - set(present) if not self.may_be_gone(row, present))
        assert not lost, f"{lost} were saved and are gone; there are {sorted(present)}; said to go: {self.gone}"
        self.there &= set(present)

    def may_be_gone(self, row, present):
        """Evicted, or there is one that offers all that it did."""
        successor = self.successors.get(row)
        return self.gone.get(row) == "evicted" or (
            successor is not None and (successor in present or self.may_be_gone(successor, present)))


class Victim:
    """A stack whose Cairn is started to die, and what must hold afterwards."""

    def __init__(self, stack, folder, cold, source, disk_dir=None):
        self.stack = stack
        self.disk_dir = disk_dir  # with tiers
        self.folder = folder
        self.cold = cold
        self.source = source
        self.log = folder / "kills"
        self.library = kill_library()
        self.prompts = []
        self.worst = 0.0
        self.announced = Announced(stack.cairn_log)
        self.survivors = {}  # of the last kill: row number to its files
        self.from_before = 0  # answers from one of those
        self.rebooted = False  # and no start since has come to its end, which drops what the reboot took

    def start(self, at, after=False):
        """False: it died before it listened."""
        stack = self.stack
        prefix = ["env", f"LD_PRELOAD={self.library}", f"CAIRN_KILL_AT={at}", f"CAIRN_KILL_LOG={self.log}"]
        prefix += ["CAIRN_KILL_AFTER=1"] if after else []
        try:
            stack.cairn = Cairn(stack.cairn_port, stack.backend_port, stack.slot_dir, stack.state_dir, stack.cairn_log,
                                stack.cairn_flags, prefix=prefix)
            stack.cairn.wait_phase("ready")
        except (AssertionError, OSError, http.client.HTTPException):
            if not self.killed():
                raise
            return False
        return True

    def killed(self):
        """Whether the process that was started last has said that it dies."""
        return bool(self.log.exists() and self.log.read_text().strip())

    def rows(self):
        """{row: [(file, bytes), …]} of the index; of a copy after a kill: reading the original would recover it before Cairn does."""
        index = self.stack.state_dir / "index.sqlite"
        if not self.stack.cairn.running:
            copy = self.folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.stack.state_dir, copy)
            (copy / "index.sqlite-shm").unlink(missing_ok=True)
            index = copy / "index.sqlite"
        if not index.exists() or index.stat().st_size == 0:
            return {}
        with contextlib.closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as database:
            try:
                found = database.execute("SELECT id, file_name, files FROM checkpoints").fetchall()
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error)  # killed before the very first commit
                return {}
        entries = {}
        for row, name, files in found:
            parts = [line.split() for line in files.splitlines()]
            entries[row] = [(name + ("" if suffix == "-" else suffix), int(size)) for suffix, size, *_ in parts]
        return entries

    def check_entries(self):
        """The entries. None is without its files, whenever it is looked at, but for what a reboot has just taken."""
        entries = self.rows()
        folders = [self.stack.slot_dir] + ([self.disk_dir] if self.disk_dir else [])
        lost = [row for row, files in entries.items()
                if not any(all(self.is_file_of(folder / name, size) for name, size in files) for folder in folders)]
        assert not lost or self.rebooted, [(row, entries[row]) for row in lost]
        return {row: files for row, files in entries.items() if row not in lost}

    @staticmethod
    def is_file_of(path, size):
        return path.is_file() and path.stat().st_size == size

    def emptied_ram(self):
        """A reboot: what had a copy on disk must survive. Killed in the start that follows, Cairn may not have dropped the rest."""
        for path in self.stack.slot_dir.iterdir():
            path.unlink()
        self.survivors = {row: files for row, files in self.survivors.items()
                          if all(self.is_file_of(self.disk_dir / name, size) for name, size in files)}
        self.announced.begin(self.survivors)
        self.rebooted = True

    def check_killed(self):
        """What a kill, or any other end, must leave. Also what was committed but not yet said is to be there from now on."""
        restored = len(self.announced.restored)
        self.announced.listen()
        self.from_before += sum(row in self.survivors for row in self.announced.restored[restored:])
        self.survivors = self.check_entries()
        self.announced.check(self.survivors)
        self.announced.begin(self.survivors)

    def check_start(self):
        """What a start must leave."""
        self.rebooted = False
        entries = self.check_entries()
        self.announced.check(self.ids() & entries.keys())
        known = {name for files in entries.values() for name, _ in files}
        there = {path.name: path.stat().st_size for path in self.stack.slot_dir.iterdir() if path.name != "cairn.lock"}
        if self.disk_dir is None:
            assert there.keys() == known
        else:
            below = {path.name: path.stat().st_size for path in self.disk_dir.iterdir() if path.name != "cairn.lock"}
            assert there.keys() | below.keys() == known
            assert sum(below.values()) <= BUDGET
        assert sum(there.values()) <= (BUDGET if self.disk_dir is None else RAM_BUDGET)
        return entries

    def ids(self):
        """As Cairn tells them."""
        return {entry["id"] for entry in call(self.stack.cairn_port, "GET", "/cairn/checkpoints").json()["checkpoints"]}

    def prompt(self):
        if self.prompts and self.source.random() < 0.6:
            old = self.source.choice(self.prompts[-8:])
            kept = len(old) - self.source.choice([0, 0, 0, 3, 40])
            return old[:kept] + tokens(self.source.randrange(20, 200), self.source.random())
        return tokens(self.source.randrange(300, 700), self.source.random())

    def ask(self, prompt):
        """Any trouble is the kill's fault, but an answer must be right."""
        try:
            outcome = self.stack.complete(prompt, n_probs=20)
        except (OSError, http.client.HTTPException):
            return
        alone = self.cold(prompt)
        first = logprob_distance(first_logprobs(outcome.answer), alone, 1)
        ten = logprob_distance(first_logprobs(outcome.answer), alone, 10)
        self.worst = max(self.worst, first)
        assert first <= 0.05 and ten <= 0.2, f"{len(prompt)} tokens: answer off by {first}, top ten by {ten}"

    def settle(self):
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            self.stack.cairn.settle(20)

    def live(self, requests):
        """Asks until it dies or nothing is left to ask."""
        for number in range(requests):
            again = number == 0 and self.prompts  # what was saved before the last kill
            prompt = self.source.choice(self.prompts[-6:]) if again else self.prompt()
            self.ask(prompt)
            self.prompts.append(prompt)
            self.settle()
            if self.killed():
                return


@pytest.mark.parametrize("tiers", [False, True], ids=["one tier", "two tiers"])
def test_killed_at_every_step(make_stack, make_backend, tmp_path, tiers):
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"\nCAIRN_TEST_SEED={seed}")
    source = random.Random(seed)
    flags = ("--checkpoint-interval", "512", "--budget", str(BUDGET), "--min-free", "0", "--log-level", "debug")
    disk_dir = tmp_path / "disk" if tiers else None
    if tiers:
        flags += ("--disk-dir", str(disk_dir), "--ram-budget", str(RAM_BUDGET))
    stack = make_stack("granitehybrid", backend_flags=("-np", "2"), cairn_flags=flags)
    alone = make_backend("granitehybrid", ("-np", "1"))
    known = {}

    def cold(prompt):
        key = tuple(prompt)
        if key not in known:
            answer = call(alone.port, "POST", "/completion", {"prompt": prompt, "n_predict": 1, "temperature": 0,
                                                              "n_probs": 20, "cache_prompt": False})
            assert answer.status == 200, answer.body[:300]
            known[key] = first_logprobs(answer)
        return known[key]

    victim = Victim(stack, tmp_path, cold, source, disk_dir)
    stack.cairn.stop()

    # Two lives that end well: one fills the store, the other says how many calls a life has.
    requests = 3
    for lives in (12, requests):
        victim.log.unlink(missing_ok=True)
        assert victim.start(0)
        victim.live(lives)
        commits = stack.cairn.status()["store"]["commits"]
        stack.cairn.stop()
    calls = int(victim.log.read_text().split()[0])
    assert calls > 50 and commits > 0, "nothing is saved, or the calls are not seen"
    victim.check_killed()
    assert victim.announced.saved >= commits, "what is saved is not said"

    steps = collections.Counter()
    began = time.monotonic()
    kills = (KILLS + 1) // 2  # of each kind
    for number in range(kills):
        victim.log.unlink(missing_ok=True)
        if victim.start(source.randrange(1, calls + 1), after=source.random() < 0.5):
            victim.check_start()
            victim.live(requests)
        if victim.killed():
            _, name, path = (victim.log.read_text().split() + [""])[:3]
            kind = path.split(".", 1)[-1] if path.startswith("cairn-") else path
            steps[f"{name} {kind}"] += 1
        else:
            steps["idle or answering"] += 1
        stack.cairn.kill()
        if source.random() < 0.2:  # the backend may go the same way
            stack.backend.kill()
            stack.start_backend()
        victim.check_killed()
        if tiers and source.random() < 0.2:
            victim.emptied_ram()
    victim.log.unlink(missing_ok=True)
    assert victim.start(0)
    victim.check_start()
    for prompt in victim.prompts[-6:]:
        victim.ask(prompt)
    stack.cairn.stop()
    victim.check_killed()
    for step, count in sorted(steps.items()):
        print(f"{count:4} {step}")
    print(f"{kills} kills in {time.monotonic() - began:.0f} s, {calls} calls a life; {victim.from_before} answers from states of before a kill; "
          f"off by at most {victim.worst:.4f}")
    assert victim.from_before > kills / 4
    # Of few kills most may come too late for a call.
    assert sum(steps.values()) - steps["idle or answering"] > (kills / 2 if kills >= 20 else 0)
