"""What Cairn believes of a backend that is busy, or that changes, when it is looked at."""

import threading

from scripted_rig import LONG, prompt, read_until
from stack import call, wait_until


def busy_slot(rig, slot):
    """A client past Cairn has the slot."""
    return rig.streaming({"prompt": prompt(200, 1), "n_predict": 2, "id_slot": slot}, past_cairn=True)


def clears_idle(rig):
    return rig.cairn.status()["backend"]["clears_idle_slots"]


def ask(rig, tokens, **more):
    assert rig.right(tokens, n_predict=1, **more)  # the prompt alone is left in the slot
    rig.wait_free()


# --- whether idle slots are cleared -----------------------------------------------------------------------

def test_a_probe_beside_a_busy_slot_does_not_conclude_that_idle_slots_keep_their_state(rig):
    """On default flags, with all slots but one in use: nothing was saved before a task cleared it, and slots were pinned that were empty."""
    rig.start_backend(state_version=4, slots=2, clears_idle=True)
    with busy_slot(rig, 1):
        rig.start_cairn()
        assert clears_idle(rig)
    for seed in (2, 3, 4, 5):
        ask(rig, prompt(LONG, seed))
    assert clears_idle(rig)


def test_slots_that_keep_their_state_are_found_to_after_a_probe_beside_busy_ones(rig):
    """It must not be believed for ever that they are cleared."""
    backend = rig.start_backend(state_version=4, slots=3)
    with busy_slot(rig, 1), busy_slot(rig, 2):
        rig.start_cairn()
        assert clears_idle(rig), "until it is known"
    first, second = prompt(LONG, 2), prompt(LONG, 3)
    for tokens in (first, second, prompt(LONG, 4)):
        ask(rig, tokens)
    assert not clears_idle(rig)
    backend.forget_calls()
    for tokens in (first, second):  # also what was taken to be cleared
        ask(rig, tokens + prompt(40, 5))
        assert rig.latest()["plan"] == "live"
    assert not backend.of(lambda call: "n_probs" in call.body), "it was not probed anew"


def test_slots_that_keep_their_state_are_found_to_by_requests_whose_slot_the_backend_chooses(rig):
    """With clients of /v1/messages alone it was believed until the next probe that they are cleared."""
    rig.start_backend(state_version=4, slots=3)
    with busy_slot(rig, 1), busy_slot(rig, 2):
        rig.start_cairn()
        assert clears_idle(rig), "until it is known"
    for seed in (2, 3, 4):
        said = bytes(prompt(LONG, seed)).decode().replace("\\", "a")
        assert rig.post({"max_tokens": 1, "messages": [{"role": "user", "content": said}]}, "/v1/messages").status == 200
        rig.settle()  # nothing is looked at beside a save
    assert not clears_idle(rig)


def test_one_slot_that_somebody_erased_is_not_taken_for_a_backend_that_clears_them_for_good(rig):
    """Starts waited for each other, and idle slots were saved before them, until the next probe."""
    backend = rig.start(state_version=4, slots=3)
    first = prompt(LONG, 2)
    for tokens in (first, prompt(LONG, 3)):
        ask(rig, tokens)
        rig.settle()  # nothing is looked at beside a save
    slot = next(slot for slot in backend.slots if slot.believed == first)
    assert call(rig.backend_port, "POST", f"/slots/{slot.id}?action=erase", {}).status == 200
    for seed in (4, 5, 6):
        ask(rig, prompt(LONG, seed))
        rig.settle()
    assert b"idle slots are cleared by other tasks: one was empty" in rig.log.read_bytes()
    assert not clears_idle(rig)


def test_what_a_probe_found_out_is_kept_when_the_next_one_cannot(rig):
    rig.start(state_version=4, slots=2)
    backend = rig.backend
    assert not clears_idle(rig)
    with busy_slot(rig, 1):
        assert rig.post([{"id": 0, "scale": 2.0}], "/lora-adapters").status == 200
        wait_until(lambda: backend.of(lambda call: "n_probs" in call.body), "it is probed anew")
        rig.cairn.wait_phase("ready")
        assert not clears_idle(rig)


