"""The commands about saved states, with a Cairn that serves and without, and the same over HTTP."""

import contextlib
import fcntl
import http.server
import json
import sqlite3
import subprocess
import threading

import pytest

from stack import (Cairn, cairn_binary, call, free_port, prose, take_write_access, tokens, wait_until,
                   without_roots_powers)
from test_endpoints import infill_flags, special_tokens  # noqa: F401 (a fixture)


def command_of(*arguments):
    command = [cairn_binary(), *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def told(stack, *arguments, status=0, stdin=None):
    """What a command says: on stdout, and on stderr."""
    command = [cairn_binary(), *arguments, "--listen", f"127.0.0.1:{stack.cairn_port}", "--slot-dir", stack.slot_dir,
               "--state-dir", stack.state_dir]
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done.stdout, done.stderr


def run(stack, *arguments, status=0, stdin=None):
    """A command's JSON."""
    out, err = told(stack, *arguments, "--json", status=status, stdin=stdin)
    return json.loads(out) if out else err


def saved(stack, count):
    for seed in range(count):
        stack.complete(tokens(300, seed=f"state {seed}"))
        stack.cairn.settle()


@pytest.mark.parametrize("serving", [True, False], ids=["over_http", "offline"])
def test_list_show_pin_verify_evict(make_stack, serving):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 3)
    if not serving:
        stack.cairn.stop()
    listed = run(stack, "list")["checkpoints"]
    assert len(listed) == 3
    one, two, three = (entry["id"] for entry in listed)
    assert all(entry["tokens"] >= 300 and not entry["pinned"] for entry in listed)

    shown = run(stack, "show", one)
    assert shown["files"][0]["bytes"] == listed[0]["bytes"] and shown["model"]["build"]
    path = stack.slot_dir / shown["files"][0]["name"]
    assert path.stat().st_size == shown["bytes"]

    assert run(stack, "pin", one, "--label", "system prompt")[0]["pin_label"] == "system prompt"
    refused = run(stack, "evict", one, two, status=1)
    assert "pinned" in refused[0]["error"] and refused[1]["id"] == two
    assert [entry["id"] for entry in run(stack, "list")["checkpoints"]] == [one, three]
    assert path.exists()

    assert [entry["good"] for entry in run(stack, "verify")] == [True, True]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    bad, good = run(stack, "verify", status=1)
    assert bad["id"] == one and not bad["good"] and good["good"]
    assert not path.exists(), "a bad state is dropped"

    run(stack, "pin", three)
    assert run(stack, "evict", "--all") == [{"pinned": 1}]
    out, err = told(stack, "evict", "--all")
    assert not out and err == "cairn: 1 pinned state stays\n", "what is pinned is left out, and is no error"
    assert [entry["id"] for entry in run(stack, "list")["checkpoints"]] == [three]
    assert not run(stack, "unpin", three)[0]["pinned"]
    run(stack, "evict", "--all")
    assert run(stack, "list")["checkpoints"] == []
    assert [path.name for path in stack.slot_dir.iterdir()] == ["cairn.lock"]
    assert "there is no checkpoint" in run(stack, "show", one, status=1)["error"]


def test_before_the_first_serve_a_command_leaves_nothing_behind(tmp_path):
    """`sudo cairn list` made directories, locks and an index of root's, which the server then could not write."""
    state, slots, disk = (tmp_path / name for name in ("state", "slots", "disk"))
    where = ("--listen", f"127.0.0.1:{free_port()}", "--slot-dir", slots, "--state-dir", state, "--backend", "http://127.0.0.1:1")
    for tiers in ((), ("--disk-dir", disk)):
        for command in (("list",), ("show", 1), ("pin", 1), ("evict", "--all"), ("verify",), ("list", "--json")):
            done = command_of(*command, *where, *tiers)
            assert done.returncode == 1, done
            told_at, silent = (done.stdout, done.stderr) if "--json" in command else (done.stderr, done.stdout)
            assert f"no store in {state}" in told_at and not silent, done
        done = command_of("check", *where, *tiers)
        assert done.returncode == 1 and "saved states   0, 0 MiB of" in done.stdout, done
    assert list(tmp_path.iterdir()) == []


def files_below(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "cairn.lock"}


