"""Line 4: a long chat, and between any two of its turns a side job such as a title, which takes the slot away.

No turn may recompute more than its new tokens, those beyond the longest prefix it shares with any earlier prompt, and 16.
The side job comes at once after the turn; then the user reads, and Cairn may save.
"""

import random

from bench_report import Section
from bench_setup import Known, Pair, ids_of, words_for
from stack import KINDS, prose

PATH = "/v1/chat/completions"
TURNS = 7  # the long one and six more
SLACK = 16
FLAGS = {"-np 1": ("-np", "1"), "-np 2": ("-np", "2"), "default": ()}


class Chat:
    def __init__(self, backend, tokens, seed):
        self.backend = backend
        self.random = random.Random(f"chat {seed}")
        self.seed = seed
        self.turn = 0
        self.first = tokens
        self.messages = [{"role": "system", "content": "You are a careful assistant. " + self.words(tokens // 10, "system")}]

    def words(self, tokens, what):
        return prose(words_for(self.backend, tokens), f"{self.seed} {what}")

    def next_turn(self):
        tokens = self.first - self.first // 10 if self.turn == 0 else self.random.randint(100, 400)
        self.messages.append({"role": "user", "content": f"Turn {self.turn}: " + self.words(tokens, f"turn {self.turn}")})
        self.turn += 1
        return {"messages": list(self.messages), "max_tokens": 8, "temperature": 0, "seed": 1}

    def heard(self, answer):
        self.messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})

    def side_job(self):
        """Shares nothing with the chat but the first marks of the template."""
        asked = f"Number {self.turn} of {self.seed}, a title for: " + self.words(self.random.randint(50, 300), f"side {self.turn}")
        return {"messages": [{"role": "user", "content": asked}], "max_tokens": 8, "temperature": 0, "seed": 1}


def run(options):
    section = Section(4, "A long chat with a side job between any two turns")
    size = (options.sizes or [20000])[0]
    sets = {name: flags for name, flags in FLAGS.items() if (name == "default") in [f == "default" for f in options.flags]}
    models = options.model or [model for kind in KINDS for model in (kind, f"{kind}-think")]
    section.note(f"Computed a turn: new tokens, direct, Cairn. The first turn has about {size:,} tokens, {TURNS - 1} more follow; "
                 "side jobs, and what was computed between the requests, are summed.")
    section.table("model", "flags", "new a turn", "direct", "Cairn", "worst excess", "side jobs: new", "Cairn", "")
    failures, worst, cells = [], 0, 0
    for model in models:
        for name, flags in sets.items():
            with Pair(options, model, flags, size + 4000) as pair:
                excess = converse(section, pair, model, name, size)
            cells += 1
            worst = max(worst, excess)
            if excess > SLACK:
                failures.append(f"{model} {name}")
    section.verdict("recomputed beyond a turn's new tokens, worst turn", f"{worst:,} ({len(failures)} of {cells} fail"
                    + (f": {', '.join(failures)})" if failures else ")"), f"at most {SLACK}", not failures)
    section.end()
    return section


def converse(section, pair, model, flags, size):
    chat, known = Chat(pair.backend, size, f"{model} {flags}"), Known()
    new, ours, direct, side_new = [], [], [], 0
    for turn in range(TURNS):
        body, side = chat.next_turn(), chat.side_job()
        new.append(known.add(ids_of(pair.backend, PATH, body)))
        side_new += known.add(ids_of(pair.backend, PATH, side))
        answer, computed = pair.cairn.ask(PATH, body)
        ours.append(computed)
        pair.cairn.ask(PATH, side)
        pair.cairn.settle()
        if pair.direct:
            direct.append(pair.direct.ask(PATH, body)[1])
            pair.direct.ask(PATH, side)
        chat.heard(answer)  # both sides hear what came through Cairn, and so are asked the same
    side_ours = pair.cairn.stack.backend.total() - pair.cairn.stack.probe_tokens - sum(ours)
    excess = [mine - least for mine, least in zip(ours, new)]
    worst = max(excess)
    section.row(model, flags, spaced(new), spaced(direct) or "-", spaced(ours), f"{worst:,} (turn {excess.index(worst)})", side_new,
                side_ours, "pass" if worst <= SLACK else "FAIL")
    return worst


def spaced(values):
    return " ".join(map(str, values))
