"""What others do in a slot between two of our tasks: requests that the backend places, and clients that speak to it directly."""

import threading

import pytest

from scripted_rig import LONG, Rig, prompt, read_until
from stack import call, tokens, wait_until


@pytest.fixture
def rig(tmp_path, watch_log):
    rig = Rig(tmp_path, watch_log)
    yield rig
    rig.close()


def pieces_of(rig, tokens_of):
    return rig.backend.of(lambda made: made.is_piece and made.body["prompt"][:50] == tokens_of[:50])


def test_pieces_that_somebody_clears_are_not_made_for_ever(rig):
    """Each piece, and the prompt itself, computed all before it again: four pieces cost two and a half prompts, each time."""
    backend = rig.start(slots=2, state_version=4)
    start_task = backend.start_task

    def start_in_a_cleared_slot(slot):
        slot.believed, slot.real, slot.checkpoints = [], [], []
        start_task(slot)

    backend.start_task = start_in_a_cleared_slot
    made = []
    for number in range(4):
        text = prompt(4 * 512 + 100, 300 + number)
        assert rig.right(text)
        made.append(len(pieces_of(rig, text)))
    assert made[0] == made[1] == 2, "the second shows that the first is gone"
    assert made[2:] == [0, 0]
    assert rig.latest()["miss"] != "not_reused_by_backend", "nothing was lost of a prompt that was computed whole"
    assert b"computed whole" in rig.log.read_bytes()


def test_no_pieces_where_a_request_waits_for_any_slot(rig):
    """Between two pieces the slot is free for a moment: the backend gave it to the request that it had put off, and the prompt waited
    for that one's whole answer and was then computed anew."""
    backend = rig.start(slots=2, state_version=4)
    backend.hold_prefill = threading.Event()
    other = rig.open({"prompt": prompt(40, 310), "n_predict": 2})
    wait_until(lambda: len(rig.client_calls()) == 1, "a slot is in use")
    foreign = rig.open({"prompt": prompt(40, 311), "n_predict": 2, "cache_prompt": False})
    wait_until(lambda: len(rig.client_calls()) == 2, "and a request that takes any")
    text = prompt(3 * LONG, 312)
    ours = rig.open({"prompt": text, "n_predict": 2})
    wait_until(lambda: len(rig.client_calls()) == 3, "the prompt itself is sent")
    assert pieces_of(rig, text) == []
    backend.hold_prefill.set()
    for client in (other, foreign, ours):
        read_until(client, b"content")
        client.close()
    rig.wait_free()


@pytest.mark.parametrize("model", ["llama"])
def test_who_speaks_to_the_backend_directly_does_not_change_the_memorys_kind(make_stack, model):
    """The slot held more than before, so its beginning was still believed in; when it was not there, a full-attention model was taken for
    one that cannot be cut back, which was remembered, too, and each turn of a chat that drops its reasoning was computed whole."""
    stack = make_stack(model, backend_flags=("-np", "1", "--cache-ram", "0"))
    system = tokens(100, "system")
    talk = system + tokens(900, "talk")
    for turn in range(3):
        stack.ask({"prompt": talk, "n_predict": 8, "temperature": 0})
        stack.cairn.settle()
        direct = system + tokens(1400 + 300 * turn, f"web page {turn}")
        assert call(stack.backend.port, "POST", "/completion", {"prompt": direct, "n_predict": 8}).status == 200
        talk = talk[:-20] + tokens(60, f"turn {turn}")
    assert stack.cairn.status()["backend"]["memory_kind"] == "truncatable"
    assert stack.ask({"prompt": talk, "n_predict": 8, "temperature": 0}).computed <= 60 + 16
