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


# --- which process it is ----------------------------------------------------------------------------------

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
