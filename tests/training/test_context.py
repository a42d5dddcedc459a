"""Every kind of model with its tokens cut over devices: the result of one device, and
no bytes between devices that grow with the row."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.config import LocalConfig, RecurrentConfig
from swa_jax.models.language_model import language_model
from swa_jax.models.mixer_config import GLOBAL_KINDS
from swa_jax.training.config import LossConfig, MeshConfig, OptimizerConfig
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.sharding import (
    abstract_state,
    batch_sharding,
    jit_train_step,
    make_mesh,
    on_mesh,
    token_sharding,
)
from swa_jax.training.step import StepOptions, loss_and_gradients
from tests.models.conftest import random_params
from tests.tolerances import assert_near, whole_maps
from tests.training.tiny import MODEL, random_batch

LARGEST_WINDOW = 8
MIXERS = dataclasses.replace(
    MODEL,
    periods=1,
    recurrent=RecurrentConfig(heads=2, key_width=4, value_width=8),
    local=LocalConfig(window=3, rank=2, head_width=4, bias=True),
)
LOCALS = ("short_swa+mamba2", "canon+gated_deltanet", "short_conv+attention")
MESHES = {
    "context": MeshConfig(data=1, context=4),
    "all": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}
TOKEN_BYTES = np.ones(MODEL.vocab_size, np.int32)


@cache
def loss_of(kind, mesh_name):
    """Returns (loss, gradients) of a model of one kind on a mesh; None: one device."""
    periods = (
        2 if "rwkv7" in kind else 1
    )  # its second layer reads the first one's values
    config = dataclasses.replace(MIXERS, pattern=(kind,), periods=periods)
    model, params = language_model(config), random_params(config)
    batch = random_batch(4, 16, vocab_size=config.vocab_size)
    options = StepOptions(2, LossConfig(chunk=3), largest_window=LARGEST_WINDOW)
    if mesh_name is not None:
        mesh = make_mesh(MESHES[mesh_name])
        model = on_mesh(model, mesh, largest_window=LARGEST_WINDOW)
        options = options._replace(row_sharding=token_sharding(mesh))
        batch = jax.device_put(batch, batch_sharding(mesh))
    run = jax.jit(lambda *a: loss_and_gradients(model, options, *a))
    sums, gradients = run(params, batch, jnp.int32(5))
    return jax.tree.map(np.asarray, (sums, gradients))


def cases():
    """Yields kinds and meshes; a quick pass sees both meshes and what travels: edges,
    keys on a ring, states."""
    quick = {("swa", "all"), ("attention", "context"), ("mlstm", "all")}
    for kind in (*GLOBAL_KINDS, *LOCALS):
        for mesh in MESHES:
            marks = () if (kind, mesh) in quick else pytest.mark.slow
            yield pytest.param(kind, mesh, marks=marks, id=f"{kind}-{mesh}")


@pytest.mark.parametrize(("kind", "mesh"), list(cases()))
def test_a_cut_row_has_the_loss_and_the_gradients_of_a_whole_one(kind, mesh):
    found, wanted = (whole_maps(loss_of(kind, name)) for name in (mesh, None))
    # Both are rounded: each is to be within the table's error of what lies between.
    between = jax.tree.map(lambda x, y: (np.float64(x) + y) / 2, found, wanted)
    assert_near(found, between, dtype="float32")


SENT = re.compile(r"= (.+?) (all-\w+|reduce-scatter|collective-permute)(-start)?\(")
ARRAY = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")


def bytes_sent(kind, length):
    """Returns the bytes of the results of every collective of a training step."""
    config = dataclasses.replace(MIXERS, pattern=(kind,))
    model, optimizer = (
        language_model(config),
        make_optimizer(OptimizerConfig(), steps=9),
    )
    abstract = abstract_state(model, optimizer, make_mesh(MESHES["context"]))
    options = StepOptions(loss=LossConfig(chunk=8), largest_window=LARGEST_WINDOW)
    step = jit_train_step(model, optimizer, abstract, options)
    batch = random_batch(2, length, vocab_size=config.vocab_size)
    program = step.lower(abstract, batch, jnp.int32(3), TOKEN_BYTES).compile()
    found = SENT.findall(str(program.as_text()))
    assert found
    return sum(
        int(bits) // 8 * int(np.prod([int(n) for n in sizes.split(",") if n]))
        for shapes, *_ in found
        for bits, sizes in ARRAY.findall(shapes)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["swa", "mlstm", "short_conv+gla", "short_swa+mamba2", "gated_deltanet"]
)
def test_what_a_step_sends_does_not_grow_with_the_row(kind):
    assert bytes_sent(kind, 128) == bytes_sent(kind, 64)
