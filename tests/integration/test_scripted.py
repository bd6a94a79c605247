"""What no real llama-server does on demand: old builds' hazards, refusals, deaths, stalls, clients that leave."""

import http.client
import json
import os
import random
import shutil
import socket
import threading

import pytest

from scripted_backend import ScriptedBackend
from scripted_rig import LONG, open_request, prompt, read_all, read_until
from stack import call, free_port, wait_until


# --- the hazard of old builds -----------------------------------------------------------------------------

def test_the_scripted_backend_has_the_hazard(tmp_path):
    """Without Cairn: another prompt's context checkpoint outlives a restore and is answered from."""
    backend = ScriptedBackend(free_port(), tmp_path, state_version=2)
    try:
        def complete(tokens):
            return call(backend.port, "POST", "/completion", {"prompt": tokens, "n_predict": 1, "id_slot": 0}).json()

        def action(name):
            return call(backend.port, "POST", f"/slots/0?action={name}", {"filename": "a"}).status

        first, other = prompt(LONG, 1), prompt(LONG, 2)
        complete(first)
        assert action("save") == 200
        complete(other)
        assert action("restore") == 200
        rewound = first[:LONG - 2] + prompt(50, 3)
        assert complete(rewound)["content"] != backend.expected(rewound)
        # The cure.
        call(backend.port, "POST", "/completion", {"prompt": [0], "n_predict": 0, "id_slot": 0, "cache_prompt": False})
        assert action("restore") == 200
        assert complete(rewound)["content"] == backend.expected(rewound)
    finally:
        backend.stop()


def rewind_after_a_restore(rig, **options):
    # No states inside a prompt: a rewind then has nothing of Cairn's to go back to, and the backend is free to choose.
    rig.interval = "off"
    rig.start(**options)
    first, other = prompt(LONG, 1), prompt(LONG, 2)
    assert rig.right(first)
    rig.settle()
    assert rig.right(other)
    rig.settle()
    rig.backend.forget_calls()
    assert rig.right(first + prompt(100, 3))
    assert rig.backend.slot_actions("restore"), "the prompt was not long enough for a restore"
    # Inside what was restored, where the other prompt had its context checkpoints.
    assert rig.right(first[:LONG - 2] + prompt(50, 4))
    assert rig.right(first[:LONG - 200] + prompt(50, 5))


def test_old_build_is_washed_before_a_restore(rig):
    rewind_after_a_restore(rig, state_version=2)
    calls = rig.backend.of(lambda call: call.method == "POST")
    for index, made in enumerate(calls):
        if made.path == "/slots/action/restore":
            assert calls[index - 1].is_wash, "a restore without a wash right before it"


def test_new_build_is_not_washed(rig):
    rewind_after_a_restore(rig, state_version=4)
    assert rig.backend.of(lambda call: call.is_wash) == []


def test_old_build_is_washed_after_cairn_alone_was_restarted(rig):
    """The new Cairn knows nothing of what the slot has processed."""
    rig.interval = "off"
    rig.start(state_version=2)
    first, other = prompt(LONG, 1), prompt(LONG, 2)
    assert rig.right(first)
    rig.settle()
    assert rig.right(other)
    rig.cairn.stop()
    rig.start_cairn()
    rig.backend.forget_calls()
    assert rig.right(first + prompt(100, 3))
    calls = rig.backend.of(lambda call: call.method == "POST")
    restores = [index for index, made in enumerate(calls) if made.path == "/slots/action/restore"]
    assert restores and all(calls[index - 1].is_wash for index in restores)
    assert rig.right(first[:LONG - 2] + prompt(50, 4))


@pytest.mark.parametrize("state_version, clears_idle, slots, interval", [
    (2, False, 1, "off"), (2, False, 2, "512"), (2, True, 2, "off"), (4, False, 2, "512"), (4, True, 2, "off")])
