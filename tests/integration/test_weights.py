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