def test_check_changes_no_store(make_stack):
    """With another budget than the server's it evicted what was over its own; what it found damaged was set aside and swept."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 3)
    stack.cairn.stop()
    before = files_below(stack.slot_dir, stack.state_dir)
    states = [path for path in before if path.suffix == ".state"]
    assert len(states) == 3

    def check(*more, status=0):
        done = command_of("check", "--backend", f"http://127.0.0.1:{stack.backend_port}", "--slot-dir", stack.slot_dir,
                          "--state-dir", stack.state_dir, *more)
        assert done.returncode == status, done
        return done.stdout

    told_of = check("--budget", "1MiB")
    assert "saved states   3, " in told_of and "would evict" in told_of and "files of version" in told_of, told_of
    check("--min-free", "1000TiB")
    assert files_below(stack.slot_dir, stack.state_dir) == before
    states[0].rename(states[0].with_suffix(".away"))
    for _ in range(4):
        assert "1 more states that the index names are missing" in check()
    states[0].with_suffix(".away").rename(states[0])
    assert files_below(stack.slot_dir, stack.state_dir) == before
    index = stack.state_dir / "index.sqlite"
    index.write_bytes(b"x" * 10000)
    assert "set that index aside" in check(status=1)
    assert index.read_bytes() == b"x" * 10000 and all(path.exists() for path in states)
    index.write_bytes(before[index])
    stack.start_cairn()
    stack.cairn.wait_phase("ready")
    assert len(run(stack, "list")["checkpoints"]) == 3


def test_a_server_waits_for_a_command_and_not_for_another_server(make_stack):
    """Started while `cairn verify` reads hundreds of gigabytes, it ended with 1."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    lock = stack.state_dir / "cairn.lock"
    rival = command_of("serve", "--listen", f"127.0.0.1:{free_port()}", "--slot-dir", stack.slot_dir, "--state-dir", stack.state_dir)
    assert rival.returncode == 1 and f"(cairn serve, process {stack.cairn.child.pid})" in rival.stderr, rival
    stack.cairn.stop()
    run(stack, "list")
    assert lock.read_text().startswith("a command, process "), "who comes later is told"
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stack.start_cairn()
        assert stack.complete(tokens(300, seed="passed on")).answer.status == 200
        assert "store" not in stack.cairn.status()
    wait_until(lambda: "store" in stack.cairn.status(), "it takes the store when the command is done")
    stack.cairn.wait_phase("ready")
    assert len(run(stack, "list")["checkpoints"]) == 1


