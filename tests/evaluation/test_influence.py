"""Influence by distance, on functions and models whose influence is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import enable_x64

from swa_jax.evaluation.influence import (
    hop_gain,
    influence_by_distance,
    layer_inputs,
    layer_stages,
    own_path_share,
    path_shares,
    squared_norms,
    stack_stages,
    stream_share,
)
from swa_jax.evaluation.reach import AveragingStack, independent_paths, tail
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.models.layer_functions import embedding_function, layer_functions

D, T = 6, 40
KEY = jax.random.key(7)


def averaging_layer(window, alpha):
    """Returns x -> alpha x + (1 - alpha) mean over the window, exact past the start."""
    operator = np.zeros((T, T))
    for t in range(T):
        operator[t, max(0, t - window + 1) : t + 1] = (1 - alpha) / window
        operator[t, t] += alpha
    return lambda x_BTD: jnp.einsum("ts,bsd->btd", jnp.asarray(operator), x_BTD)


def model_of(pattern, periods, *, seed=0):
    config = ModelConfig(
        vocab_size=40,
        d_model=16,
        pattern=pattern,
        periods=periods,
        attention=AttentionConfig(heads=2),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=16,
        dtype="float32",
    )
    params = language_model(config).init(jax.random.key(seed))
    tokens_BT = jax.random.randint(jax.random.key(seed + 1), (2, T), 0, 40)
    return config, params, embedding_function(config, params)(tokens_BT)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.95, 1.0])
def test_a_stack_of_averages_has_the_formulas_influence(alpha):
    stack = AveragingStack(4, 7, alpha)
    with enable_x64(True):
        stages = [averaging_layer(7, alpha)] * 4
        x_BTD = jax.random.normal(KEY, (2, T, D), "float64")
        squares = squared_norms(stages, x_BTD, (T - 1, T - 4), probes=None)
    found = influence_by_distance(squares, (T - 1, T - 4))
    wanted = stack.influence() * np.sqrt(D)
    np.testing.assert_allclose(found[: stack.reach], wanted, rtol=1e-6, atol=1e-15)
    assert not found[stack.reach :].any()
    assert len(found) == T
    np.testing.assert_allclose(
        tail(found)[: stack.reach], tail(stack.influence()), rtol=1e-6, atol=1e-15
    )


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.95])
def test_alpha_is_found_again_in_a_layer_of_averages(alpha):
    with enable_x64(True):
        x_BTD = jax.random.normal(KEY, (2, T, D), "float64")
        squares = squared_norms([averaging_layer(7, alpha)], x_BTD, (30,), probes=None)
    influence = influence_by_distance(squares, (30,))
    assert own_path_share(influence, window=7) == pytest.approx(alpha, abs=1e-6)


def test_hops_through_independent_matrices_have_the_other_formulas_influence():
    """With I + M A in each layer, over the draws of M; A alone needs a Jacobian."""
    window, gains, draws = 4, (0.5, 1.5, 0.8), 2000
    mean = np.asarray(averaging_layer(window, 0.0)(jnp.eye(T)[None])[0])
    powers = [np.linalg.matrix_power(mean, k)[-1, ::-1] for k in range(4)]
    rng, squares = np.random.default_rng(0), np.zeros(T)
    for _ in range(draws):
        terms = [np.eye(D), *[np.zeros((D, D))] * 3]  # of A^0 ... A^3
        for gain in gains:
            m = gain * rng.normal(size=(D, D)) / D**0.5
            terms = [a + m @ b for a, b in zip(terms, [0 * m, *terms], strict=False)]
        jacobian_SDD = np.einsum("ks,kde->sde", powers, terms)
        squares += np.square(jacobian_SDD).sum((1, 2)) / D
    found = np.sqrt(squares / draws)
    wanted = independent_paths(gains, window)
    np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=0.05)
    assert not found[len(wanted) :].any()


def chain(stages, x):
    for stage in stages:
        x = stage(x)
    return x


def test_the_gain_of_a_hop_is_found_again():
    mean = averaging_layer(8, 0.0)
    m = 0.7 * np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    m -= np.trace(m) / D * np.eye(D)  # at a right angle to the own path
    gain = np.linalg.norm(m) / D**0.5

    def stage(x_BTD):
        return x_BTD + mean(x_BTD) @ jnp.asarray(m)

    with enable_x64(True):
        x_BTD = jnp.zeros((1, T, D), "float64")
        squares = squared_norms([stage], x_BTD, (T - 1,), probes=None)
    influence = influence_by_distance(squares, (T - 1,))
    assert hop_gain(influence, window=8) == pytest.approx(gain, rel=1e-9)
    assert hop_gain(np.array([1.0, 2.0]), window=2) == np.inf


@pytest.mark.parametrize("residual", [True, False])
def test_a_models_influence_is_that_of_its_jacobian(residual):
    config, params, x_BTD = model_of(("swa", "mlstm"), 1)
    x_BTD = x_BTD[:, :12]
    stages = stack_stages(layer_functions(config, params, window=5), residual=residual)
    found = squared_norms(stages, x_BTD, (11, 9), probes=None)
    outputs = jnp.array([11, 9])
    whole = jax.jit(jax.jacobian(lambda x: chain(stages, x)[:, outputs]))(x_BTD)
    wanted = np.square(np.einsum("bqdbse->bqsde", whole)).sum((-1, -2))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-9)
    assert not found[:, 1, 10:].any()


def test_windows_end_where_the_formula_says_and_a_memory_goes_on():
    config, params, x_BTD = model_of(("swa",), 3)
    layers = layer_functions(config, params, window=5)
    stack = AveragingStack(3, 5, 0.5)
    for residual in (True, False):
        stages = stack_stages(layers, residual=residual)
        squares = squared_norms(stages, x_BTD, (T - 1,), probes=2, key=KEY)
        influence = influence_by_distance(squares, (T - 1,))
        assert (influence[: stack.reach] > 0).all()
        assert not influence[stack.reach :].any()
    config, params, x_BTD = model_of(("swa", "mlstm"), 1)
    stages = stack_stages(layer_functions(config, params, window=5))
    squares = squared_norms(stages, x_BTD, (T - 1,), probes=2, key=KEY)
    assert (influence_by_distance(squares, (T - 1,)) > 0).all()


def test_probes_converge_to_the_exact_norms():
    config, params, x_BTD = model_of(("swa",), 2)
    stages = stack_stages(layer_functions(config, params, window=6))
    exact = influence_by_distance(
        squared_norms(stages, x_BTD, (T - 1,), probes=None), (T - 1,)
    )
    errors = []
    for probes in (4, 64, 1024):
        squares = squared_norms(stages, x_BTD, (T - 1,), probes=probes, key=KEY)
        found = influence_by_distance(squares, (T - 1,))
        errors.append(np.abs(np.log(found[:11] / exact[:11])).mean())
    assert errors[2] < 0.02
    assert errors[2] < errors[1] < errors[0] < 0.5
    again = squared_norms(stages, x_BTD, (T - 1,), probes=1024, key=KEY)
    np.testing.assert_array_equal(again, squares)


def test_a_layer_and_its_parts():
    config, params, x_BTD = model_of(("swa",), 2)
    layers = layer_functions(config, params, window=6)
    inputs = layer_inputs(layers, x_BTD)
    assert len(inputs) == 3
    np.testing.assert_array_equal(inputs[0], x_BTD)
    np.testing.assert_allclose(
        inputs[2], chain(stack_stages(layers), x_BTD), rtol=1e-5, atol=1e-6
    )
    of_mixer = squared_norms([layers[1].mixer], inputs[1], (T - 1,), probes=None)
    of_mlp = squared_norms([layers[1].feed_forward], inputs[1], (T - 1,), probes=None)
    assert (of_mixer[..., T - 6 :] > 0).all()
    assert not of_mixer[..., : T - 6].any()
    assert not of_mlp[..., :-1].any()
    shares = path_shares(layers[1], inputs[1], (T - 1,), window=6, probes=None)
    exact = squared_norms(layer_stages(layers[1]), inputs[1], (T - 1,), probes=None)
    influence = influence_by_distance(exact, (T - 1,))
    assert shares.jacobian == own_path_share(influence, window=6)
    assert shares.gain == hop_gain(influence, window=6)
    branch = layers[1].mixer(inputs[1])
    assert shares.stream == pytest.approx(stream_share(inputs[1], branch), rel=1e-5)
    assert 0 < shares.jacobian < 1
    assert 0 < shares.stream < 1


def test_queries_with_less_past_count_where_they_have_it():
    squares_BQT = np.zeros((1, 2, 4))
    squares_BQT[0, 0] = [4.0, 4.0, 0.0, 0.0]  # query 1
    squares_BQT[0, 1] = [1.0, 1.0, 2.0, 8.0]  # query 3
    found = influence_by_distance(squares_BQT, (1, 3))
    np.testing.assert_allclose(found**2, [6.0, 3.0, 1.0, 1.0])


def test_shares_of_lengths():
    assert stream_share(np.array([3.0, 4.0]), np.array([0.0, 5.0])) == 0.5
    assert stream_share(np.ones(4), np.zeros(4)) == 1.0
    with pytest.raises(ValueError, match="above zero"):
        stream_share(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "at least one function"),
        ({"queries": ()}, "queries within 0 ... 39; got 1 functions, queries"),
        ({"queries": (40,)}, r"queries \(40,\)"),
        ({"queries": (-1,)}, r"queries \(-1,\)"),
        ({"probes": 0, "key": KEY}, "at least one, and a key"),
        ({"probes": 3}, "key=none"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    given = {"stages": [jnp.sin], "queries": (3,), "probes": None, "key": None}
    given |= changes
    stages, queries = given.pop("stages"), given.pop("queries")
    with pytest.raises(ValueError, match=message):
        squared_norms(stages, jnp.zeros((1, T, D)), queries, **given)


def test_a_window_of_one_token_has_no_two_paths():
    for share in (own_path_share, hop_gain):
        with pytest.raises(ValueError, match="at least 2 tokens"):
            share(np.array([1.0, 0.5]), window=1)
        with pytest.raises(ValueError, match="above zero"):
            share(np.zeros(4), window=4)
