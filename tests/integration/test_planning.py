"""Plans on default settings: what never comes back is not cut up, side jobs do not cost a conversation its state, who waits
for the same prefix shares it, and every request says why it was no full hit."""

import threading

import pytest

from stack import common, prose, quick_run, tokens, wait_until

SLACK = 16  # tokens that a full hit may compute beyond the new ones


def latest(stack, count):
    """What the status page says of the last of `count` requests that used the cache; the client has its answer before."""
    def told():
        requests = stack.cairn.status()["latest_requests"]
        return requests if len(requests) == count else None
    return wait_until(told, f"{count} requests on the status page")[0]


@pytest.mark.parametrize("model", ["granitehybrid", "llama"])
def test_a_short_prompt_that_never_comes_back_is_not_cut(make_stack, model):
    stack = make_stack(model, backend_flags=("-np", "2"), cairn_flags=())
    for number in range(4):
        outcome = stack.ask({"messages": [{"role": "user", "content": prose(60, f"{number}")}], "max_tokens": 1, "temperature": 0},
                            "/v1/chat/completions")
        total = outcome.answer.json()["usage"]["prompt_tokens"]
        # A piece would be reused by the request itself: what the client is told and what was computed would differ.
        said = latest(stack, number + 1)
        assert said["computed_tokens"] == said["prompt_tokens"] - said["reused_tokens"]
        assert outcome.answer.json()["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0) <= said["reused_tokens"]
        assert outcome.computed <= total


SLOTS = [("-np", "1"), ("-np", "2")]


@pytest.mark.parametrize("flags", SLOTS[:1] if quick_run() else SLOTS, ids=lambda flags: flags[1])
@pytest.mark.parametrize("model", ["granitehybrid-think", "gemma3-think"])
def test_side_jobs_between_turns_cost_a_chat_nothing(make_stack, model, flags):
    """Found by tests/bench/never_slower: short side jobs in the same template spoilt the learned end of the chat's prompts."""
    stack = make_stack(model, backend_flags=flags, cairn_flags=())
    messages = [{"role": "system", "content": prose(200, "system")}]
    known = []
    for turn in range(6):
        messages.append({"role": "user", "content": prose(2400 if turn == 0 else 500 + 20 * turn, f"turn {turn}")})
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "seed": 1}
        ids = stack.backend.chat_tokens(body)
        new = len(ids) - max((common(ids, other) for other in known), default=0)
        known.append(ids)
        outcome = stack.ask(body, "/v1/chat/completions")
        print(f"turn {turn}: {len(ids)} tokens, {new} new, {outcome.computed} computed")
        assert outcome.computed <= new + SLACK, turn
        messages.append({"role": "assistant", "content": outcome.answer.json()["choices"][0]["message"]["content"]})
        # The title, at once.
        side = {"messages": [{"role": "user", "content": f"A title for: {prose(30 + 15 * turn, f'side {turn}')}"}],
                "max_tokens": 4, "temperature": 0}
        known.append(stack.backend.chat_tokens(side))
        stack.ask(side, "/v1/chat/completions")
        stack.cairn.settle()


@pytest.mark.parametrize("flags, slots", [(("-np", "1"), 1), (("-np", "2"), 2)], ids=["1", "2"])
@pytest.mark.parametrize("model", ["granitehybrid"] if quick_run() else ["granitehybrid", "llama", "mamba2"])
def test_who_waits_for_the_same_prefix_shares_it(make_stack, model, flags, slots):
    stack = make_stack(model, backend_flags=flags, cairn_flags=())
    prefix, rest, clients = 3000, 40, 6
    shared = tokens(prefix, "shared")
    before = stack.backend.total()
    answers = [None] * clients
    ready = threading.Barrier(clients)

    def client(number):
        ready.wait()
        answers[number] = stack.complete(shared + tokens(rest, f"client {number}"))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers)
    computed = stack.backend.total() - before
    print(f"{computed} computed for {clients} clients of {prefix} + {rest} tokens")
    assert computed <= slots * prefix + clients * (rest + SLACK)
    stack.cairn.settle()
    status = stack.cairn.status()
    assert status["queue"]["waiting"] == 0
    assert not any(slot["leased"] for slot in status["slots"])


def test_an_edit_costs_at_most_one_interval_beyond_the_divergence(make_stack):
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"), cairn_flags=())
    original = tokens(6000, "original")
    stack.complete(original)
    edited = list(original)
    edited[3100] = 299
    outcome = stack.complete(edited)
    interval = stack.cairn.status()["rates"]["checkpoint_interval_tokens"]
    print(f"{outcome.computed} computed, interval {interval}")
    assert outcome.computed <= len(edited) - 3100 + max(interval, 1024)