def test_of_two_servers_that_waited_for_a_command_one_says_that_it_goes_on_without_a_store(tmp_path):
    """It tried again for ever without a word."""
    slots, state = tmp_path / "slots", tmp_path / "state"
    slots.mkdir()
    state.mkdir()
    servers = []
    try:
        with open(state / "cairn.lock", "w", encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            held.write("a command, process 1")
            held.flush()
            servers += [Cairn(free_port(), 1, slots, state, tmp_path / f"{name}.log") for name in ("one", "two")]
        wait_until(lambda: any("store" in server.status() for server in servers), "one of them has it")
        has, without = sorted(servers, key=lambda server: "store" not in server.status())
        told_of = f"(cairn serve, process {has.child.pid})"
        wait_until(lambda: told_of in without.log.read_text(), "the other says why it has none")
        assert without.running and without.log.read_text().count(told_of) == 1
        has.stop()
        wait_until(lambda: "store" in without.status(), "it takes the store when that one has ended")
    finally:
        for server in servers:
            server.kill()


def test_check_tells_a_server_of_another_configuration_from_its_own(make_stack):
    """It said that all is well where `cairn serve` would end at once."""
    stack = make_stack("llama", backend_flags=("-np", "2"))

    def check(port):
        done = command_of("check", "--backend", f"http://127.0.0.1:{stack.backend_port}", "--listen", f"127.0.0.1:{port}",
                          "--slot-dir", stack.slot_dir, "--state-dir", stack.state_dir)
        assert "another Cairn uses these directories" in done.stdout, done
        return done.returncode, "cairn serve would end" in done.stdout
    assert check(stack.cairn_port) == (0, False)
    assert check(free_port()) == (0, True)
    stack.cairn.stop()
    run(stack, "list")
    with open(stack.state_dir / "cairn.lock", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert check(free_port()) == (0, False), "a command ends"


@pytest.mark.parametrize("what", ["no_index", "no_directory", "another_index", "unreadable"])
def test_a_command_leaves_the_store_of_another_alone(make_stack, tmp_path, what):
    """`cairn evict --all` with a state_dir that was mistyped emptied the store of whoever answered at `listen`."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    named = tmp_path / "named"
    if what != "no_directory":
        named.mkdir()
    if what == "unreadable":
        (named / "index.sqlite").mkdir()
    if what == "another_index":
        (tmp_path / "others").mkdir()
        other = Cairn(free_port(), 1, tmp_path / "others", named, tmp_path / "other.log")
        other.stop()
    for command in (("evict", "--all"), ("list",), ("verify",), ("pin", 1), ("warm", "-")):
        done = command_of(*command, "--listen", f"127.0.0.1:{stack.cairn_port}", "--slot-dir", stack.slot_dir, "--state-dir", named)
        assert done.returncode == 1 and not done.stdout, done
        assert f"has another store than the one in {named}: its index is in {stack.state_dir}" in done.stderr, done
    assert len(run(stack, "list")["checkpoints"]) == 1
    alone = command_of("list", "--json", "--listen", f"127.0.0.1:{stack.cairn_port}")
    assert len(json.loads(alone.stdout)["checkpoints"]) == 1, "who names none means whatever is there"


def test_a_command_knows_a_store_by_its_index_under_another_path(make_stack, tmp_path):
    """As that of a server in a container is."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    seen = tmp_path / "as_the_host_sees_it"
    seen.symlink_to(stack.state_dir)
    own = call(stack.cairn_port, "GET", "/cairn/status").json()["store"]
    assert own["state_dir"] == str(stack.state_dir) and len(own["index_id"]) == 32
    for state_dir in (seen, f"{stack.state_dir}/../state/"):
        done = command_of("list", "--json", "--listen", f"127.0.0.1:{stack.cairn_port}", "--slot-dir", stack.slot_dir, "--state-dir", state_dir)
        assert done.returncode == 0 and len(json.loads(done.stdout)["checkpoints"]) == 1, done

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            store = {"state_dir": "/in/a/container", "index_id": own["index_id"]}
            body = json.dumps({"store": store, "checkpoints": [], "bytes": 0, "absent": 0}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = command_of("list", "--json", "--listen", f"127.0.0.1:{server.server_port}", "--slot-dir", stack.slot_dir, "--state-dir", stack.state_dir)
        assert done.returncode == 0 and json.loads(done.stdout)["checkpoints"] == [], done
        server.shutdown()


def test_verify_says_in_json_what_is_missing(make_stack):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 2)
    stack.cairn.stop()
    sorted(stack.slot_dir.glob("*.state"))[0].unlink()
    good, absent = run(stack, "verify", status=1)
    assert good["good"] and absent["absent"] == 1 and "missing" in absent["error"]


def change_index(stack, *statements):
    with contextlib.closing(sqlite3.connect(stack.state_dir / "index.sqlite")) as index, index:
        for statement in statements:
            assert index.execute(statement).rowcount == 1, statement


def test_damage_in_the_index_is_told(make_stack):
    """An entry that failed its seal vanished from the list; a state without its tokens was good, and dropped at the next start. Nobody
    said a word."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 3)
    stack.cairn.stop()
    one, two, three = (entry["id"] for entry in run(stack, "list")["checkpoints"])
    assert run(stack, "list")["damaged"] == 0
    change_index(stack, f"UPDATE checkpoints SET seal=seal+1 WHERE id={one}",
                 f"UPDATE checkpoint_tokens SET tokens=x'0102' WHERE checkpoint_id={two}")
    assert run(stack, "list")["damaged"] == 1
    assert told(stack, "list")[1].startswith("cairn: 1 more entries of the index are damaged")
    checked = command_of("check", "--backend", f"http://127.0.0.1:{stack.backend_port}", "--slot-dir", stack.slot_dir, "--state-dir", stack.state_dir)
    assert "1 entries of the index are damaged" in checked.stdout
    files = files_below(stack.slot_dir)
    bad, good, damaged = run(stack, "verify", status=1)
    assert bad["id"] == two and not bad["good"] and "tokens" in bad["why"], bad
    assert good["id"] == three and good["good"] and damaged["damaged"] == 1 and "damaged" in damaged["error"]
    assert len(files_below(stack.slot_dir)) == len(files) - 1, "the bad one is dropped with its file, the other by who serves"
    change_index(stack, f"DELETE FROM checkpoint_tokens WHERE checkpoint_id={three}")
    stack.start_cairn()
    wait_until(lambda: "store" in stack.cairn.status(), "the store is open")
    assert "2 entries of the index were damaged" in stack.cairn_log.read_text()
    listed = run(stack, "list")
    assert listed["checkpoints"] == [] and listed["damaged"] == 0
    assert run(stack, "verify") == []


def test_damage_that_only_writes_come_upon_is_told_and_mended(make_stack):
    """Every row could be read and every state was good; nothing could be saved any more."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 2)
    stack.cairn.stop()
    path = stack.state_dir / "index.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as index:
        root, = index.execute("SELECT rootpage FROM sqlite_schema WHERE name='sqlite_autoindex_checkpoints_1'").fetchone()
        page, = index.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * 16)
    before = path.read_bytes()
    *good, bad = run(stack, "verify", status=1)
    assert len(good) == 2 and all(one["good"] for one in good), good
    assert not bad["index_good"] and "damaged" in bad["error"], bad
    assert path.read_bytes() == before
    stack.start_cairn()
    stack.cairn.wait_phase("ready")
    saved(stack, 3)
    assert len(run(stack, "list")["checkpoints"]) == 3
    assert stack.cairn_log.read_text().count("the index was damaged, and built anew") == 1
    assert all(one["good"] for one in run(stack, "verify"))


def test_check_says_that_slot_dir_may_not_be_written(make_stack):
    """All was well, and `cairn serve` filled the disk with states that it could neither rename nor delete."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    stack.cairn.stop()
    take_write_access(stack.slot_dir)
    before = files_below(stack.slot_dir)
    command = [*without_roots_powers(), cairn_binary(), "check", "--backend", f"http://127.0.0.1:{stack.backend_port}", "--slot-dir", stack.slot_dir,
               "--state-dir", stack.state_dir]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert "slot_dir cannot be written" in done.stdout and "give write access" in done.stdout, done.stdout
    assert files_below(stack.slot_dir) == before


def test_verify_over_http_reads_the_tokens(make_stack):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 2)
    one, two = (entry["id"] for entry in run(stack, "list")["checkpoints"])
    change_index(stack, f"UPDATE checkpoint_tokens SET tokens=x'0102' WHERE checkpoint_id={one}")
    bad, good = run(stack, "verify", status=1)
    assert bad["id"] == one and not bad["good"] and good["good"]
    assert [entry["id"] for entry in run(stack, "list")["checkpoints"]] == [two]
    assert len(list(stack.slot_dir.glob("*.state"))) == 1


def test_verify_of_all_takes_no_evicted_state_for_a_bad_one(tmp_path):
    """One that a busy server evicted between the list and its turn made the command end with 1."""
    class Server(http.server.BaseHTTPRequestHandler):
        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(200, {"absent": 0, "checkpoints": [{"id": 1, "pinned": False}, {"id": 2, "pinned": False}]})

        def do_POST(self):
            if self.path == "/cairn/checkpoints/1/verify":
                self.answer(404, {"error": {"message": "there is no checkpoint 1"}})
            else:
                self.answer(200, {"id": 2, "good": True, "bytes": 1, "seconds": 0.0})

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        listen = ("--listen", f"127.0.0.1:{server.server_port}")
        for json_flag, said in (((), "1: gone meanwhile\n2: good"), (("--json",), '[{"id":1,"gone":true},{"id":2,"good":true')):
            done = command_of("verify", *json_flag, *listen)
            assert done.returncode == 0 and done.stdout.startswith(said), done
        named = command_of("verify", 1, *listen)
        assert named.returncode == 1 and "there is no checkpoint" in named.stdout, "one that was asked for is missed"
        server.shutdown()


def test_over_http_mistakes_are_named(make_stack):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    port = stack.cairn_port
    number = call(port, "GET", "/cairn/checkpoints").json()["checkpoints"][0]["id"]
    for method, path, body, status in [
            ("GET", f"/cairn/checkpoints/{number}", None, 200), ("POST", "/cairn/checkpoints", None, 400), ("PUT", "/cairn/checkpoints", None, 405),
            ("GET", "/cairn/checkpoints/x", None, 404), ("GET", "/cairn/checkpoints/", None, 404),
            ("GET", f"/cairn/checkpoints/{number}0", None, 404), ("GET", f"/cairn/checkpoints/{number}x", None, 404),
            ("GET", f"/cairn/checkpoints/{number}/pin", None, 405), ("POST", f"/cairn/checkpoints/{number}/steal", None, 404),
            ("POST", f"/cairn/checkpoints/{number}/pin", b"[1]", 400), ("POST", f"/cairn/checkpoints/{number}/pin", {"label": 1}, 400),
            ("POST", f"/cairn/checkpoints/{number}/pin", {"label": "x"}, 200), ("DELETE", f"/cairn/checkpoints/{number}", None, 409),
            ("POST", f"/cairn/checkpoints/{number}/unpin", None, 200), ("DELETE", f"/cairn/checkpoints/{number}", None, 200),
            ("DELETE", f"/cairn/checkpoints/{number}", None, 404), ("GET", "/cairn/checkpointsx", None, 404)]:
        answer = call(port, method, path, body)
        assert answer.status == status, (method, path, answer.status, answer.body)
        assert status == 200 or answer.json()["error"]["message"]


def test_a_label_cannot_speak_to_the_terminal(make_stack):
    """`cairn list` sent what was in it as it was: it could clear the screen, or hide what is listed."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    number = run(stack, "list")["checkpoints"][0]["id"]
    for label in ("\x1b[2J", "two\nlines", "\x7f", "\u009b2J", "\0"):
        answer = call(stack.cairn_port, "POST", f"/cairn/checkpoints/{number}/pin", {"label": label})
        assert answer.status == 400 and "control characters" in answer.json()["error"]["message"], (label, answer.body)
    assert "control characters" in told(stack, "pin", number, "--label", "\x1b[2J", status=1)[0]
    assert not run(stack, "list")["checkpoints"][0]["pinned"]
    run(stack, "pin", number, "--label", "caf\u00e9 \u4e2d")
    assert "caf\u00e9 \u4e2d" in told(stack, "list")[0]
    stack.cairn.stop()
    change_index(stack, "UPDATE checkpoints SET pin_label='\x1b[2J'")
    for command in (("list",), ("show", number)):
        out = told(stack, *command)[0]
        assert "\\x1b[2J" in out and "\x1b" not in out, "of an older version's"


def test_warm_makes_prompts_cheap(make_stack, tmp_path):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    text = prose(500, 1)
    chat = {"messages": [{"role": "system", "content": prose(400, 2)}, {"role": "user", "content": "hello"}], "stream": True}
    (tmp_path / "prompt.txt").write_text(text)
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    warmed = run(stack, "warm", tmp_path / "prompt.txt", tmp_path / "chat.json", "-", stdin=prose(300, 3))
    assert all(result["saved"] and result["computed_tokens"] + result["reused_tokens"] > 100 for result in warmed)
    stack.restart()
    again = stack.ask({"prompt": text, "n_predict": 1})
    assert again.computed <= 4, "of the prompt's text"
    answered = stack.ask({**chat, "stream": False, "max_tokens": 1}, "/v1/chat/completions")
    assert answered.computed <= 16, "of the chat"
    assert "cannot be read" in run(stack, "warm", tmp_path / "missing", status=1)[0]["error"]


def test_warm_counts_all_that_was_computed(make_stack, tmp_path):
    """Of an empty store it said that half the prompt was there: the pieces that Cairn had computed a moment before."""
    config = tmp_path / "cairn.yaml"
    config.write_text("checkpoint_budget: 50%\n")
    stack = make_stack("granitehybrid", backend_flags=("-np", "2"), cairn_flags=("--config", str(config), "--checkpoint-interval", "512"))
    answer = call(stack.cairn_port, "POST", "/cairn/checkpoints", prose(900, 1).encode())
    pieces, timings = int(answer.header("X-Cairn-Computed-Before")), answer.json()["timings"]
    assert 0 < pieces <= timings["cache_n"] and pieces + timings["prompt_n"] == stack.cairn.status()["latest_requests"][0]["computed_tokens"]
    assert call(stack.cairn_port, "POST", "/completion", {"prompt": "hello", "n_predict": 0}).header("X-Cairn-Computed-Before") is None
    (tmp_path / "prompt.txt").write_text(prose(900, 2))
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [{"role": "user", "content": prose(900, 3)}]}))
    for name in ("prompt.txt", "chat.json"):
        before = stack.backend.total()
        warmed, = run(stack, "warm", tmp_path / name)
        record = stack.cairn.status()["latest_requests"][0]
        assert warmed["computed_tokens"] == record["computed_tokens"] == stack.backend.total() - before, (warmed, record)
        assert warmed["computed_tokens"] + warmed["reused_tokens"] == record["prompt_tokens"] > 900
        assert warmed["saved"] and warmed["reused_tokens"] < 50
    again, = run(stack, "warm", tmp_path / "prompt.txt")
    assert again["saved"] and again["computed_tokens"] <= 4 and again["reused_tokens"] > 900, again


