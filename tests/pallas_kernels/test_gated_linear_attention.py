"""Gated linear attention: its decays, and the recurrence against linear attention; what
holds of every recurrence is in test_recurrences.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_linear_attention import (
    LinearAttentionState,
    gated_linear_attention,
    initial_state,
)
from pallas_kernels.linear_attention import linear_attention
from tests.pallas_kernels.recurrences import GATED_LINEAR_ATTENTION as GLA
from tests.tolerances import assert_near

IMPLEMENTATIONS, FORMS = GLA.implementations, GLA.forms
arrays, segments, run_jitted = GLA.arrays, GLA.segments, GLA.jitted
value_and_gradients = GLA.value_and_gradients


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_strong_decays_keep_their_digits(implementation, share):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(1, T=130)
    rng = np.random.default_rng(1)
    strong = rng.random(a["decay"].shape) < share
    strengths = -rng.choice([1e3, 20.0, 1.0], a["decay"].shape)
    a["decay"] = np.where(strong, strengths, -rng.uniform(1e-3, 1e-2, strong.shape))
    GLA.check(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_decay_of_minus_infinity_forgets_all(implementation):
    a = arrays(2, T=70)
    cut = np.random.default_rng(2).random(a["decay"].shape) < 0.1
    a["decay"] = np.where(cut, -1e30, a["decay"])
    wanted = value_and_gradients(a, implementation=implementation)
    a["decay"] = np.where(cut, -np.inf, a["decay"])
    found = value_and_gradients(a, implementation=implementation)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    np.testing.assert_array_equal(np.asarray(found[1]["decay"])[cut], 0.0)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_memory_that_never_forgets_is_exact(implementation, dtype):
    a = arrays(3, T=150)
    a["decay"] = np.zeros_like(a["decay"])
    GLA.check(a, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_decay_for_all_channels_is_linear_attention(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(8, T=130).items()}
    decay_BTN = a["decay"][..., 0]
    ids = segments(8, a)
    state = LinearAttentionState(a["s"], jnp.zeros(2, jnp.int32))
    tokens = (a["q"], a["k"], a["v"], decay_BTN)
    reference = jax.jit(partial(linear_attention, implementation="reference"))
    out, last = reference(*tokens, state=state, segment_ids=ids)
    a["decay"] = jnp.broadcast_to(decay_BTN[..., None], a["decay"].shape)
    found, state = run_jitted(a, ids=ids, implementation=implementation)
    assert_near((found, state.s_BNHP), (out, last.s_BNHP), dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTNH"),
        ({"v": np.zeros((2, 8, 3, 3), np.float32)}, "N ="),
        ({"v": np.zeros((2, 8, 2, 3), np.float16)}, "one dtype"),
        ({"decay": np.zeros((2, 8, 2), np.float32)}, "log_decay_BTNH"),
        ({"decay": np.zeros((2, 8, 2, 4), np.int32)}, "floating"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=9)}, "P ="),
        ({"state": initial_state(batch=2, heads=1, key_width=4, value_width=3)}, "N ="),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 8, 2, 4), np.float32),
        "k": np.zeros((2, 8, 2, 4), np.float32),
        "v": np.zeros((2, 8, 2, 3), np.float32),
        "decay": np.zeros((2, 8, 2, 4), np.float32),
        **change,
    }
    tokens = [given.pop(name) for name in GLA.tokens]
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(*tokens, **given)
