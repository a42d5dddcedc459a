"""One optimizer step: its loss, accumulation, and one compilation for all windows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.language_model import language_model
from swa_jax.training.config import LossConfig, OptimizerConfig
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.step import StepOptions, initial_state, split_rows, train_step
from tests.training.tiny import MODEL, random_batch, toy_model

TOKEN_BYTES = (np.arange(MODEL.vocab_size) % 4).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(OptimizerConfig(peak_lr=1e-2), steps=10)


def batch_of(rows, seed=0):
    return random_batch(rows, 16, vocab_size=MODEL.vocab_size, seed=seed)


def jit_step(model, optimizer, accumulation, **options):
    options = StepOptions(accumulation, **options)
    return jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options)
    )


def test_loss_is_the_mean_over_the_real_targets(model, optimizer):
    state = initial_state(model, optimizer, seed=0)
    batch = batch_of(4)
    step = jit_step(model, optimizer, 1)
    after, metrics = step(state, batch, jnp.int32(8), TOKEN_BYTES)
    logits, _ = model.apply(
        state.params, batch["tokens"], window=8, segment_ids=batch["segment_ids"]
    )
    log_p = np.float64(jax.nn.log_softmax(logits))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    real = batch["segment_ids"] > 0
    assert 0 < real.sum() < real.size
    bytes_ = TOKEN_BYTES[batch["targets"][real]].sum()
    assert float(metrics.loss) == pytest.approx(nll[real].mean(), rel=1e-5)
    bits = nll[real].sum() / np.log(2) / bytes_
    assert float(metrics.bits_per_byte) == pytest.approx(bits, rel=1e-5)
    assert int(metrics.tokens) == real.sum()
    assert int(after.step) == 1
    norms = [np.linalg.norm(np.ravel(leaf)) for leaf in jax.tree.leaves(after.params)]
    assert float(metrics.param_norm) == pytest.approx(np.linalg.norm(norms))
    assert float(metrics.lr) == float(optimizer.learning_rate(jnp.int32(0)))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_of_each_source_is_that_of_its_rows(model, optimizer, accumulation):
    state = initial_state(model, optimizer, seed=0)
    batch = batch_of(8)
    sources = np.array([0, 2, 2, 0, 0, 2, 0, 0], np.int32)
    mixed = jit_step(model, optimizer, accumulation, sources=3)
    _, metrics = mixed(state, batch | {"sources": sources}, jnp.int32(8), TOKEN_BYTES)
    alone = jit_step(model, optimizer, 1)
    for source in (0, 2):
        rows = {name: value[sources == source] for name, value in batch.items()}
        _, wanted = alone(state, rows, jnp.int32(8), TOKEN_BYTES)
        tokens = metrics.source_tokens[source]
        assert int(tokens) == int(wanted.tokens)
        loss = float(metrics.source_nll[source] / tokens)
        assert loss == pytest.approx(float(wanted.loss), rel=1e-5)
    assert metrics.source_tokens[1] == metrics.source_nll[1] == 0
    assert float(sum(metrics.source_tokens)) == float(metrics.tokens)


def test_z_loss_moves_the_gradients_and_not_the_loss(model, optimizer):
    state = initial_state(model, optimizer, seed=0)
    found = [
        jit_step(model, optimizer, 2, loss=LossConfig(chunk=5, z_loss=z_loss))(
            state, batch_of(4), jnp.int32(8), TOKEN_BYTES
        )[1]
        for z_loss in (0.0, 0.1)
    ]
    assert float(found[0].loss) == float(found[1].loss)
    assert float(found[1].grad_norm) > 1.01 * float(found[0].grad_norm)


def test_gradient_norms_by_kind_add_up(model, optimizer):
    state = initial_state(model, optimizer, seed=0)
    step = jit_step(model, optimizer, 1)
    _, metrics = step(state, batch_of(4), jnp.int32(8), TOKEN_BYTES)
    norms = metrics.statistics
    assert set(norms) == {f"{n}/grad_norm" for n in ("embed", "swa", "head")}
    total = np.sqrt(sum(float(norm) ** 2 for norm in norms.values()))
    assert float(metrics.grad_norm) == pytest.approx(total, rel=1e-5)


def test_padding_changes_nothing(model, optimizer):
    state = initial_state(model, optimizer, seed=0)
    batch = batch_of(2)
    padded = {
        name: np.concatenate([rows, np.full_like(rows, 5)])
        for name, rows in batch.items()
    }
    padded["segment_ids"][2:] = 0
    step = jit_step(model, optimizer, 1)
    _, one_metrics = step(state, batch, jnp.int32(8), TOKEN_BYTES)
    _, two_metrics = step(state, padded, jnp.int32(8), TOKEN_BYTES)
    assert float(one_metrics.tokens) == float(two_metrics.tokens)
    np.testing.assert_allclose(one_metrics.loss, two_metrics.loss, rtol=1e-6)
    np.testing.assert_allclose(one_metrics.grad_norm, two_metrics.grad_norm, rtol=1e-5)


def check_metrics(found, wanted):
    for (path, want), have in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=2e-5, err_msg=str(path))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_large_batch(model, optimizer, accumulation):
    # Microbatches have different numbers of real targets, so a mean of their means
    # would differ in the second digit.
    state = initial_state(model, optimizer, seed=0)
    large = pieces = state
    whole_step = jit_step(model, optimizer, 1)
    piece_step = jit_step(model, optimizer, accumulation)
    for seed in range(3):
        batch = batch_of(8, seed=seed)
        large, large_metrics = whole_step(large, batch, jnp.int32(5), TOKEN_BYTES)
        pieces, metrics = piece_step(pieces, batch, jnp.int32(5), TOKEN_BYTES)
        check_metrics(metrics, large_metrics)


def test_gradients_do_not_depend_on_the_pieces(model):
    """Adam hides the scale of a gradient; plain descent shows it."""
    descent = make_optimizer(OptimizerConfig(), steps=10)._replace(
        init=lambda params: (),
        update=lambda gradients, state, params, step: (gradients, state),
    )
    state = initial_state(model, descent, seed=0)
    batch = batch_of(8)
    large, _ = jit_step(model, descent, 1)(state, batch, jnp.int32(5), TOKEN_BYTES)
    pieces, _ = jit_step(model, descent, 4)(state, batch, jnp.int32(5), TOKEN_BYTES)
    for want, got in zip(
        jax.tree.leaves(large.params), jax.tree.leaves(pieces.params), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_split_rows_keeps_every_row_and_takes_from_each_block():
    batch = {"tokens": jnp.arange(24).reshape(12, 2)}
    pieces = np.asarray(split_rows(batch, pieces=3)["tokens"])
    assert pieces.shape == (3, 4, 2)
    assert sorted(pieces.reshape(-1, 2).tolist()) == batch["tokens"].tolist()
    blocks = batch["tokens"].reshape(4, 3, 2)  # four devices with three rows each
    for piece in pieces:
        for device, row in enumerate(piece):
            assert row.tolist() in blocks[device].tolist()


def counting(model):
    """Returns the model, and a list that grows whenever `hidden` is traced."""
    traces = []

    def hidden(*arguments, **options):
        traces.append(1)
        return model.hidden(*arguments, **options)

    return model._replace(hidden=hidden), traces


def test_one_compilation_serves_every_window(model, optimizer):
    counted, traces = counting(model)
    state = initial_state(counted, optimizer, seed=0)
    step = jit_step(counted, optimizer, 1)
    losses = []
    for window in (1, 5, 16, 100, 5):
        _, metrics = step(state, batch_of(4), jnp.int32(window), TOKEN_BYTES)
        losses.append(float(metrics.loss))
    assert len(traces) == 1
    assert losses[1] == losses[4]
    assert len(set(losses[:3])) == 3  # the window does reach the model
    assert losses[2] == losses[3]  # a window beyond the row is full attention


def test_training_learns_a_fixed_batch(model):
    optimizer = make_optimizer(
        OptimizerConfig(peak_lr=1e-2, clip_norm=1.0, warmup_fraction=0.1), steps=40
    )
    state = initial_state(model, optimizer, seed=0)
    step = jit_step(model, optimizer, 2)
    losses = []
    for window in [4, 16] * 20:
        state, metrics = step(state, batch_of(4), jnp.int32(window), TOKEN_BYTES)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_language_model_accumulates_and_compiles_once():
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2), steps=10)
    real, traces = counting(language_model(MODEL))
    state = initial_state(real, optimizer, seed=0)
    whole, pieces = jit_step(real, optimizer, 1), jit_step(real, optimizer, 2)
    losses = []
    for window in (1, 5, 16):
        _, metrics = whole(state, batch_of(4), jnp.int32(window), TOKEN_BYTES)
        _, other = pieces(state, batch_of(4), jnp.int32(window), TOKEN_BYTES)
        check_metrics(other, metrics)
        losses.append(float(metrics.loss))
    assert len(traces) == 2  # one for each of the two programs
    assert len(set(losses)) == 3
    assert losses[0] == pytest.approx(np.log(MODEL.vocab_size), rel=0.1)
