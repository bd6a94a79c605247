"""What others do in a slot between two of our tasks: requests that the backend places, and clients that speak to it directly."""

import socket
import struct
import threading

import pytest

from scripted_rig import LONG, prompt, read_until
from stack import call, tokens, wait_until


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
    ours = rig.open({"prompt": text, "n_predict": 2, "id_slot": 1})  # else it would wait in Cairn
    wait_until(lambda: len(rig.client_calls()) == 3, "the prompt itself is sent")
    assert pieces_of(rig, text) == []
    backend.hold_prefill.set()
    for client in (other, foreign, ours):
        read_until(client, b"content")
        client.close()
    rig.wait_free()


def test_a_request_with_a_slot_is_not_taken_for_one_that_waits_for_any(rig):
    """A stream of /v1/messages counted as two tasks: beside it no prompt was left with a state."""
    rig.start(slots=2, state_version=4)
    with rig.streaming({"messages": [{"role": "user", "content": "a" * 60}], "max_tokens": 2}, "/v1/messages"):
        text = prompt(4 * 512 + 100, 313)
        assert rig.right(text)
        assert len(pieces_of(rig, text)) == 4
    rig.wait_free()


def test_a_slot_is_not_shunned_when_the_request_that_took_it_has_ended(rig):
    """While another such request ran on, the next prompt was sent to wait behind that one, beside an idle slot."""
    backend = rig.start(slots=2, state_version=4)

    def unpinned(slot):
        return rig.streaming({"prompt": prompt(200, 320 + slot), "n_predict": 2, "cache_prompt": False, "id_slot": slot})

    def told(count):
        return backend.of(lambda made: made.told_busy == count and made.answered.is_set())

    with unpinned(0):
        with unpinned(1):
            wait_until(lambda: told(2), "Cairn looks where they run")
            backend.forget_calls()
        wait_until(lambda: told(1), "Cairn looks again")
        text = prompt(300, 322)
        answer = rig.post({"prompt": text, "n_predict": 2}, timeout=10)
        assert answer.json()["content"] == backend.expected(text)
        assert backend.slots[0].busy
    rig.wait_free()


def test_nobody_waits_behind_what_the_backend_placed_while_another_slot_will_come_free(rig):
    """With every other slot in use a prompt was sent into the one that such a request had: it waited for its end, however long, beside the
    slot that came free."""
    backend = rig.start(slots=2, state_version=4)
    with rig.streaming({"prompt": prompt(200, 340), "n_predict": 2, "cache_prompt": False, "id_slot": 1}):
        wait_until(lambda: backend.of(lambda made: made.told_busy == 1 and made.answered.is_set()), "Cairn looks where it runs")
        text = prompt(300, 341)
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(rig.post({"prompt": text, "n_predict": 2}, timeout=10)))
        with rig.streaming({"prompt": prompt(300, 342), "n_predict": 2}):
            assert backend.slots[0].busy
            waiter.start()
            wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "it waits in Cairn, where it may still choose")
        waiter.join()
        assert answers[0].json()["content"] == backend.expected(text)
        assert backend.slots[1].busy
    rig.wait_free()


def test_who_waits_for_what_the_backend_placed_is_told_of_an_end_that_nobody_saw(rig):
    """The slot of a request whose client had left was seen in use, as the backend had not noticed yet, and never looked at again: everybody
    waited for the other slot's answer."""
    backend = rig.start(slots=2, state_version=4)
    slot = backend.slots[0]

    def told_busy(count):
        return backend.of(lambda made: made.told_busy == count and made.answered.is_set())

    with rig.streaming({"prompt": prompt(200, 360), "n_predict": 2, "cache_prompt": False, "id_slot": 1}):
        backend.hold_stream = threading.Event()
        leaving = rig.open({"prompt": prompt(200, 361), "n_predict": 2, "cache_prompt": False, "id_slot": 0, "stream": True})
        read_until(leaving, b"data: ")
        wait_until(lambda: told_busy(2), "Cairn looks where they run")
        backend.hold_slots = looking = threading.Event()
        backend.forget_calls()
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()
        wait_until(lambda: not slot.busy, "the backend is rid of it")
        slot.busy = True  # as if it had not noticed yet
        backend.hold_slots = backend.hold_stream = None
        looking.set()
        wait_until(lambda: told_busy(2), "Cairn has looked again")
        text = prompt(300, 362)
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(rig.post({"prompt": text, "n_predict": 2}, timeout=20)))
        waiter.start()
        wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "both slots are believed to be in use")
        slot.busy = False
        waiter.join()
        assert answers[0].json()["content"] == backend.expected(text)
        assert backend.slots[1].busy
    rig.wait_free()


