"""What `cairn warm` is told of its prompts, beside other clients."""

import http.server
import json
import os
import pty
import subprocess
import threading

from scripted_rig import LONG, prompt
from stack import cairn_binary, call, free_port

REFUSED = "Unable to save slot"  # as the scripted backend refuses a save


def text(count, seed):
    return bytes(prompt(count, seed)).replace(b"{", b"a")


def post(rig, count, seed):
    """The number under which it is told what becomes of the prompt."""
    rig.asked += 1
    answer = call(rig.cairn_port, "POST", "/cairn/checkpoints", text(count, seed))
    assert answer.status == 200, answer.body
    return int(answer.header("X-Cairn-Warmed"))


def told(rig, number):
    answer = call(rig.cairn_port, "GET", f"/cairn/checkpoints/warmed/{number}")
    assert answer.status == 200 and answer.json()["id"] == number, answer.body
    return answer.json()["outcome"], answer.json().get("why", "")


def warm(port, *files, status=0):
    command = [cairn_binary(), "warm", "--json", "--listen", f"127.0.0.1:{port}", *files]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == status, done
    return json.loads(done.stdout.decode())


# --- beside others ----------------------------------------------------------------------------------------

def test_a_busy_server_says_at_once_that_a_prompt_is_saved(rig, tmp_path):
    """While some slot was in use the command waited, for ten minutes a file, and then took the prompt for lost."""
    rig.start(state_version=4, slots=2)
    file = tmp_path / "prompt.txt"
    file.write_bytes(text(LONG, 2))
    number = post(rig, LONG, 2)
    rig.settle()
    with rig.streaming({"prompt": prompt(200, 1), "n_predict": 2}):
        assert told(rig, number) == ("saved", "")
        one, = warm(rig.cairn_port, file)
        assert one["outcome"] == "there" and one["saved"], one


def test_a_prompt_waits_for_a_quiet_moment(rig):
    rig.start(state_version=4, slots=2)
    with rig.streaming({"prompt": prompt(200, 1), "n_predict": 2}):
        number = post(rig, LONG, 2)
        assert told(rig, number) == ("waiting", "")
        rig.backend.hold_save = hold = threading.Event()
    assert told(rig, number) == ("waiting", "")
    hold.set()
    rig.settle()
    assert told(rig, number) == ("saved", "")


def test_what_becomes_of_other_prompts_is_not_told_of_this_one(rig):
    """Any other client's prompt that was refused made it "not saved", and any that was saved made it "saved"."""
    rig.start(state_version=4, slots=2)
    rig.backend.refuse_save = True
    refused = post(rig, LONG, 2)
    rig.settle()
    rig.backend.refuse_save = False
    assert rig.right(prompt(LONG, 3))
    rig.settle()
    assert rig.cairn.status()["store"]["commits"] > 0
    outcome, why = told(rig, refused)
    assert outcome == "failed" and REFUSED in why
    saved = post(rig, LONG, 4)
    rig.settle()
    rig.backend.refuse_save = True
    assert rig.right(prompt(LONG, 5))
    rig.settle()
    assert told(rig, saved) == ("saved", "")
    again = post(rig, LONG, 4)
    assert told(rig, again) == ("there", "")


def test_the_command_ends_with_1_where_a_prompt_is_not_saved_for_a_reason(rig, tmp_path):
    rig.start(state_version=4, slots=2)
    files = [tmp_path / name for name in ("few.txt", "prompt.txt", "refused.txt")]
    for file, count in zip(files, (20, LONG, LONG + 1)):
        file.write_bytes(text(count, count))
    few, good = warm(rig.cairn_port, *files[:2])
    assert few["outcome"] == "not_worth_saving" and "less than 64 tokens" in few["why"] and not few["saved"]
    assert good["outcome"] == "saved" and good["saved"] and "why" not in good
    rig.backend.refuse_save = True
    few, good, refused = warm(rig.cairn_port, *files, status=1)
    assert [one["outcome"] for one in (few, good, refused)] == ["not_worth_saving", "there", "failed"]
    assert REFUSED in refused["why"] and not refused["saved"]


def test_a_prompt_that_is_passed_on_uncached_is_not_saved(rig):
    rig.start(state_version=4, slots=1)
    body = json.dumps({"prompt": [prompt(LONG, 1), prompt(LONG, 2)]}).encode()
    answer = call(rig.cairn_port, "POST", "/cairn/checkpoints", body)
    number = int(answer.header("X-Cairn-Warmed"))
    outcome, why = told(rig, number)
    assert outcome == "failed" and "several_prompts" in why
    for path, status in (("999", 404), ("x", 404), ("", 404), (f"{number}x", 404)):
        assert call(rig.cairn_port, "GET", f"/cairn/checkpoints/warmed/{path}").status == status
    assert call(rig.cairn_port, "DELETE", f"/cairn/checkpoints/warmed/{number}").status == 405