def test_warm_says_saved_of_nothing_else(make_stack, tmp_path):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    (tmp_path / "prompt.txt").write_text(prose(500, 1))
    (tmp_path / "few.txt").write_text("hello there")
    (tmp_path / "long.txt").write_text(prose(3000, 2))

    def warm(*names):
        results = json.loads(command_of("warm", *(tmp_path / name for name in names), "--json", "--listen", f"127.0.0.1:{stack.cairn_port}").stdout)
        return [result["saved"] for result in results]
    assert warm("few.txt", "prompt.txt", "few.txt") == [False, True, False], "a few tokens are never saved"
    assert warm("prompt.txt") == [True], "it was saved already"
    stack.cairn_flags = (*stack.cairn_flags, "--budget", "5MiB")
    stack.restart_cairn()
    assert warm("long.txt", "long.txt") == [False, False], "it does not fit, though a slot has it"
    assert "more than the whole budget" in told(stack, "warm", tmp_path / "long.txt", status=1)[0]
    assert stack.cairn.status()["store"]["refused_for_space"] > 0


def test_warm_without_a_store_has_saved_nothing(make_stack, tmp_path):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    (tmp_path / "prompt.txt").write_text(prose(500, 1))
    stack.cairn.stop()
    stack.cairn = Cairn(stack.cairn_port, stack.backend_port, None, None, stack.cairn_log)
    stack.cairn.wait_phase("plain")
    assert [result["saved"] for result in run(stack, "warm", tmp_path / "prompt.txt", tmp_path / "prompt.txt", status=1)] == [False, False]
    assert told(stack, "warm", tmp_path / "prompt.txt", status=1)[0].endswith("; not saved: the Cairn that serves has no store\n"), "and ends so"


