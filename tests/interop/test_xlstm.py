"""The pure xLSTM here is the xlstm package's xLSTMLarge.

Golden values: tests/golden/xlstm_large.npz, written by make_xlstm_golden.py beside it
from the package's own code in float64.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mlstm import MLSTMState
from swa_jax.interop.xlstm import from_xlstm_large
from swa_jax.models.language_model import language_model

GOLDEN = Path(__file__).parents[1] / "golden" / "xlstm_large.npz"


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as stored:
        return dict(stored)


def weights() -> dict[str, np.ndarray]:
    prefix = "weights/"
    return {
        name.removeprefix(prefix): array
        for name, array in golden().items()
        if name.startswith(prefix)
    }


def test_the_config_is_read_off_the_weights():
    config, _ = from_xlstm_large(weights())
    assert (config.d_model, config.vocab_size) == (48, 64)
    assert (config.pattern, config.periods) == (("mlstm",), 2)
    assert config.mlstm.heads == 3
    assert (config.mlstm_key_width, config.mlstm_value_width) == (8, 16)
    assert (
        config.hidden_width
        == weights()["backbone.blocks.0.ffn.proj_up.weight"].shape[0]
    )


def logits_error(logits_BTV: jax.Array) -> float:
    return float(np.abs(np.asarray(logits_BTV) - golden()["logits"]).max())


def tolerance() -> float:
    """Twice the distance of the package's own float32 run from its float64 run."""
    return 2 * float(golden()["package_float32_error"])


def run(**numbers) -> jax.Array:
    config, params = from_xlstm_large(weights(), dtype="float32", **numbers)
    apply = jax.jit(language_model(config).apply)
    return apply(params, jnp.asarray(golden()["tokens"]), window=1)[0]


def test_logits_agree_to_float32_rounding():
    assert logits_error(run()) < tolerance()


@pytest.mark.parametrize(
    "wrong", [{"gate_softcap": 14.9}, {"logit_softcap": None}, {"norm_eps": 1e-5}]
)
def test_the_numbers_that_no_weight_shows_matter(wrong):
    assert logits_error(run(**wrong)) > 2 * tolerance()


@pytest.mark.parametrize("first", [1, 50])
def test_two_pieces_agree_and_end_in_the_same_memory(first):
    config, params = from_xlstm_large(weights(), dtype="float32")
    model = language_model(config)
    apply = jax.jit(model.apply)
    tokens_BT = jnp.asarray(golden()["tokens"])
    state = model.init_state(tokens_BT.shape[0], window=1, context=1)
    pieces = []
    for piece_BT in (tokens_BT[:, :first], tokens_BT[:, first:]):
        logits_BTV, state = apply(params, piece_BT, window=1, state=state)
        pieces.append(logits_BTV)
    assert logits_error(jnp.concatenate(pieces, axis=1)) < tolerance()
    assert state is not None
    memory: MLSTMState = state.layers["0_mlstm"].mixer
    # Where m lies is a convention (theirs starts at 0); C exp(m) and n exp(m) are not.
    scale_LBN = np.exp(np.asarray(memory.m_BN) - golden()["state_m"][..., 0])
    c_LBNHP = np.asarray(memory.c_BNHP) * scale_LBN[..., None, None]
    n_LBNH = np.asarray(memory.n_BNH) * scale_LBN[..., None]
    for ours, theirs in [(c_LBNHP, golden()["state_c"]), (n_LBNH, golden()["state_n"])]:
        largest = np.abs(theirs).max(axis=tuple(range(3, theirs.ndim)), keepdims=True)
        np.testing.assert_array_less(np.abs(ours - theirs) / largest, 5e-6)


def test_missing_and_unknown_weights_are_named():
    changed = weights()
    changed["backbone.blocks.1.ffn.extra.weight"] = changed.pop("lm_head.weight")
    with pytest.raises(ValueError, match=r"missing=\['lm_head.*unknown=.*ffn\.extra"):
        from_xlstm_large(changed)


def test_another_model_is_refused():
    with pytest.raises(
        ValueError, match=r"wanted the state dict.*got \['model\.norm'\]"
    ):
        from_xlstm_large({"model.norm": np.ones(3)})


@pytest.mark.parametrize(
    "name", ["backbone.blocks.1.mlstm_layer.q.weight", "lm_head.weight"]
)
def test_a_wrong_shape_is_refused(name):
    changed = weights()
    changed[name] = changed[name][:-1]
    with pytest.raises(ValueError, match=r"wanted .*shape"):
        from_xlstm_large(changed)
