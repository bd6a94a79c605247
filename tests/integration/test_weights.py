"""Which states fit to a process whose model file was replaced, or can be read now and then only."""

import pytest

from scripted_rig import LONG, Rig, prompt


@pytest.fixture
def rig(tmp_path, watch_log):
    rig = Rig(tmp_path, watch_log)
    rig.model = tmp_path / "model.gguf"
    yield rig
    rig.close()


def start_backend(rig, **options):
    """Another process."""
    if rig.backend is not None:
        rig.backend.stop()
    rig.start_backend(state_version=4, **options).model_path = rig.model


def start_cairn(rig):
    if rig.cairn is not None:
        rig.cairn.stop()
    rig.start_cairn()
    rig.backend.forget_calls()


def ask(rig, tokens):
    """The plan."""
    assert rig.right(tokens)
    plan = rig.latest()["plan"]
    rig.settle()
    return plan


def space(rig):
    return rig.cairn.status()["backend"]["namespace"]


first = prompt(LONG, 1)


def test_what_a_process_saved_after_its_model_file_was_replaced_is_not_put_into_the_next_one(rig):
    """A probe took the new file for what the old process had loaded, and its states for the new weights'."""
    rig.model.write_bytes(b"old weights")
    start_backend(rig)
    start_cairn(rig)
    assert ask(rig, first) == "recompute"
    rig.model.write_bytes(b"new weights")
    start_cairn(rig)
    second = prompt(LONG, 2)
    assert ask(rig, second) == "recompute"
    assert rig.backend.slot_actions("save"), "in this process it is good for something"
    assert b"was replaced while the backend runs" in rig.log.read_bytes()
    start_backend(rig, drift=0.001)
    start_cairn(rig)
    for tokens in (first, second):
        assert ask(rig, tokens + prompt(50, 3)) == "recompute"
    # Back to the old ones.
    rig.model.write_bytes(b"old weights")
    start_backend(rig)
    start_cairn(rig)
    assert ask(rig, first + prompt(50, 4)) == "restore"
    assert ask(rig, second + prompt(50, 4)) == "recompute"


def test_what_was_saved_while_the_model_file_could_not_be_read_is_found_when_it_can(rig):
    """An update, or a right to read it, left all states behind."""
    start_backend(rig)
    start_cairn(rig)
    assert ask(rig, first) == "recompute"
    before = space(rig)
    rig.model.write_bytes(b"weights")
    start_backend(rig)
    start_cairn(rig)
    assert space(rig) == before
    assert ask(rig, first + prompt(50, 2)) == "restore"
    # From now on it is known which weights these are.
    rig.model.write_bytes(b"WEIGHTS")
    start_backend(rig, drift=0.001)
    start_cairn(rig)
    assert space(rig) != before
    assert ask(rig, first + prompt(50, 3)) == "recompute"


def test_a_model_file_that_went_away_while_it_is_loaded_costs_no_state(rig):
    rig.model.write_bytes(b"weights")
    start_backend(rig)
    start_cairn(rig)
    assert ask(rig, first) == "recompute"
    before = space(rig)
    rig.model.unlink()
    start_cairn(rig)
    assert space(rig) == before
    assert ask(rig, prompt(LONG, 2)) == "recompute"
    assert ask(rig, first + prompt(50, 3)) == "restore"
    start_backend(rig)  # it may be any other
    start_cairn(rig)
    assert space(rig) != before
    assert b"cannot be read" in rig.log.read_bytes()


def test_a_marker_that_is_the_same_for_each_process_tells_nothing(rig):
    """With LLAMA_MEDIA_MARKER each file but the first was taken for one that was replaced while it is loaded."""
    rig.model.write_bytes(b"old weights")
    start_backend(rig)
    rig.backend.marker = "<__media__>"
    start_cairn(rig)
    assert ask(rig, first) == "recompute"
    rig.model.write_bytes(b"new weights")
    spaces = set()
    for _ in range(2):
        start_backend(rig)
        rig.backend.marker = "<__media__>"
        start_cairn(rig)
        spaces.add(space(rig))
    assert len(spaces) == 1
    assert ask(rig, first) == "recompute"
