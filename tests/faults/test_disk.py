"""The disk fails under a serving Cairn: answers go on, it is said once, and saving resumes when the disk is back."""

import contextlib
import itertools
import os
import subprocess

import pytest

from stack import (Cairn, call, first_logprobs, give_write_access, logprob_distance, take_write_access, tokens, wait_until,
                   without_roots_powers)
from test_kill import kill_library

FLAGS = ("-np", "2")


def said(stack, text):
    return stack.cairn_log.read_text(errors="replace").count(text)


def resumes(stack, seed, seconds=60):
    """Asks new things until saving works again."""
    count = 0

    def saved():
        nonlocal count
        count += 1
        stack.complete(tokens(300, seed=f"{seed} {count}"))
        stack.cairn.settle()
        return said(stack, "the disk allows saving again")
    wait_until(saved, "saving resumes", seconds, pause=1)


def test_vanished_slot_directory_loses_nothing(make_stack):
    stack = make_stack("llama", backend_flags=FLAGS)
    first = tokens(600, seed=1)
    cold = stack.complete(first, n_probs=20)
    stack.cairn.settle()
    kept = stack.cairn.status()["store"]["checkpoints"]
    assert kept > 0
    stack.restart_backend()

    away = stack.folder / "away"
    stack.slot_dir.rename(away)
    through = stack.complete(first, n_probs=20)  # its state cannot be restored
    assert logprob_distance(first_logprobs(through.answer), first_logprobs(cold.answer), 10) <= 0.2
    for seed in range(3):
        stack.complete(tokens(400, seed=f"away {seed}"))
        stack.cairn.settle()
    assert said(stack, "nothing is saved until the disk allows it again") == 1
    assert stack.cairn.status()["store"]["checkpoints"] == kept, "what is only out of sight is not forgotten"

    away.rename(stack.slot_dir)
    resumes(stack, "back")
    stack.restart()
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1


def test_a_slot_directory_that_cairn_may_not_write_gets_no_files(make_stack):
    """Each pause brought another state from the backend, which Cairn could neither rename nor delete."""
    stack = make_stack("llama", backend_flags=FLAGS)
    stack.cairn.stop()

    def start(phase):
        stack.cairn = Cairn(stack.cairn_port, stack.backend_port, stack.slot_dir, stack.state_dir, stack.cairn_log, stack.cairn_flags,
                            prefix=without_roots_powers())
        stack.cairn.wait_phase(phase)

    asked = itertools.count()

    def asks_new_things():
        for _ in range(3):
            assert stack.complete(tokens(400, seed=f"new {next(asked)}")).answer.status == 200

    start(phase := "ready")
    stack.complete(tokens(400, seed=1))
    stack.cairn.settle()
    take_write_access(stack.slot_dir)
    files = sorted(stack.slot_dir.iterdir())
    asks_new_things()
    wait_until(lambda: said(stack, "nothing is saved until the disk allows it again"), "it is said")
    asks_new_things()
    assert sorted(stack.slot_dir.iterdir()) == files
    assert said(stack, "nothing is saved until the disk allows it again") == 1 == said(stack, "give write access")
    stack.cairn.stop()
    start(phase := "plain")
    asks_new_things()
    assert sorted(stack.slot_dir.iterdir()) == files
    give_write_access(stack.slot_dir)
    stack.cairn.wait_phase("ready", 60)
    resumes(stack, "allowed")


def test_nobody_waits_for_the_disk_when_a_state_is_written_back(make_stack):
    """On one slot the next turn waited until the file was synced, with an idle backend."""
    stack = make_stack("llama", backend_flags=("-np", "1"))
    stack.cairn.stop()
    hold = stack.folder / "hold"
    hold.touch()
    prefix = ("env", f"LD_PRELOAD={kill_library()}", f"CAIRN_HOLD_SYNC={hold}")
    stack.cairn = Cairn(stack.cairn_port, stack.backend_port, stack.slot_dir, stack.state_dir, stack.cairn_log, stack.cairn_flags, prefix=prefix)
    stack.cairn.wait_phase("ready")
    first = tokens(1000, seed=1)
    second = first + tokens(500, seed=2)
    try:
        stack.complete(first)
        wait_until((stack.folder / "hold.held").exists, "a state is to be synced")
        assert stack.complete(second).timings["cache_n"] >= len(first) - 1
        assert stack.cairn.status()["store"]["checkpoints"] == 0
    finally:
        hold.unlink()
    stack.cairn.settle()
    # What the slot held when it was saved and what it holds now: both came to the store as they were.
    stack.restart()
    assert stack.complete(second).timings["cache_n"] >= len(second) - 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 24 MiB; skipped where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=False,
                                           capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_stops_saving_and_not_serving(make_stack, small_disk):
    """Full for the backend, who writes the files: Cairn's own floor of free disk would keep away from it."""
    stack = make_stack("llama", backend_flags=FLAGS, cairn_flags=("--min-free", "0", "--checkpoint-interval", "off"))
    slot_dir = small_disk / "slots"
    slot_dir.mkdir()
    stack.cairn.stop()
    stack.backend.stop()
    stack.slot_dir = slot_dir
    stack.start()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(23 << 20))
    for seed in range(3):
        stack.complete(tokens(1500, seed=f"full {seed}"))
        stack.cairn.settle()
    assert said(stack, "nothing is saved until the disk allows it again") == 1
    assert not [path for path in slot_dir.iterdir() if path.name != "cairn.lock"], "half-saved files are gone"
    ballast.unlink()
    resumes(stack, "room")
    assert stack.cairn.status()["store"]["checkpoints"] > 0


