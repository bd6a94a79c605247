"""What a prompt costs after both processes were restarted, in tokens that the backend computes in all."""

import pytest

from stack import KINDS, quick_run, tokens

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
