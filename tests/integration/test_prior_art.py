"""What went wrong in other proxies of this kind, and the test of ours that would notice. Each row is a name that must exist.

Those that had no test elsewhere are below the table."""

import re

import pytest

from scripted_rig import LONG, Rig, open_request, prompt, read_until
from stack import REPOSITORY, wait_until

TABLE = {
    "the slot is lost for ever when a streaming client leaves": "integration/test_scripted.py test_client_leaves_during_its_answer",
    "a cancellation during a restore leaks the slot's lock":
        "integration/test_prior_art.py test_a_client_that_leaves_during_a_restore_leaks_no_slot",
    "concurrent requests all pile on slot 0": "integration/test_scripted.py test_two_slots_serve_two_at_a_time",
    "the chunk that carries [DONE] is dropped, with what came in the same read":
        "integration/test_prior_art.py test_content_usage_and_done_in_one_read_all_arrive",
    "a slow reader gets a truncated answer": "integration/test_life.py test_slow_reader_frees_its_slot_when_the_backend_is_done",
    "the restore's result is ignored": "integration/test_scripted.py test_refused_restore_still_gets_an_answer",
    "a failed save still writes the index entry":
        "integration/test_prior_art.py test_a_failed_save_leaves_no_entry_and_no_file",
    "the same key saved twice is counted twice": "integration/test_prior_art.py test_the_same_prompt_again_is_one_state",
    "files whose entry is gone stay for ever":
        "integration/test_prior_art.py test_files_without_an_entry_are_removed_at_start",
    "prompts matched without case, roles, tools or template arguments":
        "integration/test_prior_art.py test_roles_and_letter_case_are_part_of_a_prompt",
    "the highest ratio wins instead of the longest prefix":
        "integration/test_prior_art.py test_the_longest_prefix_wins_not_the_highest_ratio",
    "template rendered without tools and chat_template_kwargs":
        "integration/test_prior_art.py test_the_template_sees_the_whole_body",
    "files keyed by model name": "integration/test_scripted.py test_another_model_under_the_same_port",
    "a file of backend A is restored on B": "integration/test_scripted.py test_another_model_while_cairn_was_away",
    "all metadata read and parsed on every request": "integration/test_prior_art.py test_no_file_is_read_to_find_a_match",
    "without include_usage the reused tokens read 0":
        "integration/test_prior_art.py test_reuse_is_known_without_include_usage",
    "connection pools poisoned by cancelled reads": "unit/backend_upstream_test.cpp AHalfReadAnswerIsNeverPooled",
    "half-open kept connections": "unit/backend_upstream_test.cpp ADeadPooledConnectionIsReplaced",
    "the answer of one request given to another": "integration/test_life.py test_500_concurrent_streams",
}


@pytest.mark.parametrize("trouble", TABLE)
def test_each_has_its_test(trouble):
    path, name = TABLE[trouble].split()
    text = (REPOSITORY / "tests" / path).read_text()
    assert re.search(rf"^def {name}\(|^TEST(_F)?\(.*\b{name}\w*", text, re.MULTILINE), f"{path} has no {name}"


@pytest.fixture
def rig(tmp_path, watch_log):
    rig = Rig(tmp_path, watch_log)
    yield rig
    rig.close()


def test_a_client_that_leaves_during_a_restore_leaks_no_slot(rig):
    backend = rig.start(state_version=4)
    first, second = prompt(LONG, 1), prompt(LONG, 2)
    for tokens in (first, second):
        assert rig.right(tokens)
        rig.settle()
    backend.forget_calls()
    slot = backend.slots[0]
    with slot.lock:  # the restore waits
        client = open_request(rig.cairn_port, {"prompt": first + prompt(50, 3), "n_predict": 2})
        wait_until(lambda: backend.slot_actions("restore"), "a restore is under way")
        client.close()
    rig.wait_free(10)
    assert rig.right(first + prompt(50, 4))


def test_content_usage_and_done_in_one_read_all_arrive(rig):
    backend = rig.start(state_version=4)
    tokens = prompt(300, 1)
    client = open_request(rig.cairn_port, {"prompt": tokens, "n_predict": 2, "stream": True})
    got = read_until(client, b"0\r\n\r\n")
    client.close()
    expected = backend.expected(tokens).encode()
    assert expected[:8] in got and expected[8:] in got and b'"timings"' in got and b"data: [DONE]" in got


