"""What is particular to the kernels of the gated delta rule, interpreted: widths and
dtypes that test_gated_delta_rule.py does not try, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule import FEW_TOKENS, gated_delta_rule
from pallas_kernels.gated_delta_rule.triton import gated_delta_rule_triton
from pallas_kernels.inspect.triton_ir import kernel_calls
from tests.pallas_kernels.recurrences import GATED_DELTA_RULE as RULE
from tests.tolerances import assert_near

pytestmark = pytest.mark.slow  # as a whole


def test_odd_widths_and_groups_in_float32_are_exact():
    a = RULE.arrays(0, B=1, T=33, K=1, G=3, H=24, P=40)
    RULE.check(a, "triton", "float32", ids=RULE.segments(0, a))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_odd_widths_in_narrow_dtypes_are_near(dtype):
    a = RULE.arrays(1, B=1, T=130, K=1, G=2, H=24, P=72)
    RULE.check(a, "triton", dtype, ids=RULE.segments(1, a))


def tokens_of(a, dtype="float32"):
    """Returns the arguments of `gated_delta_rule`."""
    return [jnp.asarray(a[name], dtype) for name in RULE.tokens]


def test_a_memory_that_is_empty_is_not_read():
    tokens, s = tokens_of(RULE.arrays(2, T=20)), jnp.full((2, 2, 8, 5), np.nan)
    arguments: Any = (*tokens, None, s)
    with backend.interpreted():
        found = gated_delta_rule_triton(*arguments, scale=1.0, precise=True, empty=True)
    out, state = gated_delta_rule(*tokens, scale=1.0, implementation="reference")
    assert_near(found, (out, state.s_BNHP), dtype="float32")


@pytest.mark.parametrize("tokens", [FEW_TOKENS, FEW_TOKENS + 1])
def test_few_tokens_take_the_plain_form(tokens):
    a = tokens_of(RULE.arrays(3, T=tokens))
    with backend.compiling_for("gpu"):
        jaxpr = jax.make_jaxpr(gated_delta_rule)(*a).jaxpr
    assert bool(list(kernel_calls(jaxpr))) == (tokens > FEW_TOKENS)


@pytest.mark.parametrize(
    ("dtype", "widths", "message"),
    [
        ("float64", (16, 16), "float64"),
        ("float32", (130, 16), "128"),
        ("bfloat16", (260, 16), "256"),
        ("bfloat16", (16, 513), "512"),
    ],
)
def test_what_is_not_served_is_refused_by_name(dtype, widths, message):
    with jax.enable_x64(True):
        a = tokens_of(RULE.arrays(4, B=1, T=20, K=1, H=widths[0], P=widths[1]), dtype)
        with (
            backend.interpreted(),
            pytest.raises(NotImplementedError, match=message),
        ):
            gated_delta_rule(*a, implementation="triton")


def test_without_a_gpu_another_form_runs():
    a = tokens_of(RULE.arrays(5, T=20))
    with pytest.raises(NotImplementedError, match="GPU"):
        gated_delta_rule(*a, implementation="triton")
    assert gated_delta_rule(*a)[0].shape == (2, 20, 2, 5)
