"""What went wrong in other proxies of this kind, and the test of ours that would notice. Each row is a name that must exist.

Those that had no test elsewhere are below the table."""

import re
import threading

import pytest

from scripted_backend import render
from scripted_rig import LONG, prompt, read_until, told
from stack import REPOSITORY, call, common, free_port, wait_until
from tcp_gate import TcpGate

TABLE = {
    "the slot is lost for ever when a streaming client leaves": "integration/test_scripted.py test_client_leaves_during_its_answer",
    "a cancellation during a restore leaks the slot's lock":
        "integration/test_prior_art.py test_a_client_that_leaves_during_a_restore_leaks_no_slot",
    "concurrent requests all pile on slot 0": "integration/test_scripted.py test_two_slots_serve_two_at_a_time",
    "the chunk that carries [DONE] is dropped, with what came in the same read":
        "integration/test_prior_art.py test_content_usage_and_done_in_one_read_all_arrive",
    "a slow reader gets a truncated answer": "integration/test_life.py test_slow_reader_frees_its_slot_when_the_backend_is_done",
    "the restore's result is ignored": "integration/test_prior_art.py test_a_refused_restore_is_not_believed",
    "the slot is believed to hold the state before the restore happened":
        "integration/test_prior_art.py test_a_refused_restore_is_not_believed",
    "a failed save still writes the index entry":
        "integration/test_prior_art.py test_a_failed_save_leaves_no_entry_and_no_file",
    "the same key saved twice is counted twice": "integration/test_prior_art.py test_a_state_saved_twice_is_counted_once",
    "the same key saved again and again": "integration/test_prior_art.py test_what_was_saved_is_not_saved_again",
    "files whose entry is gone stay for ever":
        "integration/test_prior_art.py test_files_without_an_entry_are_removed_at_start",
    "prompts matched without case, roles, tools or template arguments":
        "integration/test_prior_art.py test_what_makes_another_prompt_is_never_matched",
    "the highest ratio wins instead of the longest prefix":
        "integration/test_prior_art.py test_the_longest_prefix_wins_not_the_highest_ratio",
    "template rendered without tools and chat_template_kwargs":
        "integration/test_prior_art.py test_the_template_sees_the_whole_body",
    "files keyed by model name, a new quantisation": "integration/test_scripted.py test_another_model_under_the_same_port",
    "files keyed by model name, another KV type": "integration/test_prior_art.py test_another_kv_type_under_the_same_name",
    "files keyed by model name, another context": "integration/test_prior_art.py test_another_context_under_the_same_name",
    "a file of backend A is restored on B": "integration/test_scripted.py test_another_model_while_cairn_was_away",
    "all metadata read and parsed on every request": "integration/test_prior_art.py test_no_file_is_read_to_find_a_match",
    "without include_usage the reused tokens read 0":
        "integration/test_prior_art.py test_reuse_is_known_without_include_usage",
    "good entries are punished where nothing is said of reuse":
        "integration/test_prior_art.py test_an_answer_that_tells_no_reuse_speaks_against_no_state",
    "connection pools poisoned by cancelled reads": "unit/backend_upstream_test.cpp AHalfReadAnswerIsNeverPooled",
    "half-open kept connections": "unit/backend_upstream_test.cpp ADeadPooledConnectionIsReplaced",
    "hanging closes": "integration/test_prior_art.py test_an_end_that_never_closes_holds_up_nobody",
    "the answer of one request given to another": "integration/test_life.py test_500_concurrent_streams",
    "the answer to an equal prompt, sampled otherwise, given to another":
        "integration/test_prior_art.py test_equal_prompts_at_the_same_time_are_answered_each_by_its_own_parameters",
}


@pytest.mark.parametrize("trouble", TABLE)
def test_each_has_its_test(trouble):
    path, name = TABLE[trouble].split()
    text = (REPOSITORY / "tests" / path).read_text()
    assert re.search(rf"^def {name}\(|^TEST(_F)?\(.*\b{name}\w*", text, re.MULTILINE), f"{path} has no {name}"


