"""The forms of this repository, and the truth: the chunked form in float64."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import backend
from pallas_kernels.mlstm import MLSTMState, mlstm

from .cases import Case, Inputs, draw
from .errors import errors_of, largest
from .outputs import GRADIENTS, LOSSES, NORM_EPS, VALUES, Outputs

# "triton" takes float32 products by TF32, "triton-highest" in full.
OURS = ("reference", "chunked", "triton", "triton-highest")
LONGEST_INTERPRETED = 1024  # tokens
PIECE = 256  # tokens, whose states the recurrence keeps for its gradients
SAME = 1e-11  # relative: another order of the same float64 sums


def measure_ours(name: str, inputs: Inputs, weights_BTNP: jax.Array, /) -> Outputs:
    """Returns the outputs of one of OURS.

    Raises:
      NotImplementedError: the form does not serve this call on this device.
    """
    implementation, _, precision = name.partition("-")
    tokens, dtype = inputs.q_BTNH.shape[1], inputs.q_BTNH.dtype
    on_gpu = backend.target_platform() == "gpu"
    if precision and not (on_gpu and dtype == jnp.float32):
        raise NotImplementedError("differs for float32 on a GPU only")
    contexts = contextlib.ExitStack()
    if implementation == "triton" and not on_gpu:
        if tokens > LONGEST_INTERPRETED:
            raise NotImplementedError(f"interpreted up to {LONGEST_INTERPRETED} tokens")
        contexts.enter_context(backend.interpreted())
    if precision:
        contexts.enter_context(jax.default_matmul_precision(precision))
    with contexts:
        return _on_host(_outputs(inputs, weights_BTNP, implementation=implementation))


def measure_truth(
    inputs: Inputs, weights_BTNP: jax.Array, /, *, implementation: str = "chunked"
) -> Outputs:
    """Returns the outputs of the same inputs in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype("float64"), (inputs, weights_BTNP))
        return _on_host(_outputs(*wide, implementation=implementation))


def check_truth(case: Case, /) -> float:
    """Returns the largest relative difference between the truth of the case and the
    recurrence in float64.

    Raises:
      FloatingPointError: it is more than rounding.
    """
    truth = measure_truth(*draw(case))
    recurrence = measure_truth(*draw(case), implementation="reference")
    difference = largest(errors_of(recurrence, truth))
    if not difference <= SAME:
        raise FloatingPointError(
            f"The chunked form in float64 is no truth: it is {difference:.1e} from the "
            f"recurrence at {case}."
        )
    return difference


@partial(jax.jit, static_argnames=("implementation",))
def _outputs(inputs, weights_BTNP, *, implementation):
    """Returns the values, and the gradients of both losses: of h, and of the norm of it
    that the operation makes for the layer."""
    pullbacks = {}
    for loss, how in (("norm", {"norm_eps": NORM_EPS}), ("projection", {"wide": True})):
        read = partial(_read, implementation=implementation, **how)
        h_BTNP, pullbacks[loss], state = jax.vjp(read, inputs, has_aux=True)
    weights_BTNP = weights_BTNP.astype(h_BTNP.dtype)
    gradients = {loss: pullbacks[loss](weights_BTNP)[0] for loss in LOSSES}
    return (h_BTNP, *state[:3]), gradients


def _read(inputs, *, implementation, **how):
    """Returns h_BTNP, or its norm, and the last state."""
    *tokens, c_BNHP, n_BNH, m_BN = inputs
    segment_B = jnp.zeros(m_BN.shape[:1], jnp.int32)
    state = MLSTMState(c_BNHP, n_BNH, m_BN, segment_B)
    form = partial(mlstm, implementation=implementation, **how)
    if implementation == "reference":
        return _in_pieces(form, tokens, state)
    return form(*tokens, state=state)


def _in_pieces(form, tokens, state):
    """Returns h_BTNP and the last state, of as many tokens as memory does not hold the
    states of."""

    @jax.checkpoint
    def piece(state, tokens):
        h_BTNP, state = form(*tokens, state=state)
        return state, h_BTNP

    whole = tokens[0].shape[1] // PIECE * PIECE
    pieces = [
        jnp.moveaxis(x[:, :whole].reshape(x.shape[0], -1, PIECE, *x.shape[2:]), 1, 0)
        for x in tokens
    ]
    state, h_JBTNP = jax.lax.scan(piece, state, pieces)
    h_BJTNP = jnp.moveaxis(h_JBTNP, 0, 1)
    h_BTNP = h_BJTNP.reshape(h_BJTNP.shape[0], whole, *h_BJTNP.shape[3:])
    if whole < tokens[0].shape[1]:
        state, rest_BTNP = piece(state, [x[:, whole:] for x in tokens])
        h_BTNP = jnp.concatenate([h_BTNP, rest_BTNP], axis=1)
    return h_BTNP, state


def _on_host(outputs):
    """Returns the outputs in float64, which holds what any dtype does."""
    values, gradients = jax.tree.map(lambda x: np.asarray(x, np.float64), outputs)
    return Outputs(
        dict(zip(VALUES, values, strict=True)),
        {k: dict(zip(GRADIENTS, g, strict=True)) for k, g in gradients.items()},
    )