def test_walk(rig, state_version, clears_idle, slots, interval):
    """Any order of prompts, and restarts of Cairn: the answer is always that of the prompt alone."""
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"CAIRN_TEST_SEED={seed}")
    source = random.Random(seed)
    rig.interval = interval
    rig.start(state_version=state_version, clears_idle=clears_idle, slots=slots)
    seen = [prompt(LONG, seed)]
    for step in range(60):
        if source.random() < 0.05:
            rig.cairn.stop()
            rig.start_cairn()
        if source.random() < 0.3:
            rig.settle()
        old = source.choice(seen)
        how = source.choice(["new", "extend", "rewind", "again"])
        if how == "new":
            tokens = prompt(source.randrange(70, LONG), source.randrange(1 << 30))
        elif how == "extend":
            tokens = old + prompt(source.randrange(2, 600), source.randrange(1 << 30))
        elif how == "rewind":
            back = source.choice([1, 3, 5, 520, source.randrange(1, len(old))])
            tokens = old[:max(1, len(old) - back)] + prompt(source.randrange(2, 300), source.randrange(1 << 30))
        else:
            tokens = list(old)
        assert rig.right(tokens), f"seed {seed}, step {step}: {how}, {len(tokens)} tokens"
        seen.append(tokens[:3 * LONG])


# --- refusals ---------------------------------------------------------------------------------------------

def test_refused_restore_still_gets_an_answer(rig):
    rig.start(state_version=4)
    first, other = prompt(LONG, 1), prompt(LONG, 2)
    assert rig.right(first)
    rig.settle()
    assert rig.right(other)
    rig.settle()
    rig.backend.refuse_restore = True
    rig.backend.forget_calls()
    assert rig.right(first + prompt(100, 3))
    assert rig.backend.slot_actions("restore"), "no restore was tried"
    rig.backend.refuse_restore = False
    rig.settle()
    assert rig.right(other + prompt(100, 4))


def test_refused_save_still_gets_an_answer(rig):
    rig.start(state_version=2)
    rig.backend.refuse_save = True
    first = prompt(LONG, 1)
    assert rig.right(first)
    assert rig.right(prompt(LONG, 2))
    assert rig.right(first + prompt(100, 3))


def test_files_that_vanished_still_get_an_answer(rig):
    rig.start(state_version=4)
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    assert rig.right(prompt(LONG, 2))
    rig.settle()
    for path in rig.slot_dir.iterdir():
        if path.is_file():
            path.unlink()
    assert rig.right(first + prompt(100, 3))


def test_missing_probabilities_are_asked_for_again(rig):
    rig.start_backend(state_version=4)
    rig.backend.omit_probabilities = 1
    rig.start_cairn()
    assert rig.right(prompt(LONG, 1))


def test_no_saving_is_plain_serving(rig):
    rig.start(phase="plain", saving=False)
    assert rig.right(prompt(LONG, 1))
    assert rig.right(prompt(LONG, 1) + prompt(100, 2))
    status = rig.cairn.status()
    assert not status["backend"]["can_save"]
    assert "--slot-save-path" in status["backend"]["trouble"]
    chat = rig.post({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}, "/v1/chat/completions")
    assert chat.status == 200


def test_builds_that_save_nothing_with_a_projector_say_so_themselves(rig):
    """Advice about a flag that was given all the time helps nobody."""
    rig.start_backend(saving=False)
    rig.backend.no_saving = "This feature is not supported by multimodal"
    rig.start_cairn(phase="plain")
    assert rig.right(prompt(LONG, 1))
    trouble = rig.cairn.status()["backend"]["trouble"]
    assert "not supported by multimodal" in trouble and "--slot-save-path" not in trouble
    assert rig.cairn.log.read_text().count("not supported by multimodal") == 1


def test_a_refused_request_is_told_what_the_backend_said(rig):
    rig.start(state_version=4, n_ctx=1000)
    answer = rig.post({"prompt": prompt(1200, 1), "n_predict": 2})
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "exceed_context_size_error"
    assert rig.right(prompt(500, 2))


# --- a backend that goes ----------------------------------------------------------------------------------