@pytest.fixture
def gated(rig):
    """Cairn in front of a gate in front of the backend."""
    behind, rig.backend_port = rig.backend_port, free_port()
    rig.start_backend(state_version=4)
    gate = TcpGate(behind, rig.backend_port)
    rig.backend_port = behind  # what Cairn gets to know
    try:
        rig.start_cairn()
        rig.backend.forget_calls()
        yield rig, gate
        rig.close()
    finally:
        gate.close()


def save_two(rig):
    """Two prompts, one after the other, each saved; of one slot, the second is in it."""
    prompts = prompt(LONG, 1), prompt(LONG, 2)
    for tokens in prompts:
        assert rig.right(tokens)
        rig.settle()
    return prompts


# --- slots and restores -----------------------------------------------------------------------------------

def test_a_client_that_leaves_during_a_restore_leaks_no_slot(rig):
    backend = rig.start(state_version=4)
    first, second = save_two(rig)
    backend.forget_calls()
    slot = backend.slots[0]
    with slot.lock:  # the restore waits
        client = rig.open({"prompt": first + prompt(50, 3), "n_predict": 2})
        wait_until(lambda: backend.slot_actions("restore"), "a restore is under way")
        client.close()
        rig.wait_free(10)
        assert rig.cairn.status()["slots"][0]["tokens"] == 0, "what it holds is not known"
    assert rig.right(first + prompt(50, 4))


def test_a_refused_restore_is_not_believed(rig):
    """The slot was put down as holding the state before the backend was asked, and whatever it said."""
    backend = rig.start(state_version=4)
    first, second = save_two(rig)
    backend.forget_calls()
    backend.hold_restore = threading.Event()
    backend.refuse_restore = True
    longer = first + prompt(50, 3)
    client = rig.open({"prompt": longer, "n_predict": 2})
    wait_until(lambda: backend.slot_actions("restore"), "a restore is under way")
    assert rig.cairn.status()["slots"][0]["tokens"] == 0, "it is believed before it happened"
    backend.hold_restore.set()
    assert backend.expected(longer).encode() in read_until(client, b"timings")
    client.close()
    rig.settle()
    assert backend.of(lambda made: made.is_piece), "it was sent as if only the end had to be computed"
    assert rig.latest()["miss"] == "restore_failed" and rig.latest()["reused_tokens"] == 0, rig.latest()


# --- streams ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["one send", "one send after the head", "one chunk"])
def test_content_usage_and_done_in_one_read_all_arrive(gated, form):
    """What came in the same read as [DONE] was dropped. The gate keeps an answer back until it is whole, and sends it at once."""
    rig, gate = gated
    backend = rig.backend
    kept, sent = {}, []

    def script(side, at, data):
        if side == "up":
            return [data]
        me = threading.get_ident()  # one for each direction of a connection
        kept[me] = kept.get(me, b"") + data
        if b"text/event-stream" not in kept[me]:
            return [kept.pop(me)]
        if not kept[me].endswith(b"0\r\n\r\n"):
            return []
        whole = kept.pop(me)
        head, body = whole.split(b"\r\n\r\n", 1)
        if form == "one chunk":
            body = b"".join(re.findall(rb"data: .*\n\n", body))
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        pieces = [head + b"\r\n\r\n", body]
        sent.append(re.findall(rb"data: .*\n\n", body))
        return pieces if form == "one send after the head" else [b"".join(pieces)]

    tokens = prompt(LONG, 1)
    assert rig.right(tokens)
    rig.settle()
    gate.script = script
    longer = tokens + prompt(60, 2)
    client = rig.open({"prompt": longer, "n_predict": 2, "stream": True})
    got = read_until(client, b"0\r\n\r\n")
    client.close()
    assert told(got) == backend.expected(longer)
    assert b'"timings"' in got and b"data: [DONE]" in got
    assert re.findall(rb"data: .*\n\n", got) == sent[-1]
    rig.settle()
    assert rig.latest()["reused_tokens"] == LONG and rig.latest()["computed_tokens"] == 60, "Cairn did not read it itself"


