"""Fixtures: stacks of processes that end with the test, and their logs beside a failure."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scripted_rig import Rig  # noqa: E402
from stack import Backend, Stack, free_port, tail  # noqa: E402

LOGS = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when == "call":
        for name, path in item.stash.get(LOGS, []):
            report.sections.append((f"{name}: {path}", tail(path)))


@pytest.fixture
def watch_log(request):
    """Call it with (name, path): a failure shows the end of that file."""
    logs = request.node.stash.setdefault(LOGS, [])
    return lambda name, path: logs.append((name, path))


@pytest.fixture
def rig(tmp_path, watch_log):
    """A scripted backend and Cairn in front of it."""
    rig = Rig(tmp_path, watch_log)
    yield rig
    rig.close()


@pytest.fixture
def make_stack(tmp_path, watch_log):
    """Call it as Stack without the folder; every stack ends with the test."""
    made = []

    def make(model, *, name="stack", **options):
        folder = tmp_path / f"{name}{len(made)}"
        watch_log("backend", folder / "backend.log")
        if options.get("with_cairn", True):
            watch_log("cairn", folder / "cairn.log")
        stack = Stack(folder, model, **options)
        made.append(stack)
        return stack

    yield make
    errors = []
    for stack in made:
        try:
            stack.close()
        except AssertionError as error:
            errors.append(str(error))
    assert not errors, "\n".join(errors)


@pytest.fixture
def make_backend(tmp_path, watch_log):
    """Call it with (model, flags): a llama-server without Cairn, for what a cold run answers."""
    made = []

    def make(model, flags=(), slots=False):
        folder = tmp_path / f"cold{len(made)}"
        slot_dir = folder / "slots" if slots else None
        (slot_dir or folder).mkdir(parents=True)
        backend = Backend(model, free_port(), slot_dir, folder / "backend.log", flags)
        made.append((backend, folder))
        return backend

    yield make
    for backend, folder in made:
        backend.kill()
        shutil.rmtree(folder, ignore_errors=True)
