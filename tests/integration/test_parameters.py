"""What a request may ask for besides its prompt: each answer is the backend's own, and what is asked of the cache or of a slot is done."""

import base64
import json
import random

import pytest

from stack import call, prose, quick_run, tokens, wait_until
from test_passthrough import CHAT, COMPLETION, LOOK, both, normal, pair, without_logprobs  # noqa: F401

GRAMMAR = 'root ::= "yes" | "no"'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = [{"type": "function", "function": LOOK}]
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
TURNS = [{"role": "user", "content": prose(60, 1)}, {"role": "assistant", "content": "I begin"}]

CHATS = [
    {"n": 2}, {"n": 2, "stream": True}, {"n": 0}, {"n": "2"}, {"n_cmpl": 2}, {"grammar": GRAMMAR}, {"grammar": "root ::= ("},
    {"json_schema": SCHEMA}, {"response_format": {"type": "json_object"}}, {"response_format": {"type": "nothing"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "stream": True},
    {"tools": TOOL, "tool_choice": "required"}, {"tools": TOOL, "tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"tools": TOOL, "parallel_tool_calls": True, "stream": True}, {"tools": []}, {"tools": TOOL, "grammar": GRAMMAR},
    {"logprobs": True}, {"logprobs": True, "top_logprobs": 5, "stream": True}, {"top_logprobs": 5}, {"logit_bias": {"300": -100}},
    {"logit_bias": [[300, False]]}, {"stop": "e"}, {"stop": ["a", "b"], "stream": True}, {"ignore_eos": True}, {"max_tokens": 0},
    {"max_tokens": 1, "max_completion_tokens": 3}, {"timings_per_token": True, "stream": True}, {"stream_options": {"include_usage": False}},
    {"reasoning_format": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template": "{{ 1 }}"},
    {"add_generation_prompt": False}, {"messages": TURNS}, {"messages": TURNS, "add_generation_prompt": True},
    {"messages": TURNS, "continue_final_message": True, "add_generation_prompt": False}, {"messages": [*TURNS, TURNS[1]]},
    {"lora": []}, {"lora": [{"id": 0, "scale": 0.5}]}, {"lora": 5}, {"id_slot": 0}, {"id_slot": -1}, {"id_slot": 7}, {"id_slot": "0"},
    {"id_slot": 1.5}, {"cache_prompt": "no"}, {"n_keep": 5}, {"dynatemp_range": 0.1}, {"samplers": ["top_k"]}, {"samplers": "k"}, {"seed": -1},
    {"return_tokens": True}, {"response_fields": ["choices"]}, {"post_sampling_probs": True, "n_probs": 2}, {"functions": [LOOK]},
    {"audio": {}}, {"modalities": ["text", "audio"]}, {"model": "another"}, {"model": 5}, {"user": "x" * 1000}, {"metadata": {"\u00e9": None}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": prose(60, 2)}, {"type": "text", "text": "and more"}]}]},
    {"messages": [{"role": "user", "content": None}]}, {"messages": [{"role": "nobody", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "\u0000\ufffd\U0001f5ff <|im_end|> <|endoftext|>"}]},
    {"messages": [{"role": "tool", "tool_call_id": "x", "content": "alone"}]}, {"return_progress": True, "stream": True},
]
RESPONSES = {"input": prose(40, 3), "instructions": "Be brief.", "max_output_tokens": 4, "temperature": 0}
COMPLETIONS = [
    {"n": 2}, {"n_cmpl": 2}, {"echo": True}, {"echo": True, "stream": True}, {"suffix": "end"}, {"best_of": 2}, {"grammar": GRAMMAR},
    {"json_schema": SCHEMA}, {"logprobs": 2}, {"logprobs": True}, {"n_probs": 2, "stream": True}, {"prompt": ["one", "two", "three"]},
    {"prompt": ["one", "two"], "stream": True}, {"prompt": ["alone " * 50]}, {"prompt": [tokens(60, 1)]}, {"prompt": [tokens(60, 1), tokens(60, 2)]},
    {"prompt": [[400, "and", 401], "two"]}, {"prompt": [400]}, {"prompt": []}, {"prompt": ""}, {"prompt": None}, {"prompt": [400.0, 401]},
    {"prompt": [400, -1]}, {"prompt": [400, 10**12]}, {"prompt": [True]}, {"prompt": [[[400]]]}, {"prompt": {"prompt_string": "a way back " * 30}},
    {"prompt": {"prompt_string": "see <__media__>", "multimodal_data": ["AAAA"]}}, {"prompt": [{"prompt_string": "a"}, "b"]},
    {"prompt": "\u0000\ufffd\U0001f5ff <|im_end|> <|endoftext|>"}, {"n_predict": 0, "max_tokens": 0}, {"cache_prompt": False}, {"id_slot": 1},
    {"id_slot": -1}, {"id_slot": 3}, {"lora": []}, {"lora": [{"id": 0, "scale": 1}]}, {"stop": ["e"], "stream": True}, {"n_indent": 2},
    {"t_max_predict_ms": 10000}, {"return_progress": True, "stream": True}, {"timings_per_token": True, "stream": True}, {"add_special": False},
    {"image_data": [{"data": "AAAA", "id": 1}]}, {"model": "another"}, {"input_prefix": "a", "input_suffix": "b"},
]


@pytest.mark.parametrize("extra", CHATS, ids=lambda extra: json.dumps(extra)[:60])
def test_chat(pair, extra):
    both(pair, "POST", "/v1/chat/completions", {**CHAT, **extra}, prepare=without_logprobs)


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
@pytest.mark.parametrize("extra", COMPLETIONS, ids=lambda extra: json.dumps(extra)[:60])
def test_completion(pair, path, extra):
    both(pair, "POST", path, {**COMPLETION, **extra}, prepare=without_logprobs)


def test_no_cache_is_no_cache(pair):
    """`cache_prompt` false: nothing is reused, not even what Cairn has saved, and nothing is computed ahead."""
    body = {**COMPLETION, "prompt": prose(400, 5)}
    ports = [process.port for process in pair]
    assert call(ports[1], "POST", "/completion", body).status == 200
    answer = call(ports[1], "POST", "/completion", {**body, "cache_prompt": False}).json()
    assert answer["timings"]["cache_n"] == 0 and answer["timings"]["prompt_n"] > 400


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path, body", [("/completion", COMPLETION), ("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSES)],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_found_where_it_is(pair, path, body):
    """The backend names line, column and what it read last; a slot put in front moved them."""
    text = json.dumps({**body, "prompt": body.get("prompt", "")[:60], "metadata": {"list": [1, -2.5e3, "\u00e9", None]}}).encode()
    text = text.replace(b" ", b" \n", 3)
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    source = random.Random(seed)
    mistakes = [text.replace(b"null", b"NaN"), text.replace(b"null", b"\"\\x\""), text.replace(b"null", b"\"\\udc00\""), text + b"}",
                text + b" {}", text[:-1], text[:-1] + b",}", text.replace(b"[1", b"[01"), text.replace(b"[1", b"[1e999"), text[:-1] + b"]",
                text.replace(b"null", b"\"\xff\""), text.replace(b"null", b"\"\t\""), text.replace(b"[1,", b"[1"), b"\xef\xbb\xbf" + text]
    # What stands last is where Cairn adds.
    mistakes += [text[:-1] + b',"last": ' + value + b"}" for value in (b"1.", b"-", b"tru", b"nul", b"1e", b"01", b"1 2", b"1,", b"", b'"\\x"')]
    for _ in range(20 if quick_run() else 60):
        at = source.randrange(len(text))
        mistakes.append(text[:at] + bytes([source.choice(b'{}[]",:\\0e.-x \x00\xff')]) + text[at + source.randrange(2):])
        if is_json(mistakes[-1]):
            mistakes.pop()  # another request, which may ask for a long answer
    for mistake in mistakes:
        direct, through = (call(process.port, "POST", path, mistake) for process in pair)
        assert through.status == direct.status, (mistake, direct.body, through.body)
        assert direct.status == 200 or through.body == direct.body, mistake


@pytest.mark.parametrize("slot", [0, 1])
def test_the_clients_slot_is_taken(pair, slot):
    for path, body in (("/completion", COMPLETION), ("/v1/chat/completions", {**CHAT, "verbose": True})):
        for _ in range(2):
            answer = call(pair[1].port, "POST", path, {**body, "id_slot": slot}).json()
            assert answer.get("__verbose", answer)["id_slot"] == slot, answer


def test_any_slot_spelled_out_is_no_refusal(pair):
    """`id_slot` -1 is the backend's default: clients that send all defaults were passed by."""
    direct, through = pair

    def requests():
        return {request["id"]: request for request in through.status()["latest_requests"]}

    for path, body in (("/completion", COMPLETION), ("/v1/chat/completions", {**CHAT, "verbose": True})):
        before = requests()
        assert call(through.port, "POST", path, {**body, "id_slot": -1}).status == 200
        new = wait_until(lambda known=before: [one for at, one in requests().items() if at not in known], "Cairn is done with it")
        assert new[0]["plan"] != "passed_by", new
        # The slot that Cairn adds counts, for it stands behind.
        for slot in (0, 1):
            both = json.dumps({**body, "id_slot": -1})[:-1] + f', "id_slot": {slot}}}'
            answer = call(direct.port, "POST", path, both.encode()).json()
            assert answer.get("__verbose", answer)["id_slot"] == slot, answer


@pytest.mark.parametrize("name", ["/v1/chat/completions?a=b", "/chat/completions?", "/v1//chat/completions", "/v1/chat/completions/",
                                  "/v1/chat/completion%73", "/V1/chat/completions", "//v1/chat/completions", "/v1/./chat/completions",
                                  "/v1/chat/completions#x", "/v1/chat/completions;x", "/completion?id_slot=1", "/%63ompletion", "/completion%00"])
def test_names_that_are_nearly_right(pair, name):
    both(pair, "POST", name, {**CHAT, **COMPLETION}, prepare=without_logprobs)


def test_slots_that_clients_meddle_with(pair):
    """A client that saves, erases and restores slots itself gets its answers; what Cairn believes meanwhile costs no more than time."""
    body = {**COMPLETION, "prompt": prose(300, 6)}
    expected = call(pair[0].port, "POST", "/completion", {**body, "cache_prompt": False}).json()["content"]
    for action, name in (("save", "mine.bin"), ("erase", None), ("restore", "mine.bin"), ("erase", None)):
        assert call(pair[1].port, "POST", "/completion", body).json()["content"] == expected
        for slot in (0, 1):
            answer = call(pair[1].port, "POST", f"/slots/{slot}?action={action}", {"filename": name} if name else {})
            assert answer.status == 200, answer.body
        assert call(pair[1].port, "POST", "/completion", body).json()["content"] == expected
        pair[1].settle()
