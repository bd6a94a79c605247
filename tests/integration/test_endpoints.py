"""Every endpoint with a prompt is cached: what its second turn reuses after another conversation has had the slot, and after
both processes were restarted; and that Cairn's idea of its prompt is the backend's."""

import json

import pytest

from stack import KINDS, call, prose, quick_run

ANTHROPIC = {"anthropic-version": "2023-06-01"}


def usage(answer):
    return answer.json()["usage"]


def events(answer):
    """The data of an event stream."""
    return [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: {")]


def metric(stack, line):
    for one in call(stack.port, "GET", "/cairn/metrics").body.decode().splitlines():
        if one.startswith(line):
            return float(one.split()[-1])
    return 0.0


def assert_derived(stack):
    """No prompt was other than Cairn had derived."""
    text = call(stack.port, "GET", "/cairn/metrics").body.decode()
    assert "other_prompt_than_derived" not in text
    assert "unreadable_body" not in text


# --- /v1/messages -----------------------------------------------------------------------------------------

def messages_body(history, *, seed, stream=False, max_tokens=8, **more):
    return {"model": "m", "max_tokens": max_tokens, "temperature": 0, "stream": stream,
            "system": [{"type": "text", "text": prose(400, seed), "cache_control": {"type": "ephemeral"}}],
            "messages": history, **more}


def ask_messages(stack, body):
    answer = call(stack.port, "POST", "/v1/messages", body, ANTHROPIC)
    assert answer.status == 200, answer.body
    if not body["stream"]:
        return answer.json()["content"], usage(answer)
    got = events(answer)
    counted = next(event for event in got if event["type"] == "message_start")["message"]["usage"]
    text = "".join(event["delta"].get("text", "") for event in got if event["type"] == "content_block_delta")
    return [{"type": "text", "text": text}], counted


class Conversation:
    def __init__(self, stack, seed):
        self.stack, self.seed, self.history = stack, seed, []

    def turn(self, stream=False):
        """(read from the cache, computed) of one more turn."""
        self.history.append({"role": "user", "content": prose(60, self.seed + len(self.history))})
        content, counted = ask_messages(self.stack, messages_body(self.history, seed=self.seed, stream=stream))
        self.history.append({"role": "assistant", "content": content})
        return counted["cache_read_input_tokens"], counted["input_tokens"]


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("flags", [("-np", "2"), ()][:1 if quick_run() else 2], ids=["np2", "default"])
def test_second_turn_of_messages(make_stack, model, flags):
    stack = make_stack(model, backend_flags=(*flags, "-c", "16384"))
    one, two, three = (Conversation(stack, seed) for seed in (100, 200, 300))
    for conversation in (one, two, three):
        conversation.turn()
        stack.cairn.settle()
    # More conversations than slots, so that somebody else has had every slot.
    for conversation, stream in ((one, False), (two, True), (three, False)):
        read, computed = conversation.turn(stream)
        assert read > 400 and computed < 200, (read, computed)
        stack.cairn.settle()
    stack.restart()
    read, computed = one.turn(stream=True)
    assert read > 400 and computed < 250, (read, computed)
    assert_derived(stack)