def assert_bad_gateway(answer):
    assert answer.status == 502, answer.body
    assert answer.header("Content-Type").startswith("application/json")
    error = answer.json()["error"]
    assert error["message"] and error["type"] and error["code"] == 502


@pytest.mark.parametrize("path, body", [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/completions", {"prompt": "hello"}),
    ("/v1/embeddings", {"input": "hello"}),
])
def test_backend_down_is_502(rig, path, body):
    rig.start_cairn(phase="connecting")
    assert_bad_gateway(rig.post(body, path))
    assert_bad_gateway(call(rig.cairn_port, "GET", "/v1/models"))
    assert call(rig.cairn_port, "GET", "/cairn/status").status == 200
    # And it is found when it comes.
    rig.start_backend(state_version=4)
    rig.cairn.wait_phase("ready", 10)
    assert rig.right(prompt(LONG, 1))


def test_backend_that_goes_down_is_502_and_comes_back(rig):
    rig.start(state_version=4)
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    rig.backend.stop()
    assert_bad_gateway(rig.post({"prompt": first, "n_predict": 2}))
    rig.start_backend(state_version=4)
    rig.cairn.wait_phase("ready", 10)
    answer = rig.ask(first + prompt(100, 2))
    assert answer["content"] == rig.backend.expected(first + prompt(100, 2))
    assert answer["timings"]["prompt_n"] <= 100 + 600, "the state of before was not used"
    rig.wait_free()


def test_backend_dies_in_the_middle_of_a_stream(rig):
    rig.start(state_version=4)
    rig.backend.die_after_chunks = 1
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2, "stream": True})
    answer = read_all(client)
    client.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"data: " in answer
    assert not answer.endswith(b"0\r\n\r\n") and b"[DONE]" not in answer, "a cut answer must not look whole"
    rig.wait_free()
    rig.backend.die_after_chunks = None
    assert rig.right(prompt(LONG, 1))


def test_another_model_under_the_same_port(rig):
    rig.start(state_version=4, weights="a")
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    rig.backend.stop()
    rig.start_backend(state_version=4, weights="b")
    # Cairn was not told; the first request must not get what the other model left.
    longer = first + prompt(100, 2)
    assert rig.right(longer)
    assert rig.backend.slot_actions("restore") == [], "a state of other weights was restored"
    rig.settle()
    # Back again: the first model's states fit.
    rig.backend.stop()
    rig.start_backend(state_version=4, weights="a")
    assert rig.right(longer)
    assert rig.backend.slot_actions("restore"), "the state of these weights was not used"


def ask_while_props_are_held(rig, text, meanwhile, *, misreads=False):
    """The answer to a prompt of text; `meanwhile` is called before the backend says which process it is."""
    backend = rig.start(state_version=4)
    assert rig.right(prompt(LONG, 1))
    rig.settle()
    backend.forget_calls()
    backend.misreads = misreads
    backend.hold_props = threading.Event()
    answers = []
    client = threading.Thread(target=lambda: answers.append(rig.ask(text)))
    client.start()
    try:
        wait_until(lambda: backend.of(lambda call: call.path == "/tokenize" and call.answered.is_set()), "the prompt was tokenized")
        meanwhile(backend)
    finally:
        backend.hold_props.set()
        client.join(60)
    return answers[0]


def test_a_prompt_is_tokenized_while_the_backend_is_asked_who_it_is(rig):
    """One call after another, a prompt of 1,000 tokens waited 6 of its 270 ms for them."""
    text = bytes(prompt(LONG, 2)).decode()

    def slots_are_looked_at(backend):
        wait_until(lambda: backend.of(lambda call: call.path == "/slots"), "the slots are looked at")

    assert ask_while_props_are_held(rig, text, slots_are_looked_at)["content"] == rig.backend.expected(list(text.encode()))
    assert len(rig.backend.of(lambda call: call.path == "/tokenize")) == 1