def test_why_a_request_was_no_full_hit(make_stack, tmp_path):
    config = tmp_path / "cairn.yaml"
    config.write_text("log_prompts: true\n")
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"), cairn_flags=("--config", config))
    text = prose(300, "why")
    stack.ask({"prompt": text, "n_predict": 1})
    assert latest(stack, 1)["miss"] == "new_prompt"
    at = text.rindex("the ", 0, len(text) // 2)
    stack.ask({"prompt": text[:at] + "Quebec " + text[at + 4:], "n_predict": 1})
    said = latest(stack, 2)
    assert said["miss"] in ("cannot_rewind", "not_admitted")
    assert said["reused_tokens"] < said["left_at"] == said["known_tokens"]
    assert said["token"] != said["instead_of"]
    assert "Queb" in said["text"] and "Queb" not in said["instead_of_text"]
    assert "left_at=" in stack.cairn_log.read_text() and "Queb" in stack.cairn_log.read_text()


def test_prompts_stay_out_of_the_log(make_stack):
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"), cairn_flags=())
    for ending in ("Quebec", "Yankee"):
        stack.ask({"prompt": prose(120, "secret") + ending + prose(50, ending), "n_predict": 1})
    said = latest(stack, 2)
    assert said["left_at"] > 0 and "text" not in said
    log = stack.cairn_log.read_text()
    assert "left_at=" in log and "Queb" not in log and "Yank" not in log


def test_the_next_turn_of_a_short_chat_goes_on_in_its_slot(make_stack):
    """The answer in the slot counted as lost to the very turn that goes on after it, and an empty slot was taken instead."""
    stack = make_stack("llama", backend_flags=("-np", "2"), cairn_flags=())
    first = tokens(20, "short")
    stack.complete(first, n_predict=60, ignore_eos=True)
    latest(stack, 1)
    stack.complete(first + tokens(70, "then"))
    said = latest(stack, 2)
    assert said["reused_tokens"] == 20, said


def test_a_prompt_that_the_backend_refuses_costs_the_slot_nothing(make_stack):
    """Its first piece was refused, too, and what the slot held was forgotten all the same."""
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"))
    talk = tokens(1500, "talk")
    stack.complete(talk)
    stack.cairn.settle()
    beyond_the_vocabulary = 10**9
    bad = {"prompt": [beyond_the_vocabulary, *tokens(2000, "bad")], "n_predict": 1}
    assert stack.ask(bad, "/completion", expect=400).answer.status == 400
    latest(stack, 2)
    stack.complete(talk + tokens(40, "more"))
    said = latest(stack, 3)
    assert said["plan"] == "live" and said["computed_tokens"] <= 40 + SLACK, said


def test_a_request_that_is_refused_computes_nothing_and_takes_no_slot(make_stack):
    """Found in a review: of a grammar that cannot be parsed the backend says so when it begins the task, behind all pieces of the prompt."""
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"), cairn_flags=("--checkpoint-interval", "1024"))
    held = tokens(3000, "held")
    stack.complete(held)
    stack.cairn.settle()
    for number in range(3):
        refused = {"prompt": tokens(4000, f"refused {number}"), "n_predict": 4, "grammar": "root ::= (" + "a" * number}
        assert stack.ask(refused, expect=400).computed == 0
    assert stack.complete(held + tokens(20, "more")).computed <= 20 + SLACK
    # A grammar that was accepted once is no reason to make no pieces.
    fine = {"n_predict": 4, "temperature": 0, "grammar": 'root ::= "a"*'}
    found = [stack.ask({**fine, "prompt": tokens(4000, f"fine {number}")}).timings["cache_n"] for number in range(2)]
    assert found[0] == 0 and found[1] > 0


@pytest.mark.parametrize("model", ["granitehybrid", "gemma3"])
def test_what_cannot_be_saved_comes_back_from_the_backends_own_cache(make_stack, model):
    """Found in a review: a piece of a known prompt is too small for llama-server to give its state back from --cache-ram."""
    stack = make_stack(model, backend_flags=("-np", "1"), cairn_flags=("--min-free", "9000GiB"))
    first, second = tokens(6000, "first"), tokens(2000, "second")
    for turn in range(3):
        for prompt in (first, second):
            outcome = stack.complete(prompt)
            if turn > 0:
                assert outcome.computed <= 20 + SLACK
            prompt += tokens(20, f"turn {turn} of {len(prompt)}")
