"""Slots that are emptied so that llama-server does not copy what they hold into its own RAM cache in vain, and those that are not."""

import threading

import pytest

from scripted_rig import LONG, Rig, prompt, read_until
from stack import wait_until

BIG = f"i{70_000_000}x"  # bytes of each state, whatever its tokens: 18 ms to copy
BIGGER = f"i{250_000_000}x"  # 63 ms, which is more than what a copy may spare where a third of the prompts comes back


@pytest.fixture
def rig(tmp_path, watch_log):
    rig = Rig(tmp_path, watch_log)
    rig.interval = "off"
    yield rig
    rig.close()


def erases(rig):
    return rig.backend.of(lambda call: call.path == "/slots/action/erase")


def test_a_big_state_is_not_left_to_the_backends_ram_cache_in_vain(rig):
    """Before another prompt takes the slot it is emptied, and comes back from its file."""
    rig.start(state_version=4, cell=BIGGER)
    first, other = prompt(LONG, 1), prompt(LONG, 2)
    assert rig.right(first)
    rig.settle()
    rig.backend.forget_calls()
    assert rig.right(other)
    asked = [call.path for call in rig.backend.calls if call.method == "POST"]
    assert asked.index("/slots/action/erase") < asked.index("/completion"), asked
    rig.settle()
    assert rig.right(first)
    assert any(call.path == "/slots/action/restore" for call in rig.backend.calls)


def test_no_slot_is_emptied_behind_a_request_that_may_run_in_it(rig):
    """The backend would put the erase off until that ends, and the slot would be held as long for a client that has left."""
    backend = rig.start(state_version=4, cell=BIG)
    assert rig.right(prompt(LONG, 1))
    rig.settle()
    backend.hold_stream = threading.Event()
    uncached = rig.open({"prompt": prompt(300, 2), "n_predict": 4, "stream": True, "cache_prompt": False})
    read_until(uncached, b"data:")
    backend.forget_calls()
    client = rig.open({"prompt": prompt(LONG, 3), "n_predict": 2})
    wait_until(lambda: backend.of(lambda call: call.body.get("prompt") == prompt(LONG, 3)), "it was sent to the backend")
    client.close()
    rig.wait_free()
    assert not erases(rig)
    backend.hold_stream.set()
    backend.hold_stream = None
    read_until(uncached, b"0\r\n\r\n")
    uncached.close()


def test_no_slot_is_emptied_for_a_request_that_the_backend_places(rig):
    """It might place it elsewhere, and gives such requests back what it copied."""
    rig.start(state_version=4, cell=BIG)
    for number in (1, 2):
        said = bytes(prompt(LONG, number)).decode().replace("\\", "a")
        assert rig.post({"max_tokens": 1, "messages": [{"role": "user", "content": said}]}, "/v1/messages").status == 200
        rig.settle()
    assert not erases(rig)


@pytest.mark.parametrize("unsaved", [False, True], ids=["restore", "save"])
def test_no_slot_action_is_sent_behind_a_request_that_runs_there(rig, unsaved):
    """The backend would put it off until that request ends, and whatever else it has put off for longer."""
    backend = rig.start(state_version=4)
    first = prompt(LONG, 1)
    assert rig.right(first)
    rig.settle()
    if unsaved:  # it ends, and its state is to be saved, when the other request is at the backend already
        backend.hold_stream = ending = threading.Event()
        latest = rig.open({"prompt": prompt(LONG, 2), "n_predict": 2, "stream": True})
        wait_until(lambda: backend.of(lambda call: call.held.is_set()), "it is being answered")
    else:
        assert rig.right(prompt(LONG, 2))
        rig.settle()
    backend.hold_stream = threading.Event()
    uncached = rig.open({"prompt": prompt(300, 2), "n_predict": 4, "stream": True, "cache_prompt": False})
    wait_until(lambda: backend.of(lambda call: call.body.get("prompt") == prompt(300, 2)), "the other is at the backend")
    backend.forget_calls()
    if unsaved:
        ending.set()
        read_until(latest, b"0\r\n\r\n")
        latest.close()
    read_until(uncached, b"data:")
    client = rig.open({"prompt": first + prompt(50, 3), "n_predict": 2})
    wait_until(lambda: backend.of(lambda call: call.body.get("prompt") and call.body["prompt"][:LONG] == first), "it was sent to the backend")
    assert not backend.of(lambda call: call.path.startswith("/slots/action/"))
    client.close()
    rig.wait_free()
    backend.hold_stream.set()
    backend.hold_stream = None
    read_until(uncached, b"0\r\n\r\n")
    uncached.close()
    assert rig.right(first + prompt(50, 3))