def test_warm_goes_on_after_a_directory(make_stack, tmp_path):
    stack = make_stack("llama", backend_flags=("-np", "2"))
    (tmp_path / "prompt.txt").write_text(prose(100, 1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    folder, empty, prompt = run(stack, "warm", tmp_path / "folder", tmp_path / "empty.txt", tmp_path / "prompt.txt", status=1)
    assert folder["error"] == "is a directory" and empty["error"] == "is empty"
    assert prompt["saved"]


def test_warm_sends_a_body_where_it_belongs(make_stack, tmp_path):
    """What was no chat and had no prompt was warmed as text, and Anthropic's system prompt was dropped."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    messages = {"system": prose(400, 1), "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "stream": True}
    responses = {"instructions": prose(400, 2), "input": "hello", "max_output_tokens": 9}
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    (tmp_path / "responses.json").write_text(json.dumps(responses))
    (tmp_path / "other.json").write_text(json.dumps({"content": prose(100, 3)}))
    *warmed, other = run(stack, "warm", *(tmp_path / f"{name}.json" for name in ("messages", "responses", "other")), status=1)
    assert all(result["saved"] and result["computed_tokens"] + result["reused_tokens"] > 400 for result in warmed), warmed
    assert "no request with a prompt" in other["error"]
    stack.restart()
    usage = call(stack.cairn_port, "POST", "/v1/messages", {**messages, "stream": False, "max_tokens": 1}).json()["usage"]
    assert usage["cache_read_input_tokens"] > 400 and usage["input_tokens"] <= 16, usage
    usage = call(stack.cairn_port, "POST", "/v1/responses", {**responses, "max_output_tokens": 1}).json()["usage"]
    assert usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"] <= 16, usage


def test_warm_over_http(make_stack):
    stack = make_stack("granitehybrid", backend_flags=("-np", "2"))
    chat = {"messages": [{"role": "user", "content": prose(400, 1)}], "stream": True, "max_tokens": 50}
    text = prose(400, 2)

    def warm(body, status=200):
        answer = call(stack.cairn_port, "POST", "/cairn/checkpoints", body, headers={"Content-Type": "text/plain"})
        assert answer.status == status, answer.body
        return answer.json()
    assert warm(json.dumps(chat).encode())["usage"]["completion_tokens"] <= 1
    assert warm(text.encode())["timings"]["prompt_n"] > 400
    assert "no request with a prompt" in warm(b'{"content": 1}', 400)["error"]["message"]
    assert "empty" in warm(b"", 400)["error"]["message"]
    stack.cairn.settle()
    stack.restart()
    asked = stack.ask({**chat, "stream": False, "max_tokens": 1}, "/v1/chat/completions")
    assert asked.computed <= 16
    assert stack.ask({"prompt": text, "n_predict": 1}).computed <= 16


def test_warm_takes_no_slip_in_a_body_for_a_text(make_stack, tmp_path):
    """Of schemas that nest deep, and of bodies with a comma too many, the JSON itself was warmed and reported as saved."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    schema = {"type": "object"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"inner": schema}}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    chat = {"messages": [{"role": "user", "content": prose(100, 1)}], "tools": [tool]}
    (tmp_path / "deep.json").write_text(json.dumps(chat))
    (tmp_path / "slip.json").write_text(json.dumps({"messages": chat["messages"]})[:-1] + ",}")
    (tmp_path / "lines.jsonl").write_text(f'{{"text": "{prose(100, 2)}"}}\n' * 2)
    (tmp_path / "behind.json").write_text(json.dumps({"messages": chat["messages"]}) + "}")
    deep, slip, behind, lines = run(stack, "warm", *(tmp_path / name for name in ("deep.json", "slip.json", "behind.json", "lines.jsonl")), status=1)
    assert "is no JSON" in behind["error"]
    assert deep["computed_tokens"] + deep["reused_tokens"] == len(stack.backend.chat_tokens(chat))
    assert "is no JSON" in slip["error"]
    assert lines["saved"]


def test_warm_fills_in(make_stack, special_tokens, tmp_path):  # noqa: F811
    stack = make_stack("llama", backend_flags=("-np", "2", *infill_flags(special_tokens)))
    body = {"input_prefix": prose(300, 1), "input_suffix": prose(30, 2), "prompt": "  ", "n_predict": 9}
    (tmp_path / "infill.json").write_text(json.dumps(body))
    warmed, = run(stack, "warm", tmp_path / "infill.json")
    assert warmed["saved"] and warmed["computed_tokens"] > 300, warmed
    stack.restart()
    assert stack.ask({**body, "n_predict": 1}, "/infill").computed <= 64


def simulate(*arguments):
    return command_of("simulate", *arguments)


def test_simulate_says_when_there_is_nothing_to_replay(tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.touch()
    done = simulate("--trace", trace)
    assert done.returncode == 1 and done.stderr == "cairn: the trace holds no requests\n" and not done.stdout, done
    done = simulate("--trace", trace, "--json")
    assert done.returncode == 1 and json.loads(done.stdout) == {"error": "the trace holds no requests"}, done


def test_simulate_refuses_a_budget_of_nothing(tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 512, "hash_ids": [1]}\n' * 3)
    for nothing in ("0", "0GiB", "10GiB,0"):
        done = simulate("--trace", trace, "--budget", nothing)
        assert done.returncode == 2 and "--budget: " in done.stderr and "no room" in done.stderr, (nothing, done)
        assert not done.stdout
    done = simulate("--trace", trace, "--budget", "0.0000000001%", "--json")
    assert done.returncode == 0, done.stderr
    run_of_one_byte = json.loads(done.stdout)["runs"][0]
    assert run_of_one_byte["budget_bytes"] == 1 and run_of_one_byte["hit_rate"] == 0, "not unbounded"


def test_simulate_skips_a_line_that_is_cut_off_and_says_so(tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 512, "hash_ids": [1]}\n{"timest')
    done = simulate("--trace", trace, "--budget", "1GiB", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"cairn: {trace}: 1 of 2 lines skipped; the first, line 2: no JSON\n"
    assert json.loads(done.stdout)


def test_output_that_is_lost_is_no_success(make_stack, tmp_path):
    """Onto a full disk, `list --json` and `simulate --json` wrote nothing and ended with 0."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    saved(stack, 1)
    where = ("--listen", f"127.0.0.1:{stack.cairn_port}", "--slot-dir", stack.slot_dir, "--state-dir", stack.state_dir)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 512, "hash_ids": [1]}\n' * 3)
    many = [str(number) for number in range(1, 200)]  # more than a buffer holds
    for command, status in [(("list", *where), 1), (("list", "--json", *where), 1), (("verify", *where), 1), (("pin", *many, *where), 1),
                            (("simulate", "--trace", trace, "--json"), 1), (("simulate", "--trace", trace, "--budget", ",".join(["1GiB"] * 99)), 1),
                            (("--help",), 1), (("check", "--backend", f"http://127.0.0.1:{stack.backend_port}", *where), 1),
                            (("simulate", "--trace", trace, "--budget", "0", "--json"), 2)]:
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([str(part) for part in (cairn_binary(), *command)], stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=60, check=False)
        assert done.returncode == status and done.stderr.endswith("cairn: the output could not be written\n"), (command, done)
        assert "terminate" not in done.stderr and "not what was expected" not in done.stderr, done


def test_tiers_survive_an_emptied_ram_and_say_where_states_are(make_stack, tmp_path):
    """The slot directory is emptied while both are down, as a reboot does with /dev/shm."""
    disk = tmp_path / "disk"
    where = ("--disk-dir", disk, "--ram-budget", "64MiB")
    stack = make_stack("llama", backend_flags=("-np", "2"), cairn_flags=("--checkpoint-interval", "off", *map(str, where)))
    first = tokens(900, seed=1)
    stack.complete(first)
    stack.cairn.settle()

    def tiers():
        return {one["tier"] for one in run(stack, "list", *where)["checkpoints"]}
    wait_until(lambda: tiers() == {"ram+disk"}, "the state is copied")
    stack.stop()
    assert tiers() == {"ram+disk"}, "the command finds them, too"
    assert "must name it" in run(stack, "list", status=1)["error"], "to look without disk_dir must not forget what lies there"
    for path in stack.slot_dir.iterdir():
        path.unlink()
    assert tiers() == {"disk"}
    stack.start()
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1
    assert stack.cairn.status()["store"]["brought_up"] == 1
    wait_until(lambda: tiers() == {"ram+disk"}, "all are in both again")
    bad = next(path for path in disk.iterdir() if path.suffix == ".state")
    bad.write_bytes(bytes(bad.stat().st_size))
    number = run(stack, "list", *where)["checkpoints"][0]["id"]
    out, _ = told(stack, "verify", number, *where, status=1)
    assert out.startswith(f"{number}: good, ") and f"; a second copy is bad: {bad} does not match its checksum" in out, out
    stack.complete(first)
    wait_until(lambda: tiers() == {"ram+disk"}, "the copy is made anew")
    bad.write_bytes(bytes(bad.stat().st_size))
    one, = run(stack, "verify", *where, status=1)
    assert one["good"] and "checksum" in one["other_copy"]


def test_without_a_server_or_a_store_there_is_an_error(make_stack):
    stack = make_stack("llama", backend_flags=("-np", "1"))
    stack.cairn.stop()
    assert "no Cairn answers" in run(stack, "warm", "-", status=1, stdin="x" * 100)[0]["error"]