@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_reuse_is_known_without_include_usage(rig, path):
    rig.start(state_version=4)
    tokens = prompt(LONG, 1)
    for more in ([], prompt(30, 2)):
        body = {"prompt": tokens + more} if path == "/completion" else {
            "messages": [{"role": "user", "content": bytes(tokens + more).decode()}]}
        client = rig.open({**body, "max_tokens": 2, "stream": True}, path)
        read_until(client, b"[DONE]")
        client.close()
        rig.settle()
    assert rig.latest()["reused_tokens"] >= LONG - 600, rig.latest()


def test_an_answer_that_tells_no_reuse_speaks_against_no_state(rig):
    """Where nothing was said of reuse it was read as none, and the state lost its standing, here its file."""
    backend = rig.start(state_version=4)
    first, second = save_two(rig)
    backend.forget_calls()
    backend.tells_timings = False
    for number in range(3, 9):
        tokens = (first, second)[number % 2 == 0] + prompt(20, number)
        client = rig.open({"prompt": tokens, "n_predict": 2, "stream": True})
        assert told(read_until(client, b"[DONE]")) == backend.expected(tokens)
        client.close()
        rig.settle()
    assert len(backend.slot_actions("restore")) >= 5, "each is brought back, again and again"
    assert rig.cairn.status()["store"]["dropped_bad"] == 0
    backend.tells_timings = True
    assert rig.right(first + prompt(20, 9))
    assert rig.latest()["reused_tokens"] >= LONG - 16, rig.latest()


# --- what is saved ----------------------------------------------------------------------------------------

def test_a_failed_save_leaves_no_entry_and_no_file(rig):
    backend = rig.start(state_version=4)
    backend.refuse_save = True
    assert rig.right(prompt(LONG, 1))
    wait_until(lambda: backend.slot_actions("save"), "a save was tried")
    rig.settle()
    assert rig.cairn.status()["store"]["checkpoints"] == 0
    assert not list(rig.slot_dir.glob("*.state"))


def assert_counted_once(rig, states):
    """Files, entries and what the budget is charged with agree, and there are so many."""
    store = rig.cairn.status()["store"]
    listed = call(rig.cairn_port, "GET", "/cairn/checkpoints").json()
    files = [path.stat().st_size for path in rig.slot_dir.glob("*.state")]
    assert len(files) == store["checkpoints"] == len(listed["checkpoints"]) == states, (files, store, listed)
    assert sum(files) == store["bytes"] == listed["bytes"] == sum(one["bytes"] for one in listed["checkpoints"])


def hold_in_both_slots(rig, tokens):
    """Two slots come to hold the same prompt while neither is saved, and both are."""
    backend = rig.backend
    backend.hold_save = threading.Event()
    assert rig.right(tokens, id_slot=0)
    wait_until(lambda: backend.slot_actions("save"), "the first slot is being saved")
    assert rig.right(tokens, id_slot=1)
    wait_until(lambda: all(slot["unsaved"] or slot["leased"] for slot in rig.cairn.status()["slots"]), "both are to be saved")
    backend.hold_save.set()
    rig.settle()
    backend.hold_save = None


def lose_the_file(rig, tokens):
    """Saved; its file goes while another prompt is in the slot; computed and saved anew."""
    for asked in (tokens, prompt(LONG, 77)):
        assert rig.right(asked, id_slot=0)
        rig.settle()
    files = sorted(rig.slot_dir.glob("*.state"), key=lambda path: path.stat().st_mtime_ns)
    files[0].unlink()
    assert rig.right(tokens, id_slot=0)
    rig.settle()


