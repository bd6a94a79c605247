"""Requests with LoRA adapters of their own: another model's state, which must never be gone on from by others.

llama-server itself (build 11669) goes on from such tokens where a request names no adapters.
"""

import random
import struct

import pytest

from stack import call, first_logprobs, logprob_distance, tokens

SAME = 0.05       # the same tokens in other batches
LIKELIEST = 10


def write_adapter(path, seed, layers=8, width=256, heads_width=128, rank=4):
    """A random adapter for the queries of the llama test model, as GGUF."""
    source = random.Random(seed)

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    string_type, float_type, tensor_float = 8, 6, 0
    fields = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    head = b"".join(text(key) + struct.pack("<I", string_type) + text(value) for key, value in fields.items())
    head += text("adapter.lora.alpha") + struct.pack("<If", float_type, rank)
    infos, data = b"", b""
    for layer in range(layers):
        for part, shape in (("lora_a", (width, rank)), ("lora_b", (rank, heads_width))):
            infos += text(f"blk.{layer}.attn_q.weight.{part}") + struct.pack("<I2QIQ", 2, *shape, tensor_float, len(data))
            count = shape[0] * shape[1]
            data += struct.pack(f"<{count}f", *(source.gauss(0, 0.3) for _ in range(count)))
    whole = b"GGUF" + struct.pack("<IQQ", 3, 2 * layers, len(fields) + 1) + head + infos
    path.write_bytes(whole + bytes(-len(whole) % 32) + data)
    return path


def adapters(scale):
    return {"lora": [{"id": 0, "scale": scale}]}


class Asker:
    """Asks a backend of its own for the answer of a cold run, and the stack with Cairn for the same."""

    def __init__(self, make_stack, make_backend, folder, flags):
        flags = (*flags, "-c", "16384", "--lora", write_adapter(folder / "adapter.gguf", seed=1))
        self.cold = make_backend("llama", flags)
        self.stack = make_stack("llama", backend_flags=flags)

    def body(self, prompt, more):
        return {"prompt": prompt, "n_predict": 2, "temperature": 0, "n_probs": 20, **more}

    def right(self, prompt, more):
        return first_logprobs(call(self.cold.port, "POST", "/completion", {**self.body(prompt, more), "cache_prompt": False}))

    def ask(self, prompt, more):
        """How many tokens were reused, and how far the answer is from that of a cold run."""
        outcome = self.stack.ask(self.body(prompt, more))
        self.stack.cairn.settle()
        return outcome.timings["cache_n"], logprob_distance(first_logprobs(outcome.answer), self.right(prompt, more), LIKELIEST)

    def reused(self, prompt, more):
        count, distance = self.ask(prompt, more)
        assert distance < SAME, f"{more}: off by {distance:.3f}, {count} tokens reused"
        return count


def test_a_slot_of_other_adapters_is_emptied_first(make_stack, make_backend, tmp_path):
    asker = Asker(make_stack, make_backend, tmp_path, ("-np", "1"))
    whole = tokens(500, seed=5)
    for more in (adapters(0.25), {}, adapters(0.5), {}, adapters(0.25)):
        asker.reused(whole, more)
    assert asker.reused(whole, adapters(0.25)) >= 499 - 1


def test_other_adapters_are_another_model(make_stack, make_backend, tmp_path):
    asker = Asker(make_stack, make_backend, tmp_path, ("-np", "2"))
    whole = tokens(2100, seed=5)  # worth a restore also on a busy machine
    assert logprob_distance(asker.right(whole, {}), asker.right(whole, adapters(0.25)), LIKELIEST) > 4 * SAME, "the adapter must show"
    asker.reused(whole[:2000], adapters(0.25))
    asker.reused(whole[:2040], {})
    # Each goes on where it was, in a slot of its own.
    assert asker.reused(whole[:2060], adapters(0.25)) >= 1990
    assert asker.reused(whole[:2080], {}) >= 2030
    # A third and a fourth model take their slots.
    asker.reused(whole[:2050], adapters(0.5))
    asker.reused(whole[:2050], adapters(1))
    asker.reused(whole[:2090], {})
    asker.stack.restart()
    assert asker.reused(whole, {}) >= 2000


def test_what_the_backends_own_cache_mixes_up_does_not_reach_others(make_stack, make_backend, tmp_path):
    """On default flags the server keeps what other adapters computed, and brings it back to a request that names none."""
    asker = Asker(make_stack, make_backend, tmp_path, ())
    whole = tokens(2100, seed=5)
    asker.ask(whole[:2000], adapters(0.25))
    asker.reused(whole[:2040], {})
    assert asker.reused(whole[:2060], {}) >= 2000
    asker.stack.restart()
    assert asker.reused(whole, {}) >= 2000
