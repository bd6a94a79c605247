"""Agent sessions in turn, restarted half-way: recomputed tokens against the backend alone and against the least possible,
and the first token's log-probabilities against runs without Cairn.

The recorded sessions are used where they are: CAIRN_TRACES, or shared/traces beside the repository. Sessions made up here
take their place otherwise. CAIRN_FULL compares the log-probabilities of every prompt instead of some; CAIRN_QUICK leaves
the recorded ones out.
"""

import json
import os
from pathlib import Path

import pytest

from stack import REPOSITORY, call, common, first_logprobs, full_run, logprob_distance, prose, quick_run

INTERVAL = 1024
ANSWER_TOKENS = 4


# --- the sessions -----------------------------------------------------------------------------------------

def recorded(files, prompts, characters):
    """The recipe: of each file the prompts of more than 400 characters in time order, the first few, cut."""
    folder = Path(os.environ.get("CAIRN_TRACES") or REPOSITORY.parent / "shared/traces") / "agents"
    if not folder.is_dir():
        pytest.skip(f"no recorded sessions in {folder} (CAIRN_TRACES names their folder)")
    names = sorted(name for name in os.listdir(folder) if name[0].isdigit())[:files]
    sessions = []
    for name in names:
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: row["timestamp"])
        texts = [row["input"][:characters] for row in rows if len(row["input"]) > 400]
        sessions.append(texts[:prompts])
    return in_turn(sessions)


def made_up(files, prompts):
    """Like them: the same instructions everywhere, a task of its own each, a history that grows and is once rewritten."""
    instructions = prose(700, "instructions")
    sessions = []
    for number in range(files):
        history = instructions + prose(300, f"task {number}")
        texts = []
        for turn in range(prompts):
            if turn == prompts // 2:
                history = history[:len(history) - 900]
            history += "\n" + prose(250, f"turn {number} {turn}")
            texts.append(history)
        sessions.append(texts)
    return in_turn(sessions)


def in_turn(sessions):
    longest = max(map(len, sessions))
    return [session[number] for number in range(longest) for session in sessions if number < len(session)]


def body_of(form, text):
    common_part = {"max_tokens": ANSWER_TOKENS, "temperature": 0, "seed": 1}
    if form == "chat":
        return {**common_part, "messages": [{"role": "user", "content": text}], "logprobs": True, "top_logprobs": 20}
    return {**common_part, "prompt": text, "logprobs": 20}


PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


# --- the replay -------------------------------------------------------------------------------------------

def replay(stack, form, texts, observe=lambda number, outcome: None):
    """Prompt tokens that the backend computed in all, the probe after the restart included."""
    computed = 0
    for number, text in enumerate(texts):
        if number == len(texts) // 2:
            stack.restart(first="backend")
            computed += stack.probe_tokens
        outcome = stack.ask(body_of(form, text), PATHS[form])
        computed += outcome.computed
        observe(number, outcome)
    return computed


def least_possible(prompts):
    """With an unbounded cache of every token ever computed."""
    least, known = 0, []
    for ids in prompts:
        shared = max((common(ids, other) for other in known), default=0)
        least += len(ids) - min(shared, len(ids) - 1)
        known.append(ids)
    return least


def cold(backend, ids, stops):
    """The first token's log-probabilities when the prompt is computed from nothing, in pieces that end at `stops`."""
    for index, stop in enumerate(stops):
        call(backend.port, "POST", "/completion", {"prompt": ids[:stop], "n_predict": 0, "cache_prompt": index > 0,
                                                   "id_slot": 0})
    answer = call(backend.port, "POST", "/completion", {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 20,
                                                        "cache_prompt": bool(stops), "id_slot": 0})
    assert answer.status == 200
    return first_logprobs(answer)


SESSIONS = {"swe": lambda: recorded(files=6, prompts=6, characters=10_000), "made_up": lambda: made_up(files=3, prompts=4)}


@pytest.mark.parametrize("form", ["completions", "chat"])
@pytest.mark.parametrize("sessions", ["made_up"] if quick_run() else SESSIONS)
def test_replay(make_stack, make_backend, sessions, form):
    texts = SESSIONS[sessions]()
    model = "granitehybrid"

    alone = make_stack(model, name="alone", with_cairn=False)
    prompts = [alone.backend.chat_tokens(body_of(form, text)) if form == "chat" else alone.backend.tokenize(text)
               for text in texts]
    stock = replay(alone, form, texts)
    alone.close()

    compared = range(len(texts)) if full_run() else range(len(texts) // 2 - 1, len(texts), max(1, len(texts) // 8))
    answers = {}

    def observe(number, outcome):
        if number in compared:
            answers[number] = outcome.answer

    stack = make_stack(model, name="cairn", cairn_flags=("--checkpoint-interval", str(INTERVAL)))
    ours = replay(stack, form, texts, observe)
    stack.close()

    least = least_possible(prompts)
    print(f"\n{sessions} as {form}: {len(texts)} prompts, {sum(map(len, prompts))} prompt tokens; least possible {least}, "
          f"alone {stock} ({stock / least:.3f} x), with Cairn {ours} ({ours / least:.3f} x)")
    assert ours < stock

    # The same answers. Where Cairn cut the prompt is known but for where it took up an earlier one, which its answer says.
    reference = make_backend(model, ("-np", "1"))
    worst_pieces = worst_whole = 0.0
    for number, answer in answers.items():
        ids = prompts[number]
        taken_up = answer.json()["timings"]["cache_n"]
        stops = sorted({*range(INTERVAL, len(ids) - 64, INTERVAL), *([taken_up] if 0 < taken_up < len(ids) else [])})
        through = first_logprobs(answer)
        worst_pieces = max(worst_pieces, logprob_distance(through, cold(reference, ids, stops), 1))
        worst_whole = max(worst_whole, logprob_distance(through, cold(reference, ids, []), 1))
    print(f"first token's log-probability, {len(answers)} prompts: off by at most {worst_pieces:.4f} from the same pieces, "
          f"{worst_whole:.4f} from one piece")
    assert worst_pieces <= 0.02
    assert worst_whole <= 0.05