def test_what_a_replaced_backend_made_of_a_prompt_is_not_used(rig):
    text = bytes(prompt(LONG, 2)).decode()
    tokens = list(text.encode())

    def replaced(backend):
        backend.process = "another"
        backend.misreads = False

    assert ask_while_props_are_held(rig, text, replaced, misreads=True)["content"] == rig.backend.expected(tokens)
    pieces = rig.backend.of(lambda call: call.is_piece)
    assert pieces and all(call.body["prompt"] == tokens[:len(call.body["prompt"])] for call in pieces)
    assert len(rig.backend.of(lambda call: call.path == "/tokenize")) == 2


def test_a_backend_that_answers_late_is_no_other_process(rig):
    """Some builds tell what their slots hold between two batches only: all that was known of the slots was forgotten, and a probe took one."""
    backend = rig.start(state_version=4, slots=2)
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    backend.forget_calls()
    backend.hold_slots = threading.Event()
    assert rig.right(first + prompt(40, 2))
    assert rig.latest()["plan"] == "live" and rig.latest()["reused_tokens"] >= LONG - 1
    assert not backend.of(lambda call: "n_probs" in call.body), "it was not probed anew"
    backend.hold_slots.set()
    backend.hold_slots = None


def test_a_probe_finds_out_beside_a_request_that_slots_are_cleared(rig):
    """It looked at the first two slots only, one of which was busy: a backend that clears idle slots passed for one that keeps them."""
    backend = rig.start_backend(state_version=4, slots=4, clears_idle=True)
    backend.hold_stream = threading.Event()
    busy = open_request(rig.backend_port, {"prompt": prompt(200, 1), "n_predict": 2, "stream": True, "id_slot": 1})
    read_until(busy, b"data: ")
    rig.start_cairn()
    assert rig.cairn.status()["backend"]["clears_idle_slots"]
    backend.hold_stream.set()
    busy.close()


def test_a_probe_overwrites_the_emptiest_slots_only(rig):
    backend = rig.start_backend(state_version=4, slots=4)
    for slot in (0, 1):
        assert call(rig.backend_port, "POST", "/completion", {"prompt": prompt(LONG, slot), "n_predict": 2, "id_slot": slot}).status == 200
    rig.start_cairn()
    assert [len(slot.believed) for slot in backend.slots[:2]] == [LONG, LONG]


def test_states_are_restored_although_no_more_can_be_saved(rig):
    """With the budget full of pinned states Cairn was of no use after a restart, and each further probe overwrote a slot."""
    backend = rig.start(state_version=4)
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    for one in call(rig.cairn_port, "GET", "/cairn/checkpoints").json()["checkpoints"]:
        assert call(rig.cairn_port, "POST", f"/cairn/checkpoints/{one['id']}/pin").status == 200
    rig.cairn.stop()
    backend.stop()
    rig.flags = ("--budget", "4KiB")
    rig.start(state_version=4)
    assert rig.right(first + prompt(40, 2))
    assert rig.latest()["plan"] == "restore"


def test_another_model_while_cairn_was_away(rig):
    rig.start(state_version=4, weights="a")
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.cairn.stop()
    rig.backend.stop()
    rig.start(state_version=4, weights="b")
    assert rig.right(first + prompt(100, 2))
    assert rig.backend.slot_actions("restore") == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_piece_that_takes_longer_than_clients_wait_for_a_streams_head(rig, stream):
    """Nothing came for as long as pieces were computed, where the backend alone sends the head at once."""
    rig.interval = "50000"
    backend = rig.start(state_version=4, n_ctx=100_000)
    assert rig.right(prompt(LONG, 1))  # a millisecond a token
    backend.forget_calls()
    answer = rig.post({"prompt": prompt(60_000, 2), "n_predict": 2, "stream": stream})
    assert answer.status == 200
    assert len(backend.of(lambda call: call.is_piece and len(call.body["prompt"]) > 45_000)) == (0 if stream else 1)


# --- clients that leave -----------------------------------------------------------------------------------

