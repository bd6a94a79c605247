"""Images and audio, in front of a llama-server that has a projector for them: passed on, never cached and never wrong.

Build 11669 saves and restores slots with a projector too, and tells images apart in what it reuses. Others refuse all saving then
(test_scripted.py).
"""

import base64
import json
import math
import re
import struct
import threading
import zlib

import pytest

from stack import Stack, call, clear_beginning, free_port, model_path, prose, quick_run
from test_passthrough import fields, normal

FLAGS = {"two slots": ("-np", "2"), "default": ()}  # with its default flags the backend clears idle slots
SIDE = 32  # of an image, in pixels: one piece for the test projector


def png(colour):
    """`colour`: (red, green, blue) of a place."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes(colour(x, y)) for x in range(SIDE)) for y in range(SIDE))
    header = struct.pack(">2I5B", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wav(hertz):
    samples = [round(12000 * math.sin(2 * math.pi * hertz * at / 16000)) for at in range(16000)]
    data = struct.pack("<16000h", *samples)
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(header) + len(data)) + header + data


RED = png(lambda x, y: (200, 8 * x, 0))
BLUE = png(lambda x, y: (0, 8 * y, 220))
LOW, HIGH = wav(300), wav(2000)
SETTINGS = {"temperature": 0, "seed": 1, "max_tokens": 12}


def base(data):
    return base64.b64encode(data).decode()


def url(image):
    return "data:image/png;base64," + base(image)


def image_part(image):
    return {"type": "image_url", "image_url": {"url": url(image)}}


def chat(*parts, **more):
    """Strings are text."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {**SETTINGS, "messages": [{"role": "user", "content": content}], **more}


def audio_chat(sound, text, marker):
    return chat(text, {"type": "input_audio", "input_audio": {"data": base(sound), "format": "wav"}})


def image_chat(image, text, marker):
    return chat(text, image_part(image), "and now?")


def message(image, text, marker):
    source = {"type": "base64", "media_type": "image/png", "data": base(image)}
    return {**SETTINGS, "messages": [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image", "source": source}]}]}


def response(image, text, marker):
    parts = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url(image)}]
    return {"temperature": 0, "max_output_tokens": 12, "input": [{"role": "user", "content": parts}]}


def completion(image, text, marker):
    return {"prompt": {"prompt_string": f"{text} {marker} and now?", "multimodal_data": [base(image)]}, "n_predict": 12,
            "temperature": 0, "seed": 1, "response_fields": ["content", "tokens_evaluated"]}


FORMS = {"chat": ("/v1/chat/completions", image_chat), "messages": ("/v1/messages", message), "audio": ("/v1/chat/completions", audio_chat),
         "responses": ("/v1/responses", response), "completion": ("/completion", completion)}
MEDIA = {form: (LOW, HIGH) if form == "audio" else (RED, BLUE) for form in FORMS}


