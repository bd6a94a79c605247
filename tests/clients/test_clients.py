"""The SDKs that people use, through Cairn and against llama-server itself: equal results, and second turns that reuse the first.

The cases are run.mjs. The second turns of /v1/messages and /v1/responses reuse the first in the slot of the backend's own choice as
long as nothing comes between them; that they do so whatever comes between hangs on Cairn's caching those endpoints. The models'
weights are random: with tools they are asked to go on from a call and its result, since they make no calls themselves."""

import json

import pytest

from conftest import run_node

TURNS = [f"{name}{streamed}" for name in ("openai chat turns", "openai responses turns", "anthropic messages turns", "vercel chat turns")
         for streamed in ("", " streamed")]
OTHERS = ["openai tool", "openai schema", "openai completion", "openai models", "anthropic tool", "anthropic count", "vercel tool",
          "openai abort", "anthropic abort", "openai error", "anthropic error"]


@pytest.fixture(scope="module")
def rows(packages, stacks):
    alone, behind = stacks
    said = run_node("run.mjs", f"http://127.0.0.1:{alone.port}", f"http://127.0.0.1:{behind.port}", cwd=packages)
    rows = {row["name"]: row for row in map(json.loads, said.splitlines())}
    assert sorted(rows) == sorted(TURNS + OTHERS)
    return rows


def both(rows, name):
    row = rows[name]
    for side in ("direct", "through"):
        assert "unexpected" not in (row[side] if isinstance(row[side], dict) else {}), (side, row[side])
    return row["direct"], row["through"]


@pytest.mark.parametrize("name", TURNS)
def test_turns_are_the_same(rows, name):
    direct, through = both(rows, name)
    assert [{**turn, "cached": 0} for turn in through] == [{**turn, "cached": 0} for turn in direct]


@pytest.mark.parametrize("name", TURNS)
def test_second_turn_reuses_the_first(rows, name):
    first, second = both(rows, name)[1]
    assert second["prompt"] > first["prompt"] > 500
    assert second["cached"] >= 0.95 * first["prompt"], (first, second)


@pytest.mark.parametrize("name", OTHERS)
def test_result_is_the_same(rows, name):
    direct, through = both(rows, name)
    assert through == direct


@pytest.mark.parametrize("name", ["openai abort", "anthropic abort"])
def test_abort_leaves_nothing_behind(rows, stacks, name):
    assert both(rows, name)[1]["some"], "it was aborted before anything came"
    stacks[1].cairn.settle()
    assert stacks[1].cairn.status()["queue"]["leased"] == 0
