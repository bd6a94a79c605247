"""The packages from npm, and one llama-server alone beside another one behind Cairn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from stack import Stack  # noqa: E402


@pytest.fixture(scope="session")
def packages():
    """Installs what package-lock.json says, once. Skips only where that cannot be had."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip(f"no {program}: the SDKs of tests/clients run on Node 20 or newer")
    major = int(subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0])
    if major < 20:
        pytest.skip(f"node {major}: the SDKs of tests/clients want 20 or newer")
    lock = HERE / "package-lock.json"
    installed = HERE / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        made = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, capture_output=True,
                              text=True, timeout=300)
        if made.returncode != 0:
            pytest.skip(f"npm cannot install the SDKs of tests/clients: {made.stderr[-300:]}")
    return HERE


def two_stacks(folder, flags=()):
    """A llama-server alone, and another behind Cairn on default settings."""
    flags = ("-np", "2", "-c", "16384", *flags)
    alone = Stack(folder / "alone", "llama", backend_flags=flags, with_cairn=False)
    try:
        behind = Stack(folder / "behind", "llama", backend_flags=flags, cairn_flags=())
    except BaseException:
        alone.kill()
        raise
    return alone, behind


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    alone, behind = two_stacks(tmp_path_factory.mktemp("clients"))
    yield alone, behind
    try:
        behind.close()
    finally:
        alone.close()


def run_node(script, *arguments, cwd, timeout=600):
    made = subprocess.run(["node", script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "NODE_NO_WARNINGS": "1"})
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout
