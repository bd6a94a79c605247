"""Line 1: prompts that never repeat, where a cache can only lose. Total time and time to the first token, in pairs: one
request to the backend alone, the same through Cairn, each first in every other pair, nothing else running; before each request
Cairn has saved what it wants to and neither backend has anything left to do.
Then eight prompts back to back on each side, without such pauses.
"""

import time

from bench_report import Section
from bench_setup import FLAG_SETS, Pair, median, percentile, words_for
from stack import KINDS, prose, tokens

SIZES = (500, 1000, 2000, 4000, 8000, 16000)
TARGET = 1.03
IN_A_ROW = 8
MOST_ROWS = 5  # however many pairs
ROW_TOKENS = 1000


def request(backend, form, size, seed):
    """(path, body) of a prompt that shares nothing with any other."""
    common_part = {"temperature": 0, "seed": 1, "ignore_eos": True}
    if form == "ids":
        return "/completion", {**common_part, "prompt": tokens(size, seed), "n_predict": 8}
    said = f"{tokens(1, seed)[0]} {prose(words_for(backend, size), seed)}"
    return "/v1/chat/completions", {**common_part, "messages": [{"role": "user", "content": said}], "max_tokens": 8}


class Times:
    def __init__(self, direct, cairn):
        self.ratio = median([ours / alone for alone, ours in zip(direct, cairn)])
        self.direct = median(direct) * 1000
        self.cairn = median(cairn) * 1000
        self.tail = percentile(cairn, 99) / percentile(direct, 99)


def run(options):
    section = Section(1, "Prompts that never repeat")
    sizes = options.sizes or SIZES
    options.no_direct = False
    tail = "p99" if options.pairs >= 100 else "max"
    section.note(f"Medians in ms of {options.pairs} alternating pairs; ratios are medians over the pairs, Cairn / direct; *{tail}* is the "
                 f"ratio of both sides' {tail}. Computed and written: all requests of the row, Cairn's answers awaited until all is saved.")
    columns = ("model", "flags", "form", "size", "total: direct", "Cairn", "ratio", tail, "first token: direct", "Cairn", "ratio", tail,
               "computed: direct", "Cairn", "MB written by Cairn")
    cells, rows = [], []
    section.table(*columns)
    for model in options.model or KINDS:
        for name in options.flags:
            with Pair(options, model, FLAG_SETS[name], max(sizes)) as pair:
                for form in ("ids", "chat"):
                    for size in sizes:
                        cells.append((f"{model} {name} {form} {size:,}", *pairs(section, pair, options.pairs, (model, name, form, size))))
                    rows.append((model, name, form, *in_a_row(pair, min(options.pairs, MOST_ROWS), (model, name, form))))
    section.note(f"Back to back: {IN_A_ROW} requests of {ROW_TOKENS:,} tokens without a pause, seconds for all, medians of "
                 f"{min(options.pairs, MOST_ROWS)}.")
    section.table("model", "flags", "form", "without a pause", "direct", "Cairn", "ratio")
    for row in rows:
        section.row(*row)
    judge(section, "total time, worst median ratio", [(cell, total.ratio) for cell, total, _, _ in cells])
    if tail == "p99":  # the slowest of a few says what else the machine did
        judge(section, "total time, worst ratio of p99", [(cell, total.tail) for cell, total, _, _ in cells])
    judge(section, "first token, worst median ratio", [(cell, first.ratio) for cell, _, first, _ in cells])
    if tail == "p99":
        judge(section, "first token, worst ratio of p99", [(cell, first.tail) for cell, _, first, _ in cells])
    judge(section, "back to back, worst median ratio", [(" ".join(row[:3]), row[-1]) for row in rows])
    more = max(extra for _, _, _, extra in cells)
    section.verdict("prompt tokens beyond what the backend alone computed, worst row", f"{more:,}", "none", more <= 0)
    section.end()
    return section


def judge(section, what, ratios):
    worst, cell = max((ratio, cell) for cell, ratio in ratios)
    missed = sum(ratio > TARGET for _, ratio in ratios)
    section.verdict(what, f"{worst:.3f} ({cell}); {missed} of {len(ratios)} over", f"at most {TARGET} x", not missed, counts=False)


def pairs(section, pair, count, names):
    model, flags, form, size = names
    firsts, totals = {"direct": [], "Cairn": []}, {"direct": [], "Cairn": []}
    for side in pair.sides():  # not measured: what every first request pays
        side.stream(*request(pair.backend, form, size, f"warm {names}"))
        side.settle()
        side.computed()
    written = pair.cairn.written()
    for repeat in range(count):
        asked = request(pair.backend, form, size, f"{names} {repeat}")
        for side in pair.sides()[::-1 if repeat % 2 else 1]:
            for each in pair.sides():  # what either still does would be counted against the other
                each.settle()
            first, total = side.stream(*asked)
            firsts[side.name].append(first)
            totals[side.name].append(total)
    pair.cairn.settle()
    total, first = Times(totals["direct"], totals["Cairn"]), Times(firsts["direct"], firsts["Cairn"])
    direct, ours = pair.direct.computed(), pair.cairn.computed()
    section.row(model, flags, form, size, total.direct, total.cairn, total.ratio, total.tail, first.direct, first.cairn, first.ratio,
                first.tail, direct, ours, (pair.cairn.written() - written) / 1e6)
    return total, first, ours - direct


def in_a_row(pair, count, names):
    """Requests asked without a pause, seconds of both sides, their median ratio."""
    sums = {"direct": [], "Cairn": []}
    for repeat in range(count):
        asked = [request(pair.backend, names[-1], ROW_TOKENS, f"row {names} {repeat} {number}") for number in range(IN_A_ROW)]
        for side in pair.sides():
            side.settle()
            began = time.perf_counter()
            for path, body in asked:
                side.stream(path, body)
            sums[side.name].append(time.perf_counter() - began)
        pair.cairn.settle()
    ratio = median([ours / alone for alone, ours in zip(sums["direct"], sums["Cairn"])])
    return f"{(IN_A_ROW - 1) * count} of {IN_A_ROW * count}", median(sums["direct"]), median(sums["Cairn"]), ratio