def test_what_a_client_that_left_has_begun_is_not_taken_for_what_the_backend_placed(rig):
    """Beside any other stream nothing was put into the slot that it had left: the backend is told, and takes a second to notice."""
    backend = rig.start(slots=2, state_version=4)
    kept = prompt(LONG, 350)
    assert rig.right(kept)
    rig.settle()
    assert rig.right(prompt(LONG, 351))
    assert rig.right(prompt(LONG, 352))
    rig.settle()
    backend.forget_calls()
    with rig.streaming({"prompt": prompt(200, 355), "n_predict": 2, "cache_prompt": False, "id_slot": 1}):
        wait_until(lambda: backend.of(lambda made: made.told_busy == 1 and made.answered.is_set()), "Cairn looks where it runs")
        slot = backend.slots[0]
        backend.hold_prefill = threading.Event()
        leaving = rig.open({"prompt": prompt(LONG, 353), "n_predict": 2})
        wait_until(lambda: slot.busy, "its prompt is computed")
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()
        wait_until(lambda: not slot.busy, "the backend is rid of it")
        backend.hold_prefill.set()
        wait_until(lambda: any(one["status"] == 499 for one in rig.cairn.status()["latest_requests"]), "Cairn is done with it")
        backend.forget_calls()
        slot.busy = True  # as if it had not noticed yet
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(rig.ask(kept + prompt(40, 354))))
        waiter.start()
        wait_until(lambda: backend.of(lambda made: made.told_busy == 2 and made.answered.is_set()), "Cairn looks whether it may")
        slot.busy = False
        waiter.join()
        assert answers[0]["timings"]["cache_n"] >= LONG - 1, "its state was put in"
    rig.wait_free()


def test_who_left_while_slots_were_saved_for_it_costs_them_nothing(rig):
    """Its adapters were noted in each slot although no task of its ever came: what these held was erased before their next prompt."""
    backend = rig.start(slots=2, state_version=4)
    with rig.streaming({"prompt": prompt(200, 330), "n_predict": 2}):  # so that nothing is written back
        first = prompt(LONG, 331)
        assert rig.right(first)
        backend.hold_save = saving = threading.Event()
        leaving = rig.open({"prompt": prompt(60, 332), "n_predict": 2, "lora": [{"id": 0, "scale": 0.5}], "cache_prompt": False})
        wait_until(lambda: backend.slot_actions("save"), "the conversation is saved before the slot is taken")
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()  # by a reset
        rig.cairn.status()  # asked after that
        backend.hold_save = None
        saving.set()
        wait_until(lambda: any(rig.slot_dir.glob("*.state")), "it is saved")
        wait_until(lambda: any(one["status"] == 499 for one in rig.cairn.status()["latest_requests"]), "Cairn is done with who left")
        answer = rig.post({"prompt": first + prompt(40, 333), "n_predict": 2}).json()
        assert answer["timings"]["cache_n"] >= LONG
        assert not backend.slot_actions("erase") and not backend.of(lambda made: made.body.get("lora"))
    rig.wait_free()


def test_what_the_backend_placed_is_not_overwritten_for_who_waits_for_a_slot(rig):
    """The slot was given on before it had been looked at: what was left there was in no file, and, as no task had moved it there, not in
    the backend's RAM cache either, where it was taken to be."""
    backend = rig.start(slots=2, state_version=4, clears_idle=True)
    waiting, first = prompt(LONG, 320), prompt(2 * LONG, 321)
    assert rig.right(waiting)
    rig.settle()
    backend.refuse_save = True  # this one is in the RAM cache alone
    assert rig.right(first, n_predict=1)
    rig.settle()
    assert rig.right(prompt(LONG, 322))
    rig.settle()
    backend.refuse_save = False

    def held_stream(tokens):
        backend.hold_stream = threading.Event()
        client = rig.open({"prompt": tokens, "n_predict": 1, "stream": True})
        read_until(client, b"data: ")
        return client, backend.hold_stream

    other, end_other = held_stream(prompt(300, 323))
    turn = first + prompt(60, 324)
    placed, end_placed = held_stream(turn)
    backend.hold_stream = None
    assert "id_slot" not in rig.client_calls()[-1].body, "it was left to the backend"
    slot = next(slot for slot in backend.slots if slot.believed == turn)
    lost = []
    restore = backend.restore

    def note_what_is_lost(into, name):
        if into is slot and into.believed == turn and turn not in saved:
            lost.append(name)
        return restore(into, name)

    saved = []
    save = backend.save

    def note_what_is_saved(of, name):
        saved.append(list(of.believed))
        return save(of, name)

    backend.restore, backend.save = note_what_is_lost, note_what_is_saved
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(rig.ask(waiting + prompt(40, 325))))
    waiter.start()
    wait_until(lambda: rig.cairn.status()["queue"]["waiting"] == 1, "it waits for a slot")
    end_placed.set()
    read_until(placed, b"[DONE]")
    waiter.join()
    assert answers[0]["timings"]["cache_n"] >= LONG - 1, "its state was put in"
    assert not lost
    end_other.set()
    read_until(other, b"[DONE]")
    for client in (placed, other):
        client.close()
    rig.wait_free()
    assert rig.ask(turn + prompt(40, 326), n_predict=1)["timings"]["cache_n"] >= len(turn) - 1


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
