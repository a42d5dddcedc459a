"""The family of linear attention makes what flash-linear-attention makes.

Golden values: tests/golden/linear_attention.npz, written by
make_linear_attention_golden.py beside it from that package's plain PyTorch forms.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.gated_linear_attention import gated_linear_attention
from pallas_kernels.linear_attention import LinearAttentionState, linear_attention
from pallas_kernels.wkv7 import wkv7
from tests.tolerances import assert_near

GOLDEN = Path(__file__).parents[1] / "golden" / "linear_attention.npz"
IMPLEMENTATIONS = ["chunked", "reference"]


@functools.cache
def golden(form: str, /) -> dict[str, np.ndarray]:
    """Returns the arrays stored under the name of a form, or under "inputs"."""
    prefix = f"{form}/"
    with np.load(GOLDEN) as stored:
        names = [name for name in stored if name.startswith(prefix)]
        return {name.removeprefix(prefix): stored[name] for name in names}


def gla(x, /, **options):
    tokens = (x["q"], x["k"], x["v"], x["channel_log_decay"])
    return gated_linear_attention(*tokens, **options)


def delta_rule(x, /, **options):
    tokens = (x["q"], x["k"], x["v"], x["log_decay"], x["beta"])
    return gated_delta_rule(*tokens, **options)


def dplr(x, /, **options):
    r = x["q"] * x["q"].shape[-1] ** -0.5
    tokens = (r, x["channel_log_decay"], x["k"], x["v"], x["a"], x["b"])
    return wkv7(*tokens, **options)


def simple_gla(x, /, **options):
    return linear_attention(x["q"], x["k"], x["v"], x["log_decay"], **options)


def retention(x, /, **options):
    log_decay_N = jnp.log1p(-(2.0 ** -jnp.arange(5.0, 7.0)))
    log_decay_BTN = jnp.broadcast_to(log_decay_N, x["v"].shape[:3])
    return linear_attention(x["q"], x["k"], x["v"], log_decay_BTN, **options)


FORMS = {
    "gla": gla,
    "gated_delta_rule": delta_rule,
    "dplr": dplr,
    "simple_gla": simple_gla,
    "retention": retention,
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_another_implementation(form, implementation):
    with jax.enable_x64(True):
        x = {n: jnp.asarray(a, "float64") for n, a in golden("inputs").items()}

        def loss(x):
            state: Any = None
            if form != "retention":
                state = LinearAttentionState(x["state"], jnp.zeros(1, jnp.int32))
            out, last = FORMS[form](x, state=state, implementation=implementation)
            made = {"out": out, "state": last.s_BNHP}
            made = {n: m for n, m in made.items() if n in golden(form)}
            return sum(jnp.sum(m * x[f"{n}_cotangent"]) for n, m in made.items()), made

        (_, made), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    made |= {f"gradient/{name}": slope for name, slope in slopes.items()}
    wanted = golden(form)  # float32, and so are the errors of the one that made it
    assert_near({name: made[name] for name in wanted}, wanted, dtype="float32")