def leave_and_check(rig, client, upstream):
    """The client goes: Cairn's own connection is closed at once, and the slot is free again."""
    client.close()
    wait_until(upstream.connection_closed.is_set, "the upstream connection is closed", 15)
    rig.wait_free(15)


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves_while_its_prompt_is_computed(rig, stream):
    backend = rig.start(state_version=4)
    backend.hold_prefill = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(300, 1), "n_predict": 2, "stream": stream})
    upstream = wait_until(lambda: rig.client_calls(), "the request reached the backend")[0]
    leave_and_check(rig, client, upstream)
    backend.hold_prefill.set()
    backend.hold_prefill = None
    assert rig.right(prompt(300, 1) + prompt(50, 2))


def test_client_leaves_during_a_piece(rig):
    backend = rig.start(state_version=4)
    backend.hold_answers_of = "piece"
    backend.hold_prefill = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2})
    piece = wait_until(lambda: backend.of(lambda call: call.is_piece), "a piece reached the backend")[0]
    leave_and_check(rig, client, piece)
    assert rig.client_calls() == [], "the request was forwarded for a client that had left"
    backend.hold_prefill.set()
    backend.hold_prefill = None
    assert rig.right(prompt(LONG, 1))


@pytest.mark.parametrize("clears_idle", [False, True])
@pytest.mark.parametrize("held", ["client", "piece"])
def test_a_prompt_that_was_broken_off_goes_on_where_it_stopped(rig, held, clears_idle):
    """A client whose patience ended asked again: what had been computed lay in one slot, and all was computed anew in another."""
    rig.interval = "512" if held == "piece" else "50000"
    backend = rig.start(state_version=4, slots=3, clears_idle=clears_idle)
    backend.hold_answers_of = held
    backend.hold_prefill = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2, "stream": held == "client"})
    made = wait_until(lambda: backend.of(lambda call: call.path == "/completion"), "it is being computed")[0]
    wait_until(lambda: any(slot.believed for slot in backend.slots), "half of it is computed")
    leave_and_check(rig, client, made)
    backend.hold_prefill = None
    slot, half = next((slot.id, len(slot.believed)) for slot in backend.slots if slot.believed)
    before = backend.computed
    assert rig.right(prompt(LONG, 1))
    assert rig.client_calls()[-1].body["id_slot"] == slot
    assert backend.computed - before <= LONG - half + 8


def test_what_was_computed_of_a_prompt_that_was_broken_off_is_saved(rig):
    rig.interval = "50000"
    backend = rig.start(state_version=4)
    backend.hold_prefill = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(2 * LONG, 1), "n_predict": 2, "stream": True})
    made = wait_until(lambda: rig.client_calls(), "it is being computed")[0]
    wait_until(lambda: backend.slots[0].believed, "half of it is computed")
    leave_and_check(rig, client, made)
    backend.hold_prefill = None
    wait_until(lambda: rig.cairn.status()["store"]["checkpoints"] == 1, "it is saved")
    rig.cairn.stop()
    backend.slots[0].believed, backend.slots[0].real = [], []
    rig.start_cairn()
    before = backend.computed
    assert rig.right(prompt(2 * LONG, 1))
    assert backend.computed - before <= LONG + 8


def test_a_comment_in_a_silence_is_no_sign_that_the_prompt_was_computed(rig):
    """The slot was believed to hold all of it, and forgotten when it turned out not to: what there was of it was lost."""
    rig.interval = "50000"
    backend = rig.start(state_version=4, slots=2)
    backend.comments = b":\n\n"
    backend.hold_prefill = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2, "stream": True})
    read_until(client, b"\r\n:\n\n")
    leave_and_check(rig, client, rig.client_calls()[0])
    backend.hold_prefill = None
    before = backend.computed
    assert rig.right(prompt(LONG, 1))
    assert backend.computed - before <= LONG // 2 + 8


def test_client_leaves_during_its_answer(rig):
    backend = rig.start(state_version=4)
    backend.hold_stream = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1), "n_predict": 2, "stream": True})
    read_until(client, b"data: ")
    upstream = rig.client_calls()[0]
    leave_and_check(rig, client, upstream)
    backend.hold_stream.set()
    backend.hold_stream = None
    assert rig.right(prompt(LONG, 1) + prompt(50, 2))