def test_a_failed_save_leaves_no_entry_and_no_file(rig):
    backend = rig.start(state_version=4)
    backend.refuse_save = True
    assert rig.right(prompt(LONG, 1))
    wait_until(lambda: backend.slot_actions("save"), "a save was tried")
    rig.settle()
    assert rig.cairn.status()["store"]["checkpoints"] == 0
    assert not list(rig.slot_dir.glob("*.state"))


def test_the_same_prompt_again_is_one_state(rig):
    rig.start(state_version=4)
    counts = []
    for _ in range(3):
        assert rig.right(prompt(LONG, 1))
        rig.settle()
        store = rig.cairn.status()["store"]
        counts.append((store["checkpoints"], store["bytes"]))
        assert sum(path.stat().st_size for path in rig.slot_dir.glob("*.state")) == store["bytes"]
    assert counts[1] == counts[2], counts


def test_files_without_an_entry_are_removed_at_start(rig):
    rig.start(state_version=4)
    assert rig.right(prompt(LONG, 1))
    rig.settle()
    one = next(rig.slot_dir.glob("*.state"))
    stray = one.with_name("cairn-" + "0" * 32 + ".state")
    stray.write_bytes(one.read_bytes())
    rig.cairn.stop()
    rig.start_cairn()
    assert one.exists() and not stray.exists()


def test_roles_and_letter_case_are_part_of_a_prompt(rig):
    backend = rig.start(state_version=4)
    text = bytes(prompt(LONG, 1)).decode().replace("<", "x")

    def ask(role, content):
        answer = rig.post({"messages": [{"role": role, "content": content}], "max_tokens": 2}, "/v1/chat/completions").json()
        return answer["choices"][0]["message"]["content"]

    for role, content in (("user", text), ("system", text), ("user", text.upper()), ("user", text.lower()), ("user", text)):
        rendered = f"<{role}>{content}</><assistant>".encode()
        assert ask(role, content) == backend.expected(list(rendered)), role
        rig.settle()


def test_the_template_sees_the_whole_body(rig):
    backend = rig.start(state_version=4)
    body = {"messages": [{"role": "user", "content": "hello"}], "tools": [{"type": "function", "function": {"name": "look"}}],
            "chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 2}
    assert rig.post(body, "/v1/chat/completions").status == 200
    rendered = backend.of(lambda made: made.path == "/apply-template" and made.body.get("messages") == body["messages"])
    assert rendered and all(made.body.get(key) == body[key] for made in rendered for key in ("tools", "chat_template_kwargs"))


def test_reuse_is_known_without_include_usage(rig):
    rig.start(state_version=4)
    tokens = prompt(LONG, 1)
    for more in ([], prompt(30, 2)):
        client = open_request(rig.cairn_port, {"prompt": tokens + more, "n_predict": 2, "stream": True})
        read_until(client, b"[DONE]")
        client.close()
        rig.settle()
    latest = rig.cairn.status()["latest_requests"][0]
    assert latest["reused_tokens"] >= LONG - 600, latest


def test_the_longest_prefix_wins_not_the_highest_ratio(rig):
    backend = rig.start(state_version=4)
    shared = prompt(1200, 1)
    whole_of_a_short_one, part_of_a_long_one = shared[:600], shared + prompt(2000, 2)
    for tokens in (whole_of_a_short_one, part_of_a_long_one, prompt(LONG, 3)):
        assert rig.right(tokens)
        rig.settle()
    computed = backend.computed
    assert rig.right(shared + prompt(40, 4))
    assert backend.computed - computed < 640, "it went on from the short one"


def test_no_file_is_read_to_find_a_match(rig):
    rig.start(state_version=4)
    first = prompt(LONG, 1)
    for tokens in (first, prompt(LONG, 2)):
        assert rig.right(tokens)
        rig.settle()
    for path in rig.slot_dir.glob("*.state"):
        path.rename(path.with_suffix(".away"))
    assert rig.right(first + prompt(50, 3))
    latest = rig.cairn.status()["latest_requests"][0]
    assert latest["plan"] == "restore" and latest["planned_tokens"] >= LONG - 100, latest
