"""Line 2: recorded agent sessions in turn on a hybrid with default flags, everything restarted half-way. Recomputed tokens
against an unbounded prefix cache with a state at every token; Cairn's probes at both starts count.
"""

import sessions
from bench_report import Section
from bench_setup import Pair, ids_of
from stack import call
from test_replay import PATHS, body_of, in_turn, least_possible, made_up

REPLAYS = (  # name, form, target, sessions
    ("SWE completions", "completions", 1.05, (sessions.swe, 6, 6, 10_000)),
    ("SWE chat", "chat", 1.05, (sessions.swe, 6, 6, 10_000)),
    ("Magagent completions", "completions", 1.06, (sessions.magagent, 5, 20, 20_000)),
)


def replay_of(text):
    """One of REPLAYS' rows, from what --replay says."""
    who, form, *numbers = text.split(",")
    skipped, files, prompts, characters = map(int, numbers)
    target = {"swe": 1.05, "magagent": 1.06}.get(who)
    if target is None or form not in PATHS:
        raise ValueError(text)
    return f"{who} {form} {','.join(numbers)}", form, target, (getattr(sessions, who), files, prompts, characters, skipped)


def replay(stack, form, texts):
    """All that both lives of the backend computed."""
    computed = 0
    for number, text in enumerate(texts):
        if number == len(texts) // 2:
            if stack.with_cairn:
                stack.cairn.settle()
            computed += stack.backend.total()
            stack.restart(first="backend")
        answer = call(stack.port, "POST", PATHS[form], body_of(form, text), timeout=1800)
        assert answer.status == 200, f"{answer.status} {answer.body[:300]!r}"
    if stack.with_cairn:
        stack.cairn.settle()
    return computed + stack.backend.total()


def run(options):
    section = Section(2, "Recorded sessions in turn, restarted half-way, default flags")
    section.table("replay", "model", "prompts", "prompt tokens", "least possible", "direct", "Cairn",
                  "direct / least", "Cairn / least", "target")
    for model in options.model or ("granitehybrid",):
        for name, form, target, (wanted, files, prompts, characters, *skipped) in options.replay or REPLAYS:
            if options.quick:
                files, prompts = 3, 4
            found = sessions.recorded(wanted, files, prompts, characters, *skipped)
            if found is None:
                name = f"made up instead of {name}"
            texts = in_turn(found) if found else made_up(files, prompts)
            with Pair(options, model, (), 30_000) as pair:
                ids = [ids_of(pair.backend, PATHS[form], body_of(form, text)) for text in texts]
                least = least_possible(ids)
                direct, ours = (side and replay(side.stack, form, texts) for side in (pair.direct, pair.cairn))
            section.row(name, model, len(texts), sum(map(len, ids)), least, direct, ours, direct and direct / least, ours / least, target)
            section.verdict(f"{name}, {model}: recomputed against the least possible", f"{ours / least:.3f} x", f"at most {target} x",
                            ours <= target * least)
    section.end()
    return section