def test_client_leaves_during_a_restore(rig):
    """Cairn waited for the restore to end, and held the connection as long."""
    backend = rig.start(state_version=4)
    for seed in (1, 2):
        assert rig.right(prompt(LONG, seed))
        rig.settle()
    backend.forget_calls()
    backend.hold_restore = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(LONG, 1) + prompt(50, 3), "n_predict": 2})
    restore = wait_until(lambda: backend.slot_actions("restore"), "a restore is under way")[0]
    leave_and_check(rig, client, restore)
    backend.hold_restore.set()
    backend.hold_restore = None
    # The backend has restored it all the same, and nobody may take the slot for an empty one.
    for seed in (4, 2, 1):
        assert rig.right(prompt(LONG, seed) + prompt(50, seed))


def test_client_leaves_while_it_waits_for_a_slot(rig):
    backend = rig.start(state_version=4)
    backend.hold_stream = threading.Event()
    first = open_request(rig.cairn_port, {"prompt": prompt(300, 1), "n_predict": 2, "stream": True})
    read_until(first, b"data: ")
    second = open_request(rig.cairn_port, {"prompt": prompt(300, 2), "n_predict": 2})
    third = open_request(rig.cairn_port, {"prompt": prompt(300, 3), "n_predict": 2})
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 2, "two wait", 10)
    second.close()
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "the one that left does not wait any more", 15)
    backend.hold_stream.set()
    assert backend.expected(prompt(300, 3)).encode() in read_until(third, b"timings")
    first.close()
    third.close()
    rig.wait_free()
    asked = [call.body["prompt"] for call in rig.client_calls()]
    assert prompt(300, 2) not in asked, "the request of a client that had left was sent"


def test_slow_reader_gets_everything(rig):
    rig.start(state_version=4)
    client = open_request(rig.cairn_port, {"prompt": prompt(300, 1), "n_predict": 2, "stream": True})
    got = b""
    while b"0\r\n\r\n" not in got:
        piece = client.recv(7)
        assert piece, "the connection ended before the answer did"
        got += piece
    client.close()
    assert b"[DONE]" in got
    rig.wait_free()


def test_two_slots_serve_two_at_a_time(rig):
    backend = rig.start(state_version=4, slots=2)
    backend.hold_stream = threading.Event()
    clients = []
    for number in range(4):
        clients.append(open_request(rig.cairn_port, {"prompt": prompt(300, number), "n_predict": 2, "stream": True}))
        wait_until(lambda: sum(rig.cairn.status()["queue"][key] for key in ("leased", "waiting")) == number + 1, "it came")
    wait_until(lambda: len(rig.client_calls()) == 2, "two are served")
    assert rig.cairn.status()["queue"]["waiting"] == 2
    assert {made.body["id_slot"] for made in rig.client_calls()} == {0, 1}
    backend.hold_stream.set()
    for client in clients:
        read_until(client, b"[DONE]")
        client.close()
    rig.wait_free()
    order = [made.body["prompt"] for made in rig.client_calls()]
    # Both slots came free at the same moment: each of the two that waited has one, and one may have had more to do first.
    assert sorted(order[2:]) == sorted([prompt(300, 2), prompt(300, 3)])


def test_stop_waits_for_a_request_under_way(rig):
    backend = rig.start(state_version=4)
    backend.hold_stream = threading.Event()
    client = open_request(rig.cairn_port, {"prompt": prompt(300, 1), "n_predict": 2, "stream": True})
    read_until(client, b"data: ")
    ended = threading.Thread(target=rig.cairn.stop)
    ended.start()
    def refused():
        try:
            call(rig.cairn_port, "GET", "/cairn/status", timeout=5)
        except (OSError, http.client.HTTPException):
            return True
        return False
    wait_until(refused, "nobody new is let in", 10)
    backend.hold_stream.set()
    read_until(client, b"[DONE]")
    ended.join(20)
    assert not ended.is_alive()
    assert not rig.cairn.running


