"""The answer through Cairn is the cold one, after any order of new prompts, extensions, rewinds, restores and restarts.

CAIRN_TEST_SEED repeats a walk; CAIRN_FULL makes it longer, CAIRN_QUICK shorter.
"""

import os
import random

import pytest

from stack import call, first_logprobs, full_run, logprob_distance, quick_run, tokens

STEPS = 60 if full_run() else 10 if quick_run() else 22
LONGEST = 2600


class Walk:
    def __init__(self, stack, cold, source):
        self.stack = stack
        self.cold = cold
        self.source = source
        self.seen = []
        self.worst = 0.0
        self.asked = 0
        self.computed = 0

    def fresh(self, least, most):
        return tokens(self.source.randrange(least, most), self.source.random())

    def prompt(self):
        """The next prompt and how it was made."""
        kinds = ["new"] if not self.seen else ["new", "extend", "extend", "rewind", "rewind", "again", "shorter", "recent"]
        kind = self.source.choice(kinds)
        if kind == "new":
            return kind, self.fresh(80, LONGEST)
        old = self.seen[-1] if kind == "recent" else self.source.choice(self.seen)
        if kind in ("extend", "recent"):
            return kind, (old + self.fresh(1, 700))[:LONGEST + 700]
        if kind == "again":
            return kind, list(old)
        # Mostly near the end, where context checkpoints lie, sometimes anywhere. A prompt may be a single token.
        back = self.source.choice([1, 3, 5, 40, 300, 600, self.source.randrange(1, max(2, len(old)))])
        kept = max(1, len(old) - back)
        if kind == "shorter":
            return kind, old[:kept]
        return kind, old[:kept] + self.fresh(1, 500)

    def step(self, number):
        disturbance = self.source.random()
        what = ""
        if disturbance < 0.12:
            first = self.source.choice(["cairn", "backend"])
            what = f"restart of both, {first} first; "
            self.stack.restart(first)
        elif disturbance < 0.20:
            what = "restart of Cairn; "
            self.stack.restart_cairn()
        elif disturbance < 0.28:
            what = "restart of the backend; "
            self.stack.restart_backend()
        kind, prompt = self.prompt()
        n_predict = self.source.choice([1, 1, 8])
        through = self.stack.complete(prompt, n_predict=n_predict, n_probs=20)
        timings = through.timings
        assert timings["cache_n"] + timings["prompt_n"] == len(prompt)
        ours, alone = first_logprobs(through.answer), self.cold(prompt)
        first, ten = logprob_distance(ours, alone, 1), logprob_distance(ours, alone, 10)
        self.worst = max(self.worst, first)
        self.asked += len(prompt)
        self.computed += through.computed
        line = (f"step {number}: {what}{kind}, {len(prompt)} tokens, {through.computed} computed, "
                f"answer off by {first:.4f}, top ten by {ten:.4f}")
        print(line)
        # Another prompt's state shows as 1 or more (tests/backend/make_model.py).
        assert first <= 0.05 and ten <= 0.2, line
        self.seen.append(prompt)


# (model, flags of the backend, flags of Cairn): one slot and an unusual interval, and the default flags, too.
WALKS = [
    ("granitehybrid", ("-np", "2"), "1024"),
    ("granitehybrid", ("-np", "1", "--ctx-checkpoints", "0"), "512"),
    ("gemma3", (), "300"),
    ("llama", ("-np", "2"), "1024"),
]


@pytest.mark.parametrize("model, flags, interval", WALKS,
                         ids=["hybrid", "hybrid_exact", "window_default_flags", "attention"])
def test_random_walk(make_stack, make_backend, model, flags, interval):
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"\nCAIRN_TEST_SEED={seed} {model} {' '.join(flags)}")
    stack = make_stack(model, backend_flags=flags, cairn_flags=("--checkpoint-interval", interval))
    alone = make_backend(model, ("-np", "1"))

    def cold(prompt):
        answer = call(alone.port, "POST", "/completion",
                      {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 20, "cache_prompt": False})
        assert answer.status == 200, answer.body[:300]
        return first_logprobs(answer)

    walk = Walk(stack, cold, random.Random(seed))
    for number in range(STEPS):
        walk.step(number)
    print(f"{walk.computed} of {walk.asked} prompt tokens computed; an answer was off by at most {walk.worst:.4f}")


def test_a_prompt_that_ends_just_before_a_context_checkpoint(make_stack, make_backend):
    """The backend computes its last token anew, without the oldest that a sliding window sees: a walk found the answer off by 0.09."""
    stack = make_stack("gemma3", backend_flags=("-np", "2"), cairn_flags=("--checkpoint-interval", "300"))
    alone = make_backend("gemma3", ("-np", "1"))
    source = random.Random(668407206)
    source.random()
    prompt = Walk(stack, None, source).prompt()[1]
    assert len(prompt) == 2463
    stack.complete(prompt, n_predict=1)
    stack.restart("cairn")
    short = prompt[:-5]  # the last context checkpoint lies four tokens before the end
    through = stack.complete(short, n_predict=1, n_probs=20)
    answer = call(alone.port, "POST", "/completion", {"prompt": short, "n_predict": 1, "temperature": 0, "n_probs": 20, "cache_prompt": False})
    ours, cold = first_logprobs(through.answer), first_logprobs(answer)
    assert through.computed <= 600, "a state was brought back"
    assert logprob_distance(ours, cold, 1) <= 0.04 and logprob_distance(ours, cold, 10) <= 0.04
