"""Line 3: eleven conversations in turn over two slots, on a backend without a cache of its own in RAM (stock then computes
everything anew). Recomputed tokens against a cache that forgets nothing; no pauses, Cairn's probe counted.
"""

import random

import sessions
from bench_report import Section
from bench_setup import Known, Pair, ids_of, words_for
from stack import prose
from test_replay import PATHS, body_of, in_turn, made_up

FLAGS = ("-np", "2", "--cache-ram", "0")
MODELS = ("granitehybrid", "gemma3", "llama")
TALKS = 11
TURNS = 6
TARGET = 1.05


def fixed(form, texts):
    """Questions that are known beforehand."""
    bodies = [(PATHS[form], body_of(form, text)) for text in texts]
    return lambda backend: ((path, body, lambda answer: None) for path, body in bodies)


def chats(talks, turns):
    """Chats with the answers as they came; every third has the same system prompt."""
    def questions(backend):
        word = words_for(backend, 1000) / 1000
        source = random.Random("chats")
        histories = [[{"role": "system", "content": prose(round(word * (600 + 300 * (talk % 3))), f"system {talk % 3}")}]
                     for talk in range(talks)]
        for turn in range(turns):
            for talk, history in enumerate(histories):
                length = source.randint(500, 2000) if turn == 0 else source.randint(100, 400)
                history.append({"role": "user", "content": f"{talk}: " + prose(round(word * length), f"said {talk} {turn}")})
                body = {"messages": list(history), "max_tokens": 32, "temperature": 0, "seed": 1}

                def heard(answer, history=history):
                    history.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
                yield PATHS["chat"], body, heard
    return questions


def workloads(quick):
    talks, turns = (5, 3) if quick else (TALKS, TURNS)
    traces = sessions.recorded(lambda name: True, talks, turns, 10_000)
    texts = in_turn(traces) if traces else made_up(talks, turns)
    name = "recorded" if traces else "made up"
    return {f"{name} completions": fixed("completions", texts), f"{name} chat": fixed("chat", texts),
            "chats with answers": chats(talks, turns)}


def run(options):
    section = Section(3, "Eleven conversations in turn over two slots, --cache-ram 0")
    section.table("model", "conversations", "prompts", "prompt tokens", "least possible", "direct", "Cairn",
                  "direct / least", "Cairn / least")
    failures, worst = [], 0.0
    for model in options.model or MODELS:
        for what, questions in workloads(options.quick).items():
            with Pair(options, model, FLAGS, 30_000) as pair:
                known, asked, lengths, least = Known(), [], [], 0
                for path, body, heard in questions(pair.backend):
                    ids = ids_of(pair.backend, path, body)
                    lengths.append(len(ids))
                    least += known.add(ids)
                    answer, _ = pair.cairn.ask(path, body)
                    heard(answer)
                    asked.append((path, body))
                pair.cairn.settle()
                ours = pair.backend.total()
                direct = None
                if pair.direct:
                    for path, body in asked:
                        pair.direct.ask(path, body)
                    direct = pair.direct.stack.backend.total()
            section.row(model, what, len(lengths), sum(lengths), least, direct, ours, direct and direct / least, ours / least)
            worst = max(worst, ours / least)
            if ours > TARGET * least:
                failures.append(f"{model} {what}")
    section.verdict("recomputed against the least possible, worst", f"{worst:.3f} x" + (f" ({', '.join(failures)})" if failures else ""),
                    f"at most {TARGET} x", not failures)
    section.end()
    return section