class Pair:
    """A backend alone, and a like one with Cairn in front of it."""

    def __init__(self, folder, flags):
        flags = ("--mmproj", model_path("mmproj"), "-c", "8192", *flags)
        self.direct = Stack(folder / "direct", "llama", flags, with_cairn=False)
        try:
            self.through = Stack(folder / "through", "llama", flags)
        except BaseException:
            self.direct.kill()
            raise

    def both(self, path, make):
        """`make`: the body, from the marker that stands for media in a text, which is another in each process."""
        answers = []
        for stack in (self.direct, self.through):
            marker = call(stack.backend_port, "GET", "/props").json()["media_marker"]
            answers.append(call(stack.port, "POST", path, make(marker)))
        return answers

    def counted(self, name):
        """The sum of a metric of Cairn's, by the start of its lines."""
        lines = call(self.through.port, "GET", "/cairn/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def media_passed(self):
        return self.counted('cairn_requests_total{status="200",cache="media"}')

    def slots(self):
        return range(len(self.through.cairn.status()["slots"]))


@pytest.fixture(scope="module", params=["default"] if quick_run() else FLAGS)
def pair(request, tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("media"), FLAGS[request.param])
    yield pair
    try:
        pair.through.close()
    finally:
        pair.direct.close()


def bare(body):
    """Without what differs between two answers: identities, times, and how much of the prompt was reused."""
    body = re.sub(rb'"(item_id|response_id)":\s*"[^"]*"', rb'"\1":0', normal(body))
    body = re.sub(rb'"(input_tokens_details)":\s*\{[^{}]*\}', rb'"\1":{}', body)
    return re.sub(rb'"(created_at|completed_at|cache_read_input_tokens|input_tokens)":\s*[0-9]+', rb'"\1":0', body)


def same(pair, path, make, status=200):
    direct, through = pair.both(path, make)
    assert direct.status == status, direct.body[:500]
    assert through.status == direct.status, through.body[:500]
    assert fields(through) == fields(direct)
    assert bare(through.body) == bare(direct.body)
    return bare(through.body)


def content(answer):
    assert answer.status == 200, answer.body[:500]
    return answer.json()["choices"][0]["message"]["content"]


def cold(pair, body):
    """The clear beginning of what the backend answers that reuses nothing."""
    return clear_beginning(pair.direct.port, {**body, "cache_prompt": False})[0]


def has_media(path):
    """Of a saved state of version 4: the words after the tokens describe media, or are one 0."""
    data = path.read_bytes()
    _, version, words = struct.unpack_from("<3I", data)
    _, packing, count = struct.unpack_from("<3i", data, 12)
    assert (version, packing) == (4, 1), path
    rest = data[12 + 4 * (3 + count):12 + 4 * words]
    return rest != bytes(4)


def saved_files(pair):
    return sorted(path for path in pair.through.slot_dir.iterdir() if path.name != "cairn.lock")


# --- answers ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_each_image_gets_its_own_answer(pair, form, stream):
    path, make = FORMS[form]
    one, other = MEDIA[form]
    before = pair.media_passed()
    answers = [same(pair, path, lambda marker: {**make(which, "what is this?", marker), "stream": stream})
               for which in (one, other, other, one)]
    assert answers[0] != answers[1], "the images make no difference: this test shows nothing"
    assert answers[0] == answers[3] and answers[1] == answers[2]
    assert pair.media_passed() == before + 4


@pytest.mark.parametrize("words", [5, 400])
def test_images_and_text_one_after_the_other_in_one_slot(pair, words):
    for seed in range(100, 120):  # another text than those of other tests begin with
        text = prose(words, seed)
        bodies = {"red": chat(text, image_part(RED)), "blue": chat(text, image_part(BLUE)), "text": chat(text),
                  "both": chat(text, image_part(RED), image_part(BLUE))}
        expected = {name: cold(pair, body) for name, body in bodies.items()}
        if len(set(expected.values())) == len(bodies) and all(expected.values()):
            break
    else:
        raise AssertionError("no text to which each has an answer of its own")
    for name in ("red", "blue", "text", "blue", "red", "both", "text", "red", "text", "both", "blue"):
        answer = call(pair.through.port, "POST", "/v1/chat/completions", {**bodies[name], "id_slot": 0})
        assert content(answer).startswith(expected[name]), name


def test_images_and_text_at_the_same_time(pair):
    bodies, expected = [], []
    for lead in (prose(60, seed) for seed in range(1000, 1100)):
        alike = [chat(lead, *parts, max_tokens=4) for parts in ((image_part(RED),), (image_part(BLUE),), ())]
        beginnings = [clear_beginning(pair.direct.port, {**body, "cache_prompt": False}) for body in alike]
        if not all(whole for _, whole in beginnings):
            continue
        answers = [text for text, _ in beginnings]
        if len({*expected, *answers}) == len(expected) + len(answers):
            bodies += alike
            expected += answers
        if len(bodies) == 6:
            break
    assert len(bodies) == 6
    got = [[] for _ in bodies]
    start = threading.Barrier(len(bodies))

    def ask(index):
        start.wait(60)
        for _ in range(2):
            got[index].append(call(pair.through.port, "POST", "/v1/chat/completions", bodies[index]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, answers in zip(expected, got, strict=True):
        assert len(answers) == 2 and all(content(answer).startswith(text) for answer in answers), text


@pytest.mark.parametrize("spelled", ["input_video", "escaped"])
def test_media_that_were_taken_for_text(pair, spelled):
    """Their prompt was reckoned from the text of the marker: slots were believed to hold it, and all of it was tried again later."""
    def body(image):
        if spelled == "escaped":
            return json.dumps(chat(prose(300, 4), image_part(image))).replace("image_url", "image\\u005furl").encode()
        # The backend looks what it is.
        return json.dumps(chat(prose(300, 4), {"type": "input_video", "input_video": {"data": base(image)}})).encode()

    before = pair.media_passed(), pair.counted("cairn_prompt_tokens_total")
    answers = [same(pair, "/v1/chat/completions", lambda marker: body(image)) for image in (RED, BLUE, RED)]
    assert answers[0] != answers[1] and answers[0] == answers[2]
    assert (pair.media_passed(), pair.counted("cairn_prompt_tokens_total")) == (before[0] + 3, before[1])


# --- reuse ------------------------------------------------------------------------------------------------

def test_text_keeps_its_reuse_beside_images(pair):
    stack = pair.through
    # Long enough that no noise of the machine makes computing it anew the cheaper way.
    body = chat(prose(1600, 5))
    longer = chat(prose(1600, 5) + " " + prose(30, 6))
    expected = {"body": cold(pair, body), "longer": cold(pair, longer)}
    assert all(expected.values())
    first = stack.ask(body, "/v1/chat/completions")
    assert first.computed > 1500 and content(first.answer).startswith(expected["body"])
    for restarted in (False, True):
        if restarted:
            stack.restart(first="backend")
        stack.cairn.settle()
        for slot in pair.slots():  # no slot holds it any more
            stack.ask(chat(prose(50, 7), image_part(RED), id_slot=slot), "/v1/chat/completions")
        for name, again in (("body", body), ("longer", longer)):
            outcome = stack.ask(again, "/v1/chat/completions")
            assert content(outcome.answer).startswith(expected[name])
            assert outcome.computed < 150, (restarted, name)


def test_a_conversation_with_an_image_in_it_costs_what_it_costs_directly(pair):
    """The turns before the image are reused by it, and what is in the slot is not taken from those behind it."""
    first = {"role": "user", "content": prose(400, 8)}
    costs = []
    for stack in (pair.direct, pair.through):
        messages, computed, said = [first], [], []
        for content_of_next in ([{"type": "text", "text": "see:"}, image_part(BLUE)], "and what else?", None):
            outcome = stack.ask({**SETTINGS, "messages": messages}, "/v1/chat/completions")
            computed.append(outcome.computed)
            said.append(content(outcome.answer))
            messages = [*messages, {"role": "assistant", "content": said[-1]}, {"role": "user", "content": content_of_next}]
        costs.append((said, computed))
    (direct, alone), (through, ours) = costs
    assert through == direct
    assert ours[0] > 500 and sum(ours) <= sum(alone) + 60, (alone, ours)


# --- nothing of it is kept --------------------------------------------------------------------------------

def test_nothing_of_an_image_is_saved_or_counted(pair):
    stack = pair.through
    stack.cairn.settle()
    names = ("cairn_reused_tokens_total", "cairn_computed_tokens_total", "cairn_prompt_tokens_total", "cairn_store_commits",
             "cairn_store_checkpoints", "cairn_tree_tokens")
    files, counted, passed = saved_files(pair), {name: pair.counted(name) for name in names}, pair.media_passed()
    lead = prose(400, 9)
    for slot in pair.slots():
        for image in (RED, BLUE):
            stack.ask(chat(lead, image_part(image), prose(200, 10), id_slot=slot), "/v1/chat/completions")
    stack.ask(message(RED, lead, None), "/v1/messages")
    stack.cairn.settle()
    assert pair.media_passed() == passed + 2 * len(pair.slots()) + 1
    assert {name: pair.counted(name) for name in names} == counted
    assert saved_files(pair) == files

    # A text that begins like them comes into their slots, and is saved alone.
    for slot in pair.slots():
        outcome = stack.ask(chat(lead, f"slot {slot}: " + prose(200, 11), id_slot=slot), "/v1/chat/completions")
        expected = cold(pair, chat(lead, f"slot {slot}: " + prose(200, 11)))
        assert expected and content(outcome.answer).startswith(expected)
    stack.cairn.settle()
    assert len(saved_files(pair)) > len(files)
    assert not any(has_media(path) for path in saved_files(pair))

    # What an image would look like there.
    assert call(stack.port, "POST", "/v1/chat/completions", chat(lead, image_part(RED), id_slot=0)).status == 200
    assert call(stack.backend_port, "POST", "/slots/0?action=save", {"filename": "image"}).status == 200
    path = stack.slot_dir / "image"
    assert has_media(path)
    path.unlink()


# --- errors -----------------------------------------------------------------------------------------------

def broken(source):
    return chat("what is this?", {"type": "image_url", "image_url": {"url": source}})


REFUSED = {
    "no base64": broken("data:image/png;base64,@@@@"), "no image": broken("data:image/png;base64,AAAA"),
    "cut": broken(url(RED[:60])), "damaged": broken(url(RED[:50] + b"x" + RED[51:])), "empty": broken("data:image/png;base64,"),
    "no data": broken("data:"), "file": broken("file:///etc/hostname"), "nobody answers": broken(f"http://127.0.0.1:{free_port()}/a.png"),
    "no address": broken("nonsense"), "a number": broken(5), "no url": chat({"type": "image_url"}),
    "audio": chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    "audio format": chat({"type": "input_audio", "input_audio": {"data": base(LOW), "format": "ogg?"}}),
    "unknown part": chat({"type": "image_of_something", "image_url": {"url": url(RED)}}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("what", REFUSED)
def test_errors_are_the_backends(pair, what, stream):
    direct, through = pair.both("/v1/chat/completions", lambda marker: {**REFUSED[what], "stream": stream})
    assert direct.status >= 400 or what in ("damaged", "audio format"), "the backend has come to like it"
    assert (through.status, fields(through), bare(through.body)) == (direct.status, fields(direct), bare(direct.body))


@pytest.mark.parametrize("make", [
    lambda marker: {"prompt": {"prompt_string": "see", "multimodal_data": [base(RED)]}},
    lambda marker: {"prompt": {"prompt_string": f"see {marker} and {marker}", "multimodal_data": [base(RED)]}},
    lambda marker: {"prompt": {"prompt_string": f"see {marker}", "multimodal_data": ["@@@@"]}},
    lambda marker: {"prompt": {"prompt_string": f"see {marker}", "multimodal_data": 5}},
], ids=["too many", "too few", "no base64", "a number"])
def test_errors_of_completions_are_the_backends(pair, make):
    direct, through = pair.both("/completion", lambda marker: {"n_predict": 4, "temperature": 0, **make(marker)})
    assert direct.status >= 400
    assert (through.status, fields(through), bare(through.body)) == (direct.status, fields(direct), bare(direct.body))


@pytest.mark.parametrize("path, make", [FORMS["messages"], FORMS["responses"]], ids=["messages", "responses"])
def test_errors_of_other_forms_are_the_backends(pair, path, make):
    direct, through = pair.both(path, lambda marker: make(b"no image", "what is this?", marker))
    assert direct.status >= 400
    assert (through.status, fields(through), bare(through.body)) == (direct.status, fields(direct), bare(direct.body))


def test_a_text_with_the_marker_in_it_gets_the_backends_answer(pair):
    """It stands for media where there are none."""
    direct, through = pair.both("/v1/chat/completions", lambda marker: chat(f"what is {marker}? " + prose(100, 12)))
    assert (through.status, bare(through.body)) == (direct.status, bare(direct.body))
    same(pair, "/v1/chat/completions", lambda marker: chat("and now? " + prose(100, 12)))
