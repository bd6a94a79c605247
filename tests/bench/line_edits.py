"""Line 5: edits in mid-history. A line changed at 30, 50 and 70 % of a long prompt, the rest as before; and an agent's
compaction, which puts a short summary in the place of the middle third. Each is done once to the original and once more to
the edited prompt. At most one interval beyond the divergence may be computed.
"""

from bench_report import Section
from bench_setup import FLAG_SETS, Known, Pair, ids_of, interval_of, words_for
from stack import KINDS, prose, tokens

MESSAGES = 24  # of a chat
SETTINGS = {"temperature": 0, "seed": 1}


class Ids:
    """A prompt of token ids, one request."""
    path = "/completion"

    def __init__(self, backend, size, seed):
        self.seed = seed
        self.parts = tokens(size, seed)

    def bodies(self):
        return [{"prompt": list(self.parts), "n_predict": 1, "response_fields": ["timings"], **SETTINGS}]

    def change(self, fraction, again):
        at = int(len(self.parts) * fraction)
        self.parts[at:at + 20] = tokens(20, f"{self.seed} {fraction} {again}")

    def compact(self, again):
        third = len(self.parts) // 3
        self.parts[third:2 * third] = tokens(100, f"{self.seed} summary {again}")


class Chat:
    """The same as a chat of many messages of several lines each, sent whole."""
    path = "/v1/chat/completions"

    def __init__(self, backend, size, seed):
        self.seed = seed
        line = max(1, words_for(backend, size) // (MESSAGES * 8))
        self.line = line
        self.parts = [{"role": "system" if not number else "user" if number % 2 else "assistant",
                       "content": "\n".join(prose(line, f"{seed} {number} {row}") for row in range(8))} for number in range(MESSAGES)]

    def body(self, messages):
        return {"messages": [dict(message) for message in messages], "max_tokens": 1, **SETTINGS}

    def bodies(self):
        return [self.body(self.parts)]

    def change(self, fraction, again):
        message = self.parts[int(len(self.parts) * fraction)]
        lines = message["content"].split("\n")
        lines[4] = prose(self.line, f"{self.seed} {fraction} changed {again}")
        message["content"] = "\n".join(lines)

    def compact(self, again):
        third = len(self.parts) // 3
        said = prose(60, f"{self.seed} summary {again}")
        self.parts[third:2 * third] = [{"role": "user", "content": f"Summary {again} of what was said: {said}"}]


class GrownChat(Chat):
    """A chat that was asked turn by turn before the edit."""

    def bodies(self):
        return [self.body(self.parts[:end]) for end in range(2, len(self.parts) + 1, 2)]


FORMS = {"ids": Ids, "chat": Chat, "grown chat": GrownChat}
EDITS = {"30 %": 0.3, "50 %": 0.5, "70 %": 0.7, "compaction": None}


def run(options):
    section = Section(5, "Edits in mid-history")
    size = (options.sizes or [16000])[0]
    section.note("Computed for the edited prompt, and for one edited again: least (all from the divergence on), direct, Cairn; "
                 "*beyond* is the most that Cairn computed before the divergence.")
    section.table("model", "flags", "form", "tokens", "edit", "least", "direct", "Cairn", "beyond", "interval", "")
    failures, worst, cells = [], 0.0, 0
    for model in options.model or KINDS:
        for name in options.flags:
            with Pair(options, model, FLAG_SETS[name], size + 1000) as pair:
                for form, make in FORMS.items():
                    for edit, fraction in EDITS.items():
                        if form == "grown chat" and fraction is not None:
                            continue  # where the turns ended makes no difference to a line inside a message
                        beyond, interval = one_edit(section, pair, make, size, (model, name, form, edit))
                        cells += 1
                        worst = max(worst, beyond / interval)
                        if beyond > interval:
                            failures.append(f"{model} {name} {form} {edit}")
    section.verdict("computed before the divergence, worst edit", f"{worst:.2f} intervals ({len(failures)} of {cells} fail)",
                    "at most 1 interval", not failures)
    section.end()
    return section


def one_edit(section, pair, make, size, names):
    """A fresh prompt, edited twice."""
    prompt, known, edit = make(pair.backend, size, "/".join(names)), Known(), names[-1]

    def ask():
        """New tokens of the last request, and what each side computed for it."""
        for body in prompt.bodies():
            ids = ids_of(pair.backend, prompt.path, body)
            new, costs = known.add(ids), {}
            for side in pair.sides():
                costs[side.name] = side.ask(prompt.path, body)[1]
                side.settle()
        return len(ids), new, costs

    length, _, _ = ask()
    interval = interval_of(pair.cairn.stack.cairn.status())
    least, found = [], {side.name: [] for side in pair.sides()}
    for again in range(2):
        if EDITS[edit] is None:
            prompt.compact(again)
        else:
            prompt.change(EDITS[edit], again)
        if isinstance(prompt, GrownChat):
            prompt.bodies = lambda: [prompt.body(prompt.parts)]  # an edited history is sent whole
        _, new, costs = ask()
        least.append(new)
        for name, cost in costs.items():
            found[name].append(cost)
    beyond = max(mine - new for mine, new in zip(found["Cairn"], least))
    model, flags, form, _ = names
    section.row(model, flags, form, length, edit, *(" ".join(map(str, values)) or "-" for values in
                (least, found.get("direct", []), found["Cairn"])), beyond, interval, "pass" if beyond <= interval else "FAIL")
    return beyond, interval
