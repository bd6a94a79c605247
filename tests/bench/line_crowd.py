"""Line 6: sixteen clients at once that share a long prefix nobody has computed, each with a rest of its own.

The prefix is computed once per slot at most, whatever the clients' order. The longest wait is no longer than without Cairn,
and no client waits more than 5 % + 100 ms longer, the clients of both sides matched by how long they waited.
"""

import threading
import time

from bench_report import Section
from bench_setup import Pair, median
from stack import KINDS, call, tokens

CLIENTS = 16
REST = 50
SLACK = 16  # a client: the tokens before a resume point that a slot's state cannot be cut to
REPEATS = 3
FLAGS = {"-np 1": ("-np", "1"), "-np 2": ("-np", "2"), "-np 4": ("-np", "4"), "default": ()}


def rush(side, prompts):
    """Asks all at once. The waits, sorted, and the prompt tokens computed."""
    waits, failures = [], []
    start = threading.Barrier(len(prompts))

    def client(prompt):
        body = {"prompt": prompt, "n_predict": 4, "temperature": 0, "ignore_eos": True, "response_fields": ["timings"]}
        start.wait()
        began = time.perf_counter()
        answer = call(side.port, "POST", "/completion", body, timeout=1800)
        waits.append(time.perf_counter() - began)
        if answer.status != 200:
            failures.append(f"{answer.status} {answer.body[:200]!r}")

    side.computed()
    threads = [threading.Thread(target=client, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(waits) == len(prompts), f"{side.name}: {failures[:3]}"
    side.settle()
    return sorted(waits), side.computed()


def by_rank(rushes):
    """The median wait of the quickest client, of the second, and so on."""
    return [median(ranks) for ranks in zip(*(waits for waits, _ in rushes))]


def spaced(values):
    return " ".join(map(str, values))


def run(options):
    section = Section(6, "Sixteen clients at once that share a prefix nobody has computed")
    size = (options.sizes or [8000])[0]
    sets = {name: flags for name, flags in FLAGS.items() if (name == "default") in [f == "default" for f in options.flags]}
    section.note(f"A prefix of {size:,} tokens and {REST} more for each of {CLIENTS} clients. Waits in seconds, medians of {REPEATS} "
                 "runs with fresh prefixes; the client matched by rank that waits longest beyond the backend alone.")
    section.table("model", "flags", "computed: allowed", "direct", "Cairn (each run)", "longest wait: direct", "Cairn", "ratio",
                  "worst client: direct", "Cairn", "over 5 % + 100 ms")
    many, longer, late, cells = [], [], [], 0
    for model in options.model or KINDS:
        for name, flags in sets.items():
            cells += 1
            cell = f"{model} {name}"
            with Pair(options, model, flags, size + REST) as pair:
                slots = call(pair.backend.port, "GET", "/props").json()["total_slots"]
                allowed = slots * size + CLIENTS * (REST + SLACK)
                found = {side.name: [] for side in pair.sides()}
                for repeat in range(REPEATS):
                    prefix = tokens(size, f"{cell} {repeat}")
                    prompts = [prefix + tokens(REST, f"{cell} {repeat} {client}") for client in range(CLIENTS)]
                    for side in pair.sides():
                        found[side.name].append(rush(side, prompts))
            counts = [computed for _, computed in found["Cairn"]]
            many += [cell] if max(counts) > allowed else []
            ours = by_rank(found["Cairn"])
            if options.no_direct:
                section.row(model, name, allowed, "-", spaced(counts), "-", ours[-1], "-", "-", "-", "-")
                continue
            direct = by_rank(found["direct"])
            over = [mine - (1.05 * alone + 0.1) for mine, alone in zip(ours, direct)]
            worst = over.index(max(over))
            late_ones = sum(value > 0 for value in over)
            section.row(model, name, allowed, spaced(computed for _, computed in found["direct"]), spaced(counts),
                        direct[-1], ours[-1], ours[-1] / direct[-1], direct[worst], ours[worst], f"{late_ones} of {CLIENTS}")
            longer += [cell] if ours[-1] > direct[-1] else []
            late += [cell] if late_ones else []
    for what, target, bad, counts in (
            ("prefix computed more often than there are slots", f"slots x {size:,} + {CLIENTS} x {REST + SLACK}", many, True),
            ("longest wait is longer than alone", "no longer", longer, False),
            ("a client waits longer than alone", "at most 5 % + 100 ms", late, False)):
        section.verdict(what, f"{len(bad)} of {cells}" + (f": {', '.join(bad)}" if bad else ""), target, not bad, counts)
        if options.no_direct:
            break  # the waits have nothing to be compared with
    section.end()
    return section