def test_a_wrong_belief_that_idle_slots_keep_their_state_is_corrected_by_a_look(rig):
    backend = rig.start(state_version=4, slots=2)
    assert not clears_idle(rig)
    backend.clears_idle = True
    for seed in (2, 3, 4, 5):
        ask(rig, prompt(LONG, seed))
    assert clears_idle(rig)


def test_a_wrong_belief_that_idle_slots_keep_their_state_is_corrected_by_a_save(rig):
    """Where something always runs the slots are not looked at."""
    backend = rig.start(state_version=4, slots=3)
    with rig.streaming({"prompt": prompt(200, 1), "n_predict": 2}):
        backend.clears_idle = True
        for seed, slot in ((2, 1), (3, 2), (4, 1)):
            assert rig.right(prompt(LONG, seed), id_slot=slot)
            wait_until(lambda: rig.cairn.status()["queue"]["leased"] == 1, "its slot is given back")
        assert clears_idle(rig)


# --- which process it is ----------------------------------------------------------------------------------

def test_a_backend_that_says_late_which_process_it_is_is_no_other(rig):
    """Its threads were all busy with long requests: all that was known of its slots was forgotten, and a probe took one."""
    backend = rig.start(state_version=4, slots=2)
    first = prompt(LONG, 1)
    ask(rig, first)
    rig.settle()
    backend.forget_calls()
    hold = backend.hold_props = threading.Event()
    ask(rig, first + prompt(400, 2))
    assert rig.latest()["plan"] == "live" and rig.latest()["reused_tokens"] >= LONG - 1
    assert not backend.slot_actions("save") and not backend.slot_actions("restore"), "it has not said that it is the same"
    assert not backend.of(lambda call: "n_probs" in call.body), "it was not probed anew"
    backend.hold_props = None
    hold.set()
    ask(rig, prompt(40, 3))
    rig.settle()
    assert not backend.of(lambda call: "n_probs" in call.body)
    rig.backend.stop()  # what was answered meanwhile was saved
    backend = rig.start_backend(state_version=4, slots=2)
    ask(rig, first + prompt(400, 2) + prompt(40, 4))
    assert rig.latest()["plan"] == "restore" and rig.latest()["reused_tokens"] >= LONG + 400 - 1


def test_who_waits_for_a_slot_is_served_when_the_backend_turns_out_to_be_a_router(rig):
    """It has no slots: whoever waited for one waited for ever."""
    backend = rig.start(state_version=4)
    hold = backend.hold_stream = threading.Event()
    client = rig.open({"prompt": prompt(200, 1), "n_predict": 2, "stream": True})
    read_until(client, b"data: ")
    backend.hold_stream = None
    answers = []

    def in_background(seed):
        thread = threading.Thread(target=lambda: answers.append(rig.right(prompt(200, seed))))
        thread.start()
        return thread

    threads = [in_background(2)]
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "it waits for the slot")
    backend.process, backend.role = "another", "router"
    threads.append(in_background(3))  # finds out
    try:
        wait_until(lambda: len(rig.client_calls()) == 3, "both are at the backend")
    finally:
        hold.set()
        read_until(client, b"[DONE]")
        client.close()
        if len(rig.client_calls()) < 3:
            rig.cairn.kill()
        for thread in threads:
            thread.join(60)
    assert answers == [True, True]


def test_requests_that_no_slot_is_kept_for_wait_in_as_long_a_queue_as_others(rig):
    """They were passed on without end, where others beyond max_waiting are told to come again."""
    (rig.folder / "cairn.yaml").write_text("max_waiting: 1\n")
    rig.flags = ("--config", rig.folder / "cairn.yaml")
    rig.start(state_version=4, slots=1)
    passed_on = {"prompt": prompt(200, 2), "n_predict": 1, "cache_prompt": False}
    answers = []
    with rig.streaming({"prompt": prompt(200, 1), "n_predict": 2}):
        waits = threading.Thread(target=lambda: answers.append(rig.post(passed_on)))
        waits.start()
        wait_until(lambda: len(rig.client_calls()) == 2, "it waits in the backend")
        refused = rig.post(passed_on)
        assert refused.status == 503 and int(refused.header("Retry-After")) > 0
        assert len(rig.client_calls()) == 2
    waits.join(60)
    assert answers[0].status == 200
    assert rig.post(passed_on).status == 200