def test_what_waits_for_a_disk_is_saved_at_shutdown_where_that_is_well_again(make_stack, small_disk):
    """Within the pause after a refusal nothing was tried any more."""
    stack = make_stack("llama", backend_flags=FLAGS, cairn_flags=("--min-free", "0", "--checkpoint-interval", "off"))
    stack.cairn.stop()
    stack.backend.stop()
    stack.slot_dir = small_disk / "slots"
    stack.slot_dir.mkdir()
    stack.start()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(23 << 20))
    first = tokens(1500, seed="full")
    stack.complete(first)
    wait_until(lambda: stack.cairn.status()["store"]["saving_paused"], "the disk has refused")
    ballast.unlink()
    stack.restart()
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1


def test_what_is_evicted_while_the_index_has_no_room_is_gone(make_stack, small_disk):
    """It was answered with 503, although the state was gone; asked again, with 404."""
    stack = make_stack("llama", backend_flags=FLAGS)
    stack.cairn.stop()
    stack.state_dir = small_disk / "state"
    stack.start_cairn()
    stack.cairn.wait_phase("ready")
    for seed in range(2):
        stack.complete(tokens(300, seed=seed))
        stack.cairn.settle()
    one, two = (entry["id"] for entry in call(stack.cairn_port, "GET", "/cairn/checkpoints").json()["checkpoints"])
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    answer = call(stack.cairn_port, "DELETE", f"/cairn/checkpoints/{one}")
    assert answer.status == 200 and "full" in answer.json()["row_left"], answer.body
    assert len(list(stack.slot_dir.glob("*.state"))) == 1
    ballast.unlink()
    answer = call(stack.cairn_port, "DELETE", f"/cairn/checkpoints/{two}")
    assert answer.status == 200 and "row_left" not in answer.json(), answer.body
    stack.restart_cairn()
    assert "without their file" not in stack.cairn_log.read_text(), "the row of the first went with the second's"
    assert stack.cairn.status()["store"]["checkpoints"] == 0


@pytest.mark.parametrize("trouble", ["state directory is a file", "slot directory is missing"])
def test_a_start_without_its_directories_serves_and_caches_later(make_stack, trouble):
    stack = make_stack("llama", backend_flags=FLAGS)
    first = tokens(600, seed=2)
    stack.complete(first)
    stack.cairn.settle()
    stack.cairn.stop()
    lost = stack.state_dir if "state" in trouble else stack.slot_dir
    away = stack.folder / "away"
    lost.rename(away)
    if lost == stack.state_dir:
        lost.write_bytes(b"")
    stack.start_cairn()
    stack.cairn.wait_phase("plain")
    assert stack.complete(tokens(300, seed=3)).answer.status == 200
    lost.unlink(missing_ok=True)
    away.rename(lost)
    stack.cairn.wait_phase("ready", 40)
    assert stack.cairn.status()["store"]["checkpoints"] > 0
    stack.restart_backend()
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1


def test_an_index_of_a_newer_format_is_set_aside(make_stack):
    stack = make_stack("llama", backend_flags=FLAGS)
    first = tokens(600, seed=4)
    stack.complete(first)
    stack.cairn.settle()
    stack.cairn.stop()
    index = stack.state_dir / "index.sqlite"
    data = bytearray(index.read_bytes())
    data[60:64] = (99).to_bytes(4, "big")  # user_version, in SQLite's file header
    index.write_bytes(data)
    stack.start_cairn()
    stack.cairn.wait_phase("ready")
    assert said(stack, "format 99 is newer") == 1
    assert stack.cairn.status()["store"]["checkpoints"] == 0
    stack.complete(first)
    stack.cairn.settle()
    stack.restart()
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1
