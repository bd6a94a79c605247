"""What Cairn believes of a backend that is busy, or that changes, when it is looked at."""

import threading

import pytest

from scripted_rig import LONG, Rig, prompt, read_until
from stack import wait_until


@pytest.fixture
def rig(tmp_path, watch_log):
    rig = Rig(tmp_path, watch_log)
    yield rig
    rig.close()


def ask(rig, tokens, **more):
    assert rig.right(tokens, n_predict=1, **more)  # the prompt alone is left in the slot
    rig.wait_free()


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
