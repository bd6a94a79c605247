"""Every endpoint with a prompt is cached: what its second turn reuses after another conversation has had the slot, and after
both processes were restarted; and that Cairn's idea of its prompt is the backend's."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripted_rig import LONG, prompt
from stack import KINDS, Backend, call, clear_beginning, free_port, prose, quick_run

ANTHROPIC = {"anthropic-version": "2023-06-01"}
WORDS = 1200  # of what turns share: worth a restore also on a busy machine


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

def messages_body(history, *, seed, stream=False, words=400):
    return {"model": "m", "max_tokens": 8, "temperature": 0, "stream": stream,
            "system": [{"type": "text", "text": prose(words, seed), "cache_control": {"type": "ephemeral"}}], "messages": history}


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
        content, counted = ask_messages(self.stack, messages_body(self.history, seed=self.seed, stream=stream, words=WORDS))
        self.history.append({"role": "assistant", "content": content})
        return counted["cache_read_input_tokens"], counted["input_tokens"]


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("flags", [("-np", "2"), ()][:1 if quick_run() else 2], ids=lambda flags: "np2" if flags else "default")
def test_second_turn_of_messages(make_stack, model, flags):
    stack = make_stack(model, backend_flags=(*flags, "-c", "16384"))
    one, two, three = (Conversation(stack, seed) for seed in (100, 200, 300))
    for conversation in (one, two, three):
        conversation.turn()
        stack.cairn.settle()
    # More conversations than slots, so that somebody else has had every slot.
    for conversation, stream in ((one, False), (two, True), (three, False)):
        read, computed = conversation.turn(stream)
        assert read > WORDS and computed < 200, (read, computed)
        stack.cairn.settle()
    stack.restart()
    read, computed = one.turn(stream=True)
    assert read > WORDS and computed < 250, (read, computed)
    assert_derived(stack)


# --- /v1/responses ----------------------------------------------------------------------------------------

def ask_responses(stack, body, path="/v1/responses"):
    """(output items, tokens read from the cache, prompt tokens)"""
    answer = call(stack.port, "POST", path, body)
    assert answer.status == 200, answer.body
    response = events(answer)[-1]["response"] if body.get("stream") else answer.json()
    counted = response["usage"]
    return response["output"], counted["input_tokens_details"]["cached_tokens"], counted["input_tokens"]


@pytest.mark.parametrize("model", KINDS[:2] if quick_run() else KINDS)
def test_second_turn_of_responses(make_stack, model):
    stack = make_stack(model, backend_flags=("-np", "2", "-c", "16384"))
    inputs = {seed: [] for seed in (400, 500, 600)}

    def turn(seed, path="/v1/responses", stream=False):
        inputs[seed].append({"role": "user", "content": prose(60, seed + len(inputs[seed]))})
        body = {"model": "m", "max_output_tokens": 8, "temperature": 0, "stream": stream, "instructions": prose(WORDS, seed),
                "input": inputs[seed]}
        output, read, prompt = ask_responses(stack, body, path)
        inputs[seed] += output
        stack.cairn.settle()
        return read, prompt - read

    for seed in inputs:
        turn(seed)
    for seed, path, stream in ((400, "/v1/responses", True), (500, "/responses", False), (600, "/responses", True)):
        read, computed = turn(seed, path, stream)
        assert read > WORDS and computed < 200, (read, computed)
    stack.restart()
    read, computed = turn(400)
    assert read > WORDS and computed < 250, (read, computed)
    assert_derived(stack)


# --- /infill ----------------------------------------------------------------------------------------------

def infill_flags(tokens):
    """The test models know no infilling: tokens of theirs stand in for what code models have."""
    return ("--override-kv", ",".join(f"tokenizer.ggml.fim_{part}_token_id=int:{token}" for part, token in tokens.items()))


@pytest.fixture(scope="module")
def special_tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    backend = Backend("llama", free_port(), None, folder / "backend.log", ("-c", "512"))
    try:
        begin, start, end = backend.tokenize("<|endoftext|><|im_start|><|im_end|>")
    finally:
        backend.kill()
    return {"pre": begin, "suf": start, "mid": end}


@pytest.mark.parametrize("model, named", [("llama", False), ("llama", True), ("granitehybrid", True)])
def test_an_editor_that_types_on(make_stack, special_tokens, model, named):
    tokens = dict(special_tokens)
    if named:
        tokens.update(rep=special_tokens["pre"], sep=special_tokens["mid"])
    stack = make_stack(model, backend_flags=("-np", "2", "-c", "16384", *infill_flags(tokens)))

    def type_on(seed, written, files=True):
        body = {"input_prefix": prose(600, seed) + written, "input_suffix": "\n<|im_end|> ends " + prose(30, seed + 1), "prompt": "  ",
                "n_predict": 4, "temperature": 0}
        if files:
            body["input_extra"] = [{"filename": f"{seed}.txt", "text": prose(900, seed + 2)}, {"text": prose(20, seed + 3)}]
        outcome = stack.ask(body, "/infill")
        stack.cairn.settle()
        return outcome.timings

    for seed in (800, 810, 820):
        type_on(seed, "")
    for seed in (800, 810, 820):
        timings = type_on(seed, " and on")
        assert timings["cache_n"] > 1800 and timings["prompt_n"] < 220, timings
    alone = type_on(830, "", files=False)
    assert alone["cache_n"] + alone["prompt_n"] > 750
    stack.restart()
    timings = type_on(800, " and on it goes")
    assert timings["cache_n"] > 1800 and timings["prompt_n"] < 300, timings
    # What surrounds the gap is cut to a batch.
    assert type_on(840, prose(3000, 5))["prompt_n"] > 0
    assert_derived(stack)


def test_a_model_without_infilling_says_so_itself(make_stack):
    stack = make_stack("llama", backend_flags=("-np", "2", "-c", "4096"))
    body = {"input_prefix": "a", "input_suffix": "b"}
    through, direct = (call(port, "POST", "/infill", body) for port in (stack.port, stack.backend_port))
    assert (through.status, through.body) == (direct.status, direct.body) and through.status == 501


# --- what Cairn derives is what the backend computes ------------------------------------------------------

TOOL = {"type": "object", "properties": {"path": {"type": "string"}, "depth": {"type": "number", "default": 0.5}}, "required": ["path"]}


def rich_messages():
    return {"system": "Be brief.", "tools": [{"name": "list", "description": "lists files", "input_schema": TOOL}, {"name": "stop"}],
            "tool_choice": {"type": "auto"}, "messages": [
                {"role": "user", "content": [{"type": "text", "text": prose(80, 1)}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "where are they?", "signature": "x"}, {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "list", "input": {"path": "/\u00e9\"", "depth": 1.0, "deep": [1e20, None, {}]}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a.txt"}, {"type": "text", "text": "b.txt"}]},
                    {"type": "text", "text": "And now?"}]}]}


def rich_responses():
    return {"instructions": "Be brief.", "reasoning": {"effort": "low"},
            "tools": [{"type": "function", "name": "list", "description": "lists files", "parameters": TOOL}, {"type": "web_search"}], "input": [
                {"role": "developer", "content": "Use tools."}, {"role": "user", "content": [{"type": "input_text", "text": prose(80, 1)}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "where are they?"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                {"type": "function_call", "call_id": "t1", "name": "list", "arguments": '{"path": "/", "depth": 1.0}'},
                {"type": "function_call_output", "call_id": "t1", "output": "a.txt b.txt"}, {"role": "user", "content": "And now?"}]}


@pytest.mark.parametrize("model", ["llama", "llama-think"])
def test_tools_and_thoughts_make_the_same_prompt(make_stack, model):
    stack = make_stack(model, backend_flags=("-np", "2", "-c", "8192"))
    for path, counter, body in (("/v1/messages", "/v1/messages/count_tokens", {**rich_messages(), "max_tokens": 4}),
                                ("/v1/responses", "/v1/responses/input_tokens", {**rich_responses(), "max_output_tokens": 4})):
        counted = call(stack.backend_port, "POST", counter, body).json()["input_tokens"]
        assert call(stack.port, "POST", path, body).status == 200
        stack.cairn.settle()
        latest = next(one for one in stack.cairn.status()["latest_requests"] if one["path"] == path)
        assert latest["prompt_tokens"] == counted
        answer = call(stack.port, "POST", path, body)
        assert answer.status == 200
        read = usage(answer).get("cache_read_input_tokens") or usage(answer)["input_tokens_details"]["cached_tokens"]
        assert read > 0.9 * counted, (path, read, counted)
    assert_derived(stack)


@pytest.mark.parametrize("path, body", [
    ("/v1/messages", {"max_tokens": 2, "messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}, {"type": "text", "text": "what?"}]}]}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]}),
])
def test_images_are_passed_on(make_stack, path, body):
    stack = make_stack("llama", backend_flags=("-np", "2", "-c", "8192"))
    through, direct = (call(port, "POST", path, body) for port in (stack.port, stack.backend_port))
    assert (through.status, through.body) == (direct.status, direct.body)
    assert metric(stack, f'cairn_requests_total{{status="{through.status}",cache="media"}}') == 1


# --- what only a scripted backend does --------------------------------------------------------------------

def text(count, seed):
    return bytes(prompt(count, seed)).decode()


def ask_scripted(rig, *contents, system="", unseen=""):
    """Its usage; the answer must be that of the prompt alone."""
    roles = ("user", "assistant")
    body = {"max_tokens": 1, "messages": [{"role": roles[n % 2], "content": one} for n, one in enumerate(contents)]}
    if system:
        body["system"] = system
    answer = rig.post(body, "/v1/messages")
    assert answer.status == 200, answer.body
    rendered = f"{unseen}{f'<system>{system}</>' if system else ''}"
    rendered += "".join(f"<{roles[n % 2]}>{one}</>" for n, one in enumerate(contents)) + "<assistant>"
    assert answer.json()["content"][0]["text"] == rig.backend.expected(list(rendered.encode()))
    rig.settle()
    return usage(answer)


def metrics(rig):
    return call(rig.cairn_port, "GET", "/cairn/metrics").body.decode()


def test_another_prompt_than_derived_is_passed_on_before_anything_is_computed(rig):
    backend = rig.start(state_version=4, slots=2)
    backend.unseen = "<hidden>"
    ask_scripted(rig, text(LONG, 1), unseen="<hidden>")
    assert not backend.of(lambda call: call.is_piece)
    assert 'cairn_requests_total{status="200",cache="other_prompt_than_derived"} 1' in metrics(rig)
    # It is asked each time until it has been right often; then the cache is used.
    backend.unseen = ""
    ask_scripted(rig, text(LONG, 2))
    assert ask_scripted(rig, text(LONG, 2), "well", "more")["cache_read_input_tokens"] >= LONG


def test_another_prompt_than_derived_shows_in_the_answer_where_nobody_counts(rig):
    backend = rig.start(state_version=4, slots=2)
    backend.counts_tokens = False
    backend.unseen = "<hidden>"
    ask_scripted(rig, text(LONG, 1), unseen="<hidden>")
    assert 'cairn_misses_total{reason="other_prompt_than_derived"} 1' in metrics(rig)
    ask_scripted(rig, text(LONG, 1), "well", "more", unseen="<hidden>")


def test_requests_passed_by_are_on_the_status_page_with_why(rig):
    rig.start(state_version=4)
    rig.ask(prompt(LONG, 1), cache_prompt=False)
    latest = rig.latest()
    assert (latest["cache"], latest["plan"], latest["miss"]) == ("client_refused", "passed_by", "passed_by")
    rig.ask(prompt(LONG, 1))
    assert rig.latest()["cache"] == "used"


@pytest.mark.parametrize("state_version", [2, 4])
def test_a_state_is_put_where_the_backend_looks_for_it(rig, state_version):
    """Two conversations behind one system prompt, and more conversations than slots."""
    rig.start(state_version=state_version, slots=2)
    system = text(LONG, 1)
    first, second = text(300, 2), text(300, 3)
    ask_scripted(rig, first, system=system)
    ask_scripted(rig, second, system=system)
    for seed in (4, 5):
        ask_scripted(rig, text(LONG, seed))
    assert ask_scripted(rig, first, "well", "more", system=system)["cache_read_input_tokens"] >= LONG + 300
    assert ask_scripted(rig, second, "well", "more", system=system)["cache_read_input_tokens"] >= LONG + 300


def test_a_small_part_of_a_prompt_is_found_by_the_backend(make_stack):
    """Less than a tenth of it, for which the backend itself would take the slot used longest ago: the one that is worth the most."""
    stack = make_stack("llama", backend_flags=("-np", "2", "-c", "32768", "--cache-ram", "0"))

    def computed(content, seed):
        outcome = stack.ask(messages_body([{"role": "user", "content": content}], seed=seed, words=450), "/v1/messages")
        stack.cairn.settle()
        return outcome.computed, sum(usage(outcome.answer)[key] for key in ("cache_read_input_tokens", "input_tokens"))

    computed("hello", 1)
    computed(prose(3000, 2), 2)
    computed("hello", 3)
    now, whole = computed(prose(6000, 4), 1)
    assert whole > 9000
    assert now < whole - 600, f"{now} of {whole} tokens were computed, although the system prompt was known"


def test_many_conversations_at_once(make_stack, make_backend):
    """More than there are slots, each answer right whichever slot the backend chose."""
    stack = make_stack("llama", backend_flags=("-np", "3", "-c", "12288"))
    cold = {}
    alone = make_backend("llama", ("-np", "1"))
    for seed in range(700, 800):
        body = messages_body([{"role": "user", "content": prose(60, seed)}], seed=1 + seed % 2)
        chat = {**body, "messages": [{"role": "system", "content": body["system"]}, *body["messages"]]}
        _, whole = clear_beginning(alone.port, chat)
        if whole:
            cold[seed] = ask_messages(stack, body)[0]
        if len(cold) == 5:
            break
    assert len(cold) == 5
    conversations = {seed: [{"role": "user", "content": prose(60, seed)}] for seed in cold}

    def one(seed):
        answers = []
        for _ in range(3):
            content, counted = ask_messages(stack, messages_body(conversations[seed], seed=1 + seed % 2))
            answers.append((content, counted["cache_read_input_tokens"]))
        return answers

    with ThreadPoolExecutor(len(conversations)) as pool:
        for seed, answers in zip(conversations, pool.map(one, conversations), strict=True):
            assert [content for content, _ in answers] == [cold[seed]] * len(answers)
            assert all(read > 0 for _, read in answers), answers
    stack.cairn.settle()
    assert_derived(stack)