@pytest.mark.parametrize("twice, others", [(hold_in_both_slots, 0), (lose_the_file, 1)])
def test_a_state_saved_twice_is_counted_once(rig, twice, others):
    """The second save of the same tokens added to what the budget was charged with, and the first file stayed."""
    backend = rig.start(state_version=4, slots=2)
    twice(rig, prompt(LONG, 1))
    assert len(backend.slot_actions("save")) == rig.cairn.status()["store"]["commits"] == 2 + others, "nothing was saved twice"
    assert_counted_once(rig, 1 + others)
    rig.cairn.stop()
    rig.start_cairn()
    assert_counted_once(rig, 1 + others)


def test_what_was_saved_is_not_saved_again(rig):
    """Not when it was brought back, nor when Cairn was started anew in front of slots that it knows nothing of."""
    backend = rig.start(state_version=4)
    first, second = save_two(rig)
    assert_counted_once(rig, 2)
    saved = len(backend.slot_actions("save"))
    assert saved == 2
    for restart in (False, True, True):
        if restart:
            rig.cairn.stop()
            backend.forget_calls()
            rig.start_cairn()
            saved = len(backend.slot_actions("save"))  # the probe's own
        for tokens in (first, second, second):
            assert rig.right(tokens)
            rig.settle()
        assert len(backend.slot_actions("save")) == saved
        assert_counted_once(rig, 2)


def test_files_without_an_entry_are_removed_at_start(rig):
    rig.start(state_version=4)
    assert rig.right(prompt(LONG, 1))
    rig.settle()
    one = next(rig.slot_dir.glob("*.state"))
    stray = one.with_name("cairn-" + "0" * 32 + ".state")
    stray.write_bytes(one.read_bytes())
    rig.cairn.stop()
    rig.start_cairn()
    assert one.exists() and not stray.exists()


# --- what is matched --------------------------------------------------------------------------------------

TEXT = "aB" + bytes(prompt(LONG, 1)).decode()
USER = [{"role": "user", "content": TEXT}]
LOOK, STOP = ([{"type": "function", "function": {"name": name}}] for name in ("look", "Look"))


@pytest.mark.parametrize("bodies", [
    [{"messages": [{"role": role, "content": TEXT}]} for role in ("user", "system", "tool")],
    [{"messages": [{"role": "user", "content": text}]} for text in (TEXT, TEXT.upper(), TEXT.lower())],
    [{"messages": USER}, {"messages": USER, "tools": LOOK}, {"messages": USER, "tools": STOP}],
    [{"messages": USER, "chat_template_kwargs": {"enable_thinking": value}} for value in (True, False)],
], ids=["roles", "letter case", "tools", "template arguments"])
def test_what_makes_another_prompt_is_never_matched(rig, bodies):
    """Words without case, roles, tools and template arguments were compared: one key for other tokens.

    The backend would hide it, for it compares tokens itself: what counts is what Cairn knew, planned and restored."""
    backend = rig.start(state_version=4)
    before = []
    for body in bodies:
        assert rig.post({**body, "max_tokens": 2}, "/v1/chat/completions").status == 200
        rig.settle()
        tokens = list(render(body).encode())
        shared = max((common(tokens, other) for other in before), default=0)
        seen = rig.latest()
        assert seen["prompt_tokens"] == len(tokens) and seen["known_tokens"] == shared < 100, seen
        assert seen["planned_tokens"] <= shared and seen["reused_tokens"] <= shared, seen
        before.append(tokens)
    assert backend.slot_actions("restore") == [], "the state of another prompt was brought back"
    # And each finds its own.
    for body in bodies:
        turns = [*body["messages"], {"role": "assistant", "content": "yes"}, {"role": "user", "content": "go on"}]
        assert rig.post({**body, "messages": turns, "max_tokens": 2}, "/v1/chat/completions").status == 200
        rig.settle()
        assert rig.latest()["plan"] == "restore" and rig.latest()["reused_tokens"] >= LONG, rig.latest()


