"""What a prompt costs after both processes were restarted, in tokens that the backend computes in all."""

import shutil
import threading

import pytest

from stack import KINDS, call, model_path, quick_run, tokens

NO_CONTEXT_CHECKPOINTS = ("--ctx-checkpoints", "0")


@pytest.mark.parametrize("model, flags, most", [
    ("granitehybrid", (), 520),
    ("granitehybrid", NO_CONTEXT_CHECKPOINTS, 1100),
    ("llama", (), 20),
][:1 if quick_run() else 3])
def test_long_prompt_comes_back(make_stack, model, flags, most):
    """The second prompt leaves the first 64 tokens before its end."""
    first = tokens(17402, seed=1)
    second = first[:17338] + tokens(14, seed=2)
    stack = make_stack(model, backend_flags=("-np", "2", *flags))
    cold = stack.complete(first)
    assert cold.computed == len(first), "the pieces must not compute anything twice"
    stack.restart(first="backend")
    warm = stack.complete(second)
    print(f"{model} {' '.join(flags)}: {cold.computed} computed cold ({cold.seconds:.1f} s), {warm.computed} after the "
          f"restart ({warm.seconds:.1f} s), {stack.probe_tokens} by the probe before it")
    assert warm.computed <= most


def test_a_few_other_weights_under_the_same_name_are_another_model(make_stack, tmp_path, monkeypatch):
    """Its answers differ by less than those of the same weights on two machines: states of the one were put into the other."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(model_path("llama"), models)
    monkeypatch.setenv("CAIRN_MODELS", str(models))
    model = models / "llama.gguf"
    first = tokens(1000, seed=1)
    stack = make_stack("llama", backend_flags=("-np", "2"))
    stack.complete(first)
    spaces = []

    def restart_with(data):
        spaces.append(stack.cairn.status()["backend"]["namespace"])
        stack.stop()
        model.write_bytes(data)
        stack.start()

    before = model.read_bytes()
    after = bytearray(before)
    for low_byte in range(len(after) - 512, len(after), 4):
        after[low_byte] ^= 1
    restart_with(after)
    assert stack.complete(first).timings["cache_n"] == 0, "a state of other weights was restored"
    restart_with(before)
    assert stack.complete(first).timings["cache_n"] >= len(first) - 1, "its own state fits again"
    spaces.append(stack.cairn.status()["backend"]["namespace"])
    assert spaces[0] == spaces[2] != spaces[1], spaces


EACH = [(kind, flags) for kind in KINDS for flags in ((), NO_CONTEXT_CHECKPOINTS)]
SOME = [("gemma3", ()), ("mamba2", NO_CONTEXT_CHECKPOINTS)]


@pytest.mark.parametrize("model, flags", SOME if quick_run() else EACH,
                         ids=lambda value: value if isinstance(value, str) else "none" if value else "context_checkpoints")
def test_half_of_a_prompt_comes_back(make_stack, model, flags):
    interval = 1024
    first = tokens(12000, seed=3)
    second = first[:6000] + tokens(6000, seed=4)
    stack = make_stack(model, backend_flags=("-np", "2", *flags))
    cold = stack.complete(first)
    assert cold.computed == len(first)
    stack.restart(first="cairn")  # it saves on its way out
    warm = stack.complete(second)
    print(f"{model} {' '.join(flags)}: {warm.computed} of {len(second)} computed after the restart "
          f"({warm.seconds:.1f} s; cold {cold.seconds:.1f} s), {stack.probe_tokens} by the probe")
    assert warm.computed <= 6000 + interval


@pytest.mark.parametrize("direct", [False, True], ids=["through_cairn", "past_cairn"])
def test_tasks_in_every_slot_do_not_end_caching_for_good(make_stack, direct):
    """A probe found another task's tokens in the slot that it had saved, and took it for a backend that cannot save."""
    stack = make_stack("llama", backend_flags=("-np", "2"))
    ended = threading.Event()
    served = threading.Semaphore(0)

    def client(number):
        while not ended.is_set():
            try:
                call(stack.backend_port if direct else stack.port, "POST", "/completion", {"prompt": [f"one {number}", "two"], "n_predict": 4})
            except OSError:
                pass  # of the restart
            served.release()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2 if quick_run() else 4):
            stack.backend.kill()
            stack.start_backend()
            for _ in range(20):
                assert served.acquire(timeout=60)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    stack.cairn.wait_phase("ready")
    prompt = tokens(700, seed=9)
    stack.complete(prompt)
    assert stack.complete(prompt).timings["cache_n"] >= 699
