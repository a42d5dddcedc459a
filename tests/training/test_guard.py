"""The guard: what it lets pass, what it remembers, and that a skip touches nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.training.config import GuardConfig, LossConfig, OptimizerConfig
from swa_jax.training.guard import initial_guard, judge
from swa_jax.training.incidents import describe_documents, incident_of
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.recorder import numbers_of_step
from swa_jax.training.step import StepOptions, initial_state, train_step
from tests.training.tiny import MODEL, random_batch, toy_model

TOKEN_BYTES = np.ones(MODEL.vocab_size, np.int32)


def judged(config, values):
    """The verdicts of steps with these losses and norms, and the last guard."""
    state, verdicts = initial_guard(), []
    step = jax.jit(partial(judge, config))
    for loss, norm in values:
        numbers = (jnp.float32(loss), jnp.float32(norm), jnp.bool_(True))
        verdict, state = step(state, *numbers)
        verdicts.append(verdict)
    return verdicts, state


def ordinary(count, seed=0):
    random = np.random.default_rng(seed)
    losses = 3 + 0.1 * random.standard_normal(count)
    return list(zip(losses, np.exp(0.3 * random.standard_normal(count)), strict=True))


def test_mean_and_variance_are_those_of_weights_that_fall():
    values = ordinary(60)
    _, state = judged(GuardConfig(spike_memory=20), values)
    values_2 = np.array([(loss, np.log(norm)) for loss, norm in values])
    weights = 0.95 ** np.arange(59, -1, -1)[:, None]
    weights /= weights.sum()
    mean_2 = (weights * values_2).sum(0)
    np.testing.assert_allclose(state.mean_2, mean_2, rtol=1e-4, atol=1e-5)
    variance_2 = (weights * (values_2 - mean_2) ** 2).sum(0)
    np.testing.assert_allclose(state.variance_2, variance_2, rtol=1e-3)
    assert int(state.taken) == 60


@pytest.mark.parametrize("jump", [(8.0, 1.0), (3.0, 1e4)], ids=["loss", "gradients"])
def test_a_jump_of_either_is_a_spike(jump):
    config = GuardConfig(spike="skip", spike_memory=20)
    verdicts, state = judged(config, [*ordinary(40), jump, *ordinary(5, seed=1)])
    assert [bool(v.spike) for v in verdicts] == [False] * 40 + [True] + [False] * 5
    assert [bool(v.taken) for v in verdicts] == [True] * 40 + [False] + [True] * 5
    assert (int(state.taken), int(state.skipped)) == (45, 1)


def test_the_first_steps_are_no_spikes():
    config = GuardConfig(spike="skip", spike_memory=20)
    verdicts, _ = judged(config, [*ordinary(19), (100.0, 1e6), (3.0, 1.0)])
    assert all(bool(v.taken) for v in verdicts)


@pytest.mark.parametrize("answer", ["ignore", "warn"])
def test_a_spike_that_is_taken_is_called_one(answer):
    config = GuardConfig(spike=answer, spike_memory=20)
    verdicts, state = judged(config, [*ordinary(40), (9.0, 1.0)])
    assert bool(verdicts[-1].spike)
    assert bool(verdicts[-1].taken)
    assert int(state.taken) == 41


@pytest.mark.parametrize("value", [(np.nan, 1.0), (3.0, np.inf), (np.inf, np.nan)])
@pytest.mark.parametrize("answer", ["stop", "skip"])
def test_what_is_not_finite_is_never_taken_nor_remembered(value, answer):
    config = GuardConfig(nonfinite=answer)
    _, before = judged(config, ordinary(5))
    verdicts, after = judged(config, [*ordinary(5), value])
    assert not bool(verdicts[-1].finite)
    assert not bool(verdicts[-1].spike)
    assert not bool(verdicts[-1].taken)
    np.testing.assert_array_equal(after.mean_2, before.mean_2)
    np.testing.assert_array_equal(after.variance_2, before.variance_2)
    assert (int(after.taken), int(after.skipped)) == (5, 1)


def test_gradients_of_zero_do_not_stay_in_the_mean():
    verdicts, state = judged(GuardConfig(), [(3.0, 0.0), *ordinary(5)])
    assert all(bool(v.taken) for v in verdicts)
    assert np.isfinite(state.mean_2).all()


def poisoned(model, *, window):
    def hidden(params, tokens_BT, /, **options):
        x_BTD, state = model.hidden(params, tokens_BT, **options)
        poison = jnp.where(options["window"] == window, jnp.nan, 0.0)
        return x_BTD + poison, state

    return model._replace(hidden=hidden)


def test_a_skipped_step_leaves_everything_bitwise_as_it_was():
    model = poisoned(toy_model(), window=7)
    optimizer = make_optimizer(OptimizerConfig(ema_decay=0.9), steps=10)
    options = StepOptions(2, LossConfig(z_loss=1e-3), GuardConfig(nonfinite="skip"))
    step = jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options)
    )
    batch = random_batch(4, 16, vocab_size=MODEL.vocab_size)
    state = initial_state(model, optimizer, seed=0)
    for window, skipped in ((4, 0), (7, 1), (7, 2), (5, 2)):
        before, (state, metrics) = (
            state,
            step(state, batch, jnp.int32(window), TOKEN_BYTES),
        )
        assert int(state.step) == int(before.step) + 1
        assert int(metrics.skipped) == skipped
        assert bool(metrics.updated) == (window != 7)
        assert np.isfinite(metrics.param_norm)
        same = [
            np.array_equal(a, b)
            for part in ("params", "opt_state", "mean_params")
            for a, b in zip(
                jax.tree.leaves(getattr(before, part)),
                jax.tree.leaves(getattr(state, part)),
                strict=True,
            )
        ]
        assert all(same) if window == 7 else not any(same)


def test_a_batch_without_a_real_token_touches_nothing_and_counts_nowhere():
    model = toy_model()
    optimizer = make_optimizer(OptimizerConfig(ema_decay=0.9), steps=10)
    options = StepOptions(2, LossConfig(z_loss=1e-3), GuardConfig(spike="stop"))
    step = jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options)
    )
    batch = random_batch(4, 16, vocab_size=MODEL.vocab_size)
    empty = batch | {"segment_ids": np.zeros_like(batch["segment_ids"])}
    state = initial_state(model, optimizer, seed=0)
    before, _ = step(state, batch, jnp.int32(4), TOKEN_BYTES)
    after, metrics = step(before, empty, jnp.int32(4), TOKEN_BYTES)
    assert int(after.step) == int(before.step) + 1
    for one, other in zip(
        jax.tree.leaves(before._replace(step=0)),
        jax.tree.leaves(after._replace(step=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(other, one)
    assert not bool(metrics.updated)
    assert not bool(metrics.spike)
    assert (float(metrics.tokens), int(metrics.skipped)) == (0, 0)
    incident = incident_of(options.guard, numbers_of_step(metrics))
    assert incident is not None
    assert "no real token" in incident.reason
    assert not incident.stops


METRICS = {
    "tokens": 9.0,
    "loss": 3.0,
    "grad_norm": 1.0,
    "updated": 1,
    "spike": 0,
    "skipped": 0,
}


def test_a_good_step_is_no_incident():
    assert incident_of(GuardConfig(), METRICS) is None
    assert incident_of(GuardConfig(spike="ignore"), METRICS | {"spike": 1}) is None


@pytest.mark.parametrize(
    ("config", "metrics", "stops", "words"),
    [
        (
            GuardConfig(),
            {"loss": np.nan, "updated": 0, "skipped": 1},
            True,
            "loss = nan",
        ),
        (
            GuardConfig(nonfinite="skip", max_skips=2),
            {"grad_norm": np.inf, "updated": 0, "skipped": 2},
            False,
            "grad_norm = inf",
        ),
        (
            GuardConfig(nonfinite="skip", max_skips=2),
            {"grad_norm": np.inf, "updated": 0, "skipped": 3},
            True,
            "grad_norm = inf; guard.max_skips=2 steps were skipped before it",
        ),
        (
            GuardConfig(spike="warn", spike_deviations=6),
            {"loss": 9.5, "spike": 1},
            False,
            "loss = 9.5, grad_norm = 1: more than 6 deviations above the mean",
        ),
        (GuardConfig(spike="stop"), {"spike": 1, "updated": 0, "skipped": 1}, True, ""),
    ],
    ids=["stop", "skip", "too many", "warn", "spike"],
)
def test_what_is_said_of_a_step(config, metrics, stops, words):
    incident = incident_of(config, METRICS | metrics)
    assert incident is not None
    assert incident.stops == stops
    assert incident.taken == bool((METRICS | metrics)["updated"])
    assert words in incident.reason


def test_documents_are_named():
    assert describe_documents(["a:1", "b:2"]) == "documents of its batch: a:1, b:2"
    many = describe_documents([f"a:{n}" for n in range(20)])
    assert many.endswith("a:7 and 12 more")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonfinite": "ignore"}, r"nonfinite must be one of \('stop', 'skip'\)"),
        ({"spike": "no"}, "spike must be one of"),
        ({"max_skips": -1}, "max_skips must be an integer >= 0, got -1"),
        ({"spike_deviations": 0.0}, "spike_deviations must be a number from"),
        ({"spike_memory": 1}, "spike_memory must be an integer >= 2"),
    ],
)
def test_wrong_values_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        GuardConfig(**changes)