def test_the_template_sees_the_whole_body(rig):
    backend = rig.start(state_version=4)
    body = {"messages": [{"role": "user", "content": "hello"}], "tools": [{"type": "function", "function": {"name": "look"}}],
            "chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 2}
    assert rig.post(body, "/v1/chat/completions").status == 200
    rendered = backend.of(lambda made: made.path == "/apply-template" and made.body.get("messages") == body["messages"])
    assert rendered and all(made.body.get(key) == body[key] for made in rendered for key in ("tools", "chat_template_kwargs"))


def test_the_longest_prefix_wins_not_the_highest_ratio(rig):
    backend = rig.start(state_version=4)
    shared = prompt(1200, 1)
    whole_of_a_short_one, part_of_a_long_one = shared[:600], shared + prompt(2000, 2)
    for tokens in (whole_of_a_short_one, part_of_a_long_one, prompt(LONG, 3)):
        assert rig.right(tokens)
        rig.settle()
    computed = backend.computed
    assert rig.right(shared + prompt(40, 4))
    assert backend.computed - computed < 640, "it went on from the short one"


def test_no_file_is_read_to_find_a_match(rig):
    rig.start(state_version=4)
    first = prompt(LONG, 1)
    for tokens in (first, prompt(LONG, 2)):
        assert rig.right(tokens)
        rig.settle()
    for path in rig.slot_dir.glob("*.state"):
        path.rename(path.with_suffix(".away"))
    assert rig.right(first + prompt(50, 3))
    assert rig.latest()["plan"] == "restore" and rig.latest()["planned_tokens"] >= LONG - 100, rig.latest()


# --- what fits a model ------------------------------------------------------------------------------------

@pytest.mark.parametrize("away", [False, True], ids=["under the running Cairn", "while Cairn was away"])
def test_another_kv_type_under_the_same_name(rig, away):
    """Same name, size and answers, another layout of the state: its files were taken for those of before."""
    rig.start(state_version=4)
    first = prompt(LONG, 1)
    spaces = []

    def change(cell):
        rig.settle()
        spaces.append(rig.cairn.status()["backend"]["namespace"])
        if away:
            rig.cairn.stop()
        rig.backend.stop()
        rig.start_backend(state_version=4, cell=cell)
        if away:
            rig.start_cairn()

    assert rig.right(first)
    change("q")
    assert rig.right(first + prompt(100, 2))
    assert rig.latest()["planned_tokens"] == 0, rig.latest()
    assert rig.backend.slot_actions("restore") == [], "a state of another KV type was restored"
    change("i")
    assert rig.right(first + prompt(100, 3))
    assert rig.backend.slot_actions("restore") and rig.latest()["reused_tokens"] >= LONG - 16, "its own state fits again"
    spaces.append(rig.cairn.status()["backend"]["namespace"])
    assert spaces[0] == spaces[2] != spaces[1]


def test_small_steps_between_weights_do_not_add_up(rig):
    """Each start's answers became what the next ones were compared with, though the states were those of the first."""
    spaces = []
    for drift in (0, 0.02, 0.04, 0.02):
        rig.start(state_version=4, drift=drift)
        spaces.append(rig.cairn.status()["backend"]["namespace"])
        rig.cairn.stop()
        rig.backend.stop()
    assert spaces[0] == spaces[1] == spaces[3] != spaces[2], spaces


def test_another_context_under_the_same_name(rig):
    """A state of more tokens than the new context has room for; it fits again when the context is what it was."""
    rig.start(state_version=4)
    long = prompt(2100, 1)
    assert rig.right(long)
    rig.settle()
    part = long[:1700] + prompt(100, 2)  # goes on from a context checkpoint of the long one's
    for n_ctx, reused in ((2000, 0), (32768, 1584)):
        rig.cairn.stop()
        rig.backend.stop()
        rig.start(state_version=4, n_ctx=n_ctx)
        rig.backend.refuse_save = True  # nothing else is there to go on from
        assert rig.right(part)
        assert rig.latest()["reused_tokens"] == reused, rig.latest()
        if not reused:
            # The backend refused it, and the second time it was dropped as bad.
            assert rig.right(part + prompt(50, 7))
            assert rig.backend.slot_actions("restore") == []
    assert rig.right(long + prompt(50, 6))
    assert rig.latest()["reused_tokens"] >= 2000, rig.latest()


# --- connections ------------------------------------------------------------------------------------------

def test_an_end_that_never_closes_holds_up_nobody(gated):
    """To close a connection was to wait for the other end's goodbye, with the slot still taken."""
    rig, gate = gated
    backend = rig.backend
    let_go = threading.Event()  # prompts are too short to be saved: the far end would let a save wait as well

    def script(side, at, data):
        yield data
        if side == "up" and b'"stream"' in data:
            let_go.wait(60)  # that Cairn has closed is not looked at, and nothing is closed

    try:
        idle = rig.open({"prompt": prompt(60, 1), "n_predict": 2})
        read_until(idle, b"timings")  # and is never closed by this client
        rig.settle()
        before = rig.sockets()
        gate.script = script
        backend.hold_stream = threading.Event()
        client = rig.open({"prompt": prompt(60, 2), "n_predict": 2, "stream": True})
        read_until(client, b"data: ")
        client.close()
        rig.wait_free(10)
        wait_until(lambda: rig.sockets() <= before, "Cairn's ends of both connections are closed", 10)
        assert not rig.client_calls()[-1].connection_closed.is_set(), "the far end does not know"
        backend.hold_stream.set()
        backend.hold_stream = None
        assert rig.right(prompt(60, 3))
        rig.cairn.stop()
        idle.close()
    finally:
        let_go.set()


# --- answers ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path, length", [("/completion", "n_predict"), ("/v1/chat/completions", "max_tokens")])
@pytest.mark.parametrize("count", [300, LONG])
def test_equal_prompts_at_the_same_time_are_answered_each_by_its_own_parameters(rig, path, length, stream, count):
    """Equal prompts were answered once, whatever else the requests said."""
    backend = rig.start(state_version=4, slots=2)
    backend.sampled_by = ("seed", "temperature", "n_predict", "max_tokens")
    text = bytes(prompt(count, 1)).decode()
    asked = {"prompt": text} if path == "/completion" else {"messages": [{"role": "user", "content": text}]}
    ways = ({}, {"seed": 1}, {"seed": 2}, {"seed": 2, "temperature": 0.5}, {"temperature": 0.5}, {length: 3}, {"seed": 2})
    bodies = [{**asked, length: 2, "stream": stream, **way} for way in ways]
    backend.hold_prefill = threading.Event()
    clients = [rig.open(body, path) for body in bodies]

    def all_are_here():
        queue = rig.cairn.status()["queue"]
        return queue["leased"] + queue["waiting"] == len(bodies)

    wait_until(all_are_here, "all are under way at once")
    backend.hold_prefill.set()
    tokens = list((text if path == "/completion" else render(asked)).encode())
    expected = [backend.expected(tokens, body=body) for body in bodies]
    assert len(set(expected)) == len(ways) - 1, "each way its own answer"
    for client, right in zip(clients, expected):
        got = read_until(client, b"0\r\n\r\n" if stream else b'"timings"')
        client.close()
        assert (told(got) if stream else re.search(rb'"(?:content|text)": "(\w+)"', got)[1].decode()) == right
    # Also two that say the same: each may be sampled otherwise.
    sent = [{name: made.body.get(name) for name in backend.sampled_by} for made in rig.client_calls()]
    meant = [{name: body.get(name) for name in backend.sampled_by} for body in bodies]
    assert sorted(map(str, sent)) == sorted(map(str, meant))