# --- what is told and what is forgotten -------------------------------------------------------------------

def test_why_says_that_the_backend_had_emptied_the_slot(rig):
    """It said not_admitted: what is known to be cleared is forgotten before the plan is made."""
    rig.flags = ("--budget", "4KiB")  # what is there is in the slot alone
    backend = rig.start(state_version=4, slots=2)
    first = prompt(LONG, 2)
    ask(rig, first)
    slot = next(slot for slot in backend.slots if slot.believed == first)
    assert call(rig.backend_port, "POST", f"/slots/{slot.id}?action=erase", {}).status == 200
    ask(rig, first + prompt(40, 3))
    said = rig.latest()
    assert said["reused_tokens"] == 0 and said["miss"] == "slot_cleared_by_backend"


def test_a_request_that_got_no_answer_is_no_full_hit(rig):
    (rig.folder / "cairn.yaml").write_text("max_waiting: 1\n")
    rig.flags = ("--config", rig.folder / "cairn.yaml")
    rig.start(state_version=4, slots=1)
    with rig.streaming({"prompt": prompt(200, 1), "n_predict": 2}):
        waits = threading.Thread(target=lambda: rig.post({"prompt": prompt(200, 2), "n_predict": 1}))
        waits.start()
        wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "it waits for the slot")
        assert rig.post({"prompt": prompt(200, 3), "n_predict": 1}).status == 503
    waits.join(60)
    wait_until(lambda: len(rig.cairn.status()["latest_requests"]) == 3, "Cairn is done with all")
    refused, = (told for told in rig.cairn.status()["latest_requests"] if told["status"] == 503)
    assert refused["miss"] == "unknown"
    told = call(rig.cairn_port, "GET", "/cairn/metrics").body.decode()
    assert 'cairn_misses_total{reason="unknown"} 1\n' in told and 'cairn_misses_total{reason="none"}' not in told
    assert 'cairn_plans_total{source="recompute"} 2\n' in told


def test_a_short_prompt_that_was_reused_whole_is_no_new_one(rig):
    rig.start(state_version=4, slots=1)
    for tokens in (prompt(50, 2), prompt(50, 2) + prompt(5, 3)):
        ask(rig, tokens)
    assert rig.latest()["reused_tokens"] == 50 and rig.latest()["miss"] == "none"


def test_a_switch_of_adapters_that_the_backend_refuses_costs_no_slot_its_state(rig):
    """All beliefs were forgotten, and the probe took the only slot."""
    rig.flags = ("--budget", "4KiB")  # what is there is in the slot alone
    backend = rig.start(state_version=4, slots=1)
    first = prompt(LONG, 2)
    ask(rig, first)
    backend.forget_calls()
    assert rig.post(b"[{", "/lora-adapters").status == 400
    ask(rig, first + prompt(40, 3))
    assert not backend.of(lambda call: "n_probs" in call.body), "it was not probed anew"
    wait_until(lambda: len(rig.cairn.status()["latest_requests"]) == 2, "Cairn is done with both")
    assert rig.cairn.status()["latest_requests"][0]["reused_tokens"] >= LONG - 1


def test_a_prompt_that_is_warmed_over_http_takes_the_backends_key_along_and_not_cairns(rig):
    rig.own_key = "sesame"
    rig.flags = ("--own-api-key", rig.own_key, "--backend-api-key", "open")
    backend = rig.start(state_version=4, slots=1)
    text = bytes(prompt(LONG, 2)).replace(b"{", b"a")

    def warm(key):
        return call(rig.cairn_port, "POST", "/cairn/checkpoints", text, headers={"Authorization": f"Bearer {key}"})
    assert warm("open").status == 401 and not rig.client_calls()
    assert warm(rig.own_key).status == 200
    sent, = rig.client_calls()
    assert "Bearer open" in sent.headers and "sesame" not in sent.headers and sent.body["n_predict"] == 0
    rig.settle()
    assert rig.cairn.status()["store"]["checkpoints"] > 0
    assert not backend.of(lambda made: "sesame" in made.headers)
