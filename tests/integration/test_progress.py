"""What a streaming client hears while its prompt is computed: one progress over all pieces, and no silence for ever."""

import http.client
import json

import pytest

from stack import quick_run, tokens


def stream(stack, body, path="/completion"):
    """The events of a streamed answer: their objects, [DONE] left out."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=120)
    try:
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        raw = response.read().decode()
    finally:
        connection.close()
    assert raw.endswith("\n\n")
    events = [event for event in raw[:-2].split("\n\n") if not event.startswith(":")]  # comments, after a silence
    assert all(event.startswith("data: ") for event in events), raw
    return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


def progress_of(events):
    return [event["prompt_progress"] for event in events if "prompt_progress" in event]


def check(reports, total, reused):
    """As one task over the whole prompt would have told it."""
    assert reports
    assert {report["total"] for report in reports} == {total}
    assert {report["cache"] for report in reports} == {reused}
    processed = [report["processed"] for report in reports]
    times = [report["time_ms"] for report in reports]
    assert processed == sorted(processed) and processed[0] >= reused
    assert processed[-1] == total
    assert times == sorted(times)


@pytest.mark.parametrize("model", ["granitehybrid"] if quick_run() else ["granitehybrid", "llama"])
def test_progress_goes_on_over_pieces(make_stack, model):
    stack = make_stack(model, backend_flags=("-np", "1"))
    first = tokens(8000, seed=1)
    body = {"n_predict": 2, "temperature": 0, "return_progress": True}

    cold = progress_of(stream(stack, {**body, "prompt": first}))
    check(cold, len(first), 0)

    # More of the same, all that was there reused.
    longer = first + tokens(4000, seed=2)
    before = stack.backend.total()
    events = stream(stack, {**body, "prompt": longer})
    computed = stack.backend.total() - before
    warm = progress_of(events)
    check(warm, len(longer), len(longer) - computed)
    assert computed < 4600, "the state that was there was not used"
    print(f"{model}: cold {cold}, warm {warm}")
    if model == "granitehybrid":
        # Cut in pieces: the last task reused what the others had computed, and its time is a part of what is told.
        timings = events[-1]["timings"]
        assert timings["cache_n"] > warm[-1]["cache"] + 2048
        assert warm[-1]["time_ms"] >= timings["prompt_ms"]


def test_progress_of_a_chat_after_a_restart(make_stack):
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"))
    words = " ".join(f"w{number % 97}" for number in range(3000))
    turn = {"messages": [{"role": "user", "content": words}], "max_tokens": 2, "temperature": 0, "return_progress": True}
    total = len(stack.backend.chat_tokens(turn))
    check(progress_of(stream(stack, turn, "/v1/chat/completions")), total, 0)
    stack.restart(first="backend")

    turn["messages"] += [{"role": "assistant", "content": "w"}, {"role": "user", "content": words[::-1]}]
    total = len(stack.backend.chat_tokens(turn))
    before = stack.backend.total()
    reports = progress_of(stream(stack, turn, "/v1/chat/completions"))
    computed = stack.backend.total() - before
    assert total - computed > 2000, "nothing was restored"
    check(reports, total, total - computed)


def test_without_pieces_the_reports_are_the_backends(make_stack):
    stack = make_stack("granitehybrid", backend_flags=("-np", "1"), cairn_flags=("--checkpoint-interval", "off"))
    prompt = tokens(3000, seed=3)
    events = stream(stack, {"prompt": prompt, "n_predict": 2, "temperature": 0, "return_progress": True})
    reports = progress_of(events)
    check(reports, len(prompt), 0)
    assert reports[-1]["time_ms"] <= events[-1]["timings"]["prompt_ms"] + 1