def test_the_next_turn_waits_for_its_slot_while_that_is_saved(rig):
    """It went to another slot and computed everything anew: seen when a turn came 40 ms after the one before."""
    backend = rig.start(slots=2, state_version=4)
    first = prompt(LONG, 71)
    backend.hold_save = threading.Event()
    assert rig.right(first)
    wait_until(lambda: backend.slot_actions("save"), "the slot is being saved")
    computed = backend.computed
    second = first + prompt(40, 72)
    answers = []
    turn = threading.Thread(target=lambda: answers.append(rig.ask(second)))
    turn.start()
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "the next turn waits")
    backend.hold_save.set()
    turn.join(60)
    backend.hold_save = None
    assert answers and answers[0]["content"] == backend.expected(second)
    assert backend.computed - computed <= 40 + 16


def test_what_was_computed_with_other_adapters_is_not_taken_for_the_models_own(rig):
    """Adapters were switched while an answer was under way: its state was saved as if the new ones had computed it."""
    rig.start_backend(slots=2, state_version=4)
    backend = rig.backend
    backend.adapters = [{"id": 0, "scale": 1.0}]
    rig.start_cairn()
    first = prompt(LONG, 81)
    backend.hold_stream = threading.Event()
    client = rig.open({"prompt": first, "n_predict": 2, "stream": True})
    read_until(client, b"data: ")

    def looks():
        return len(backend.of(lambda made: made.path == "/lora-adapters" and made.method == "GET"))

    before = looks()
    answer = rig.post([{"id": 0, "scale": 2.0}], "/lora-adapters")
    assert answer.status == 200
    wait_until(lambda: looks() > before, "it was probed anew")
    rig.cairn.wait_phase("ready")
    backend.hold_stream.set()
    read_until(client, b"[DONE]")
    client.close()
    backend.hold_stream = None
    rig.settle()
    assert rig.right(first + prompt(40, 82))
    assert rig.right(prompt(LONG, 83))
    assert rig.right(prompt(LONG, 84))
    assert rig.right(first + prompt(40, 85))


def test_a_slot_that_a_request_with_adapters_may_have_taken_is_not_saved_as_the_models_own(rig):
    """Such a request that the backend placed came between two steps of a save: what it computed could be taken for the model's own."""
    rig.start_backend(slots=1, state_version=4)
    backend = rig.backend
    backend.adapters = [{"id": 0, "scale": 1.0}]
    rig.start_cairn()
    first = prompt(LONG, 86)
    backend.forget_calls()
    backend.hold_save = threading.Event()
    assert rig.right(first)
    wait_until(lambda: backend.slot_actions("save"), "the slot is being saved")
    with_adapters = {"prompt": first + prompt(40, 87), "n_predict": 2, "n": 2, "lora": [{"id": 0, "scale": 0.5}]}
    client = rig.open(with_adapters)
    wait_until(lambda: backend.of(lambda made: "lora" in made.body), "it is at the backend")
    backend.hold_save.set()
    read_until(client, b"content")
    client.close()
    backend.hold_save = None
    rig.settle()
    assert rig.cairn.status()["store"]["checkpoints"] == 0
    assert rig.right(first)


def test_who_waits_for_a_stop_goes_on_waiting_while_it_is_being_computed(rig):
    """Asked again just then, it took the idle slot, and the shared prefix was computed in both."""
    backend = rig.start(slots=2, state_version=4)
    shared = prompt(3 * LONG, 131)

    def pieces():
        return backend.of(lambda made: made.is_piece and made.held.is_set() and made.body["prompt"][:100] == shared[:100])

    backend.hold_answers_of = "piece"
    backend.hold_prefill = threading.Event()
    answers = {}
    leader, follower = (threading.Thread(target=lambda at=at: answers.update({at: rig.right(shared + prompt(60, 132 + at))})) for at in range(2))
    leader.start()
    wait_until(pieces, "its first piece is computed")
    follower.start()
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "the other waits")
    while len(pieces()[-1].body["prompt"]) < len(shared):  # up to the stop that it waits for
        hold, backend.hold_prefill, before = backend.hold_prefill, threading.Event(), len(pieces())
        hold.set()
        wait_until(lambda: len(pieces()) > before, "the next piece is computed")
    assert len(pieces()[-1].body["prompt"]) == len(shared)
    assert rig.right(prompt(40, 135))  # when this one gives its slot back the other is asked again
    wait_until(lambda: rig.cairn.status()["queue"]["leased"] == 1, "one slot is idle")
    assert rig.cairn.status()["queue"]["waiting"] == 1
    backend.hold_prefill.set()
    for one in (leader, follower):
        one.join(60)
    backend.hold_prefill = None
    assert answers == {0: True, 1: True}
    rig.settle()