class Busy(http.server.BaseHTTPRequestHandler):
    """A Cairn whose slots are always in use and whose other clients' prompts are declined, and which saves this one."""
    asked = []

    def answer(self, value, **fields):
        type(self).asked.append(f"{self.command} {self.path}")
        body = json.dumps(value).encode()
        self.send_response(200)
        for name, said in {"Content-Length": len(body), **fields}.items():
            self.send_header(name.replace("_", "-"), str(said))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/cairn/checkpoints/warmed/7":
            waited = sum("warmed" in one for one in self.asked) >= 4
            self.answer({"id": 7, "outcome": "saved" if waited else "waiting"})
        else:
            counts = {"commits": 0, "failed_commits": 0, "refused_for_space": 0, "declined": len(self.asked), "saving_paused": False}
            self.answer({"slots": [{"leased": True, "unsaved": True}], "store": counts})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"timings": {"prompt_n": 900, "cache_n": 0, "prompt_ms": 1, "predicted_n": 1}}, X_Cairn_Warmed=7)

    def log_message(self, *_):
        pass


def test_the_command_asks_for_its_own_prompt_alone(tmp_path):
    """It asked for the status page, which counts all states, twenty times a second."""
    (tmp_path / "prompt.txt").write_bytes(text(LONG, 2))
    Busy.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        one, = warm(server.server_port, tmp_path / "prompt.txt")
        server.shutdown()
    assert one["outcome"] == "saved" and one["computed_tokens"] == 900
    assert Busy.asked == ["GET /cairn/status", "POST /cairn/checkpoints", *["GET /cairn/checkpoints/warmed/7"] * 5]


# --- names of files ---------------------------------------------------------------------------------------

def test_names_of_files_are_shown_whatever_bytes_they_have(rig, tmp_path):
    """The JSON was no UTF-8, and a name could clear the screen."""
    rig.start(state_version=4, slots=1)
    names = [os.fsencode(tmp_path) + b"/" + name for name in (b"caf\xe9.txt", b"\x1b[2J.txt", "caf\u00e9.txt".encode())]
    shown = [os.fsencode(tmp_path).decode() + "/" + name for name in ("caf\\xe9.txt", "\\x1b[2J.txt", "caf\u00e9.txt")]
    for name in names:
        with open(name, "wb") as file:
            file.write(text(100, 1))
    told_of = [one["file"] for one in warm(rig.cairn_port, *names)]
    assert told_of == [shown[0], os.fsdecode(names[1]), shown[2]], "control characters are escaped by JSON"
    missing = os.fsencode(tmp_path) + b"/\x1b\xe9"
    # On a terminal, the line that tells how far it has come has them, too.
    ours, theirs = pty.openpty()
    done = subprocess.run([cairn_binary(), "warm", "--listen", f"127.0.0.1:{rig.cairn_port}", *names, missing], stdout=subprocess.PIPE,
                          stderr=theirs, timeout=60, check=False)
    os.close(theirs)
    screen = b""
    while b"cannot be read" not in screen:
        screen += os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 1
    said = done.stdout.decode()
    assert [line.split(": ")[0] for line in said.splitlines()] == shown
    assert b"\x1b[2J" not in screen and b"\xe9" not in screen.replace("\u00e9".encode(), b"")
    assert all(b"of 4: " + name.encode() in screen for name in shown) and b"\\x1b\\xe9: cannot be read" in screen, screen


def test_errors_with_names_of_files_are_json(tmp_path):
    state, trace = os.fsencode(tmp_path) + b"/st\xe9te", os.fsencode(tmp_path) + b"/tr\xe9ce"
    where = ["--listen", f"127.0.0.1:{free_port()}", "--slot-dir", tmp_path, "--state-dir", state]
    for command, said in ((["list", *where], "st\\xe9te"), (["simulate", "--trace", trace], "tr\\xe9ce")):
        done = subprocess.run([cairn_binary(), *command, "--json"], capture_output=True, timeout=60, check=False)
        assert done.returncode in (1, 2) and said in json.loads(done.stdout.decode())["error"], done
        done = subprocess.run([cairn_binary(), *command], capture_output=True, timeout=60, check=False)
        assert said in done.stderr.decode(), done


# --- how far it has come ----------------------------------------------------------------------------------

class Verifying(http.server.BaseHTTPRequestHandler):
    """A Cairn that has two states and reads the second one slowly: until it was looked at twice."""
    looks = 0
    looked = threading.Event()

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/cairn/checkpoints":
            states = [{"id": 1, "bytes": 100 << 20, "pinned": False}, {"id": 2, "bytes": 300 << 20, "pinned": False}]
            self.answer({"checkpoints": states, "bytes": 400 << 20, "absent": 0})
            return
        self.answer({"id": 2, "bytes": 300 << 20, "verified_bytes": 120 << 20})
        type(self).looks += 1
        if self.looks == 2:
            self.looked.set()

    def do_POST(self):
        if self.path == "/cairn/checkpoints/2/verify":
            assert self.looked.wait(30)
        self.answer({"id": 1, "good": True, "bytes": 1, "seconds": 0.0})

    def log_message(self, *_):
        pass


def test_verify_shows_how_far_it_has_come_within_a_large_state():
    """It said 0 of 1 to the end."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Verifying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ours, theirs = pty.openpty()
        done = subprocess.run([cairn_binary(), "verify", "--listen", f"127.0.0.1:{server.server_port}"], stdout=subprocess.DEVNULL,
                              stderr=theirs, timeout=60, check=False)
        os.close(theirs)
        screen = os.read(ours, 65536).decode()
        os.close(ours)
        server.shutdown()
    assert done.returncode == 0
    assert "] 0 of 2, 0.0 of 400.0 MiB" in screen and "] 1 of 2, 100.0 of 400.0 MiB" in screen
    assert f"[{'#' * 16}{'.' * 14}] 1 of 2, 220.0 of 400.0 MiB" in screen, screen