def test_nobody_is_sent_to_wait_where_the_backend_has_placed_a_request(rig):
    """A conversation's next turn waited for the end of a request that the backend had put into its slot, beside an idle one."""
    backend = rig.start(slots=2, state_version=4)
    first = prompt(LONG, 91)
    assert rig.right(first)
    assert rig.right(prompt(LONG, 92))
    rig.settle()
    backend.hold_stream = threading.Event()
    backend.forget_calls()
    other = open_request(rig.cairn_port, {"prompt": prompt(200, 93), "n_predict": 2, "stream": True, "cache_prompt": False})
    read_until(other, b"data: ")
    assert backend.slots[0].busy
    wait_until(lambda: backend.of(lambda made: made.told_busy and made.answered.is_set()), "Cairn looks where it runs")
    assert rig.right(first + prompt(40, 94))
    assert backend.slots[0].busy
    backend.hold_stream.set()
    read_until(other, b"[DONE]")
    other.close()
    rig.wait_free()


def test_what_was_answered_while_the_disk_refused_is_saved_later(rig):
    """It was forgotten for good: a disk that was full for a moment cost every conversation of that moment."""
    backend = rig.start(state_version=4)
    backend.refuse_save = 500
    assert rig.right(prompt(LONG, 95))
    wait_until(lambda: backend.slot_actions("save"), "a save is refused")
    wait_until(lambda: "nothing is saved until" in rig.log.read_text(), "Cairn has heard of it")
    first = prompt(LONG, 96)
    assert rig.right(first)  # while nothing is saved
    backend.refuse_save = False
    wait_until(lambda: any(rig.slot_dir.glob("*.state")), "it is saved after all", 60)
    rig.settle()
    assert rig.right(prompt(LONG, 97))
    computed = backend.computed
    assert rig.right(first + prompt(40, 98))
    assert backend.computed - computed <= 40 + 16


def test_a_state_that_cannot_be_read_is_not_asked_for_each_time(rig):
    """After the slot directory was made anew under it Cairn chose the same lost state for every prompt, with a warning each."""
    rig.start(state_version=4)
    first = prompt(LONG, 101)
    assert rig.right(first)
    rig.settle()
    assert rig.right(prompt(LONG, 102))
    rig.settle()
    shutil.rmtree(rig.slot_dir)
    rig.slot_dir.mkdir()
    for number in range(3):
        assert rig.right(first + prompt(40, 103 + number))
        assert rig.right(prompt(LONG, 110 + number))
    lines = [line for line in rig.log.read_text().splitlines() if "cannot be brought back now" in line]
    assert len({line.split("checkpoint ")[1].split()[0] for line in lines}) == len(lines) > 0, lines


def test_early_context_checkpoints_are_saved_before_the_backend_drops_them(rig):
    """Turn after turn without a moment of quiet: the backend keeps 32 of them, and no file held the early ones."""
    backend = rig.start(slots=2, state_version=4)
    backend.hold_stream = threading.Event()
    other = open_request(rig.cairn_port, {"prompt": prompt(300, 121), "n_predict": 2, "stream": True})
    read_until(other, b"data: ")  # it has its slot all the time
    said = prompt(LONG, 122)
    for number in range(20):
        assert rig.right(said)
        said = said + prompt(60, 123 + number)
    assert backend.slot_actions("save")
    backend.hold_stream.set()
    read_until(other, b"[DONE]")
    other.close()
    rig.wait_free()
