"""The gated delta rule: a decaying memory that overwrites what a key held before."""

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.backend import alike, multiplies_in_full
from pallas_kernels.checks import (
    accumulation_dtype,
    check_floating,
    check_segment_ids,
    check_shapes,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.gated_delta_rule.chunked import gated_delta_rule_chunked
from pallas_kernels.gated_delta_rule.reference import gated_delta_rule_reference
from pallas_kernels.gated_delta_rule.triton import gated_delta_rule_triton
from pallas_kernels.linear_attention.state import LinearAttentionState, initial_state
from pallas_kernels.matrix_memory.segments import resets

__all__ = ["LinearAttentionState", "gated_delta_rule", "initial_state"]

FEW_TOKENS = 16  # fewer do not fill a chunk of the kernels, nor a tensor core


def gated_delta_rule(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    log_decay_BTN: jax.Array,
    beta_BTN: jax.Array,
    /,
    *,
    scale: float | None = None,
    state: LinearAttentionState | None = None,
    segment_ids: jax.Array | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearAttentionState]:
    """Returns what each query reads of the memory, out_BTNP, and the last state. Per
    value head

    S_t = exp(log_decay_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    out_t = scale S_t^T q_t

    - `k_BTKH`: the caller normalises it: with |k| = 1 and beta in [0, 2] the memory
      stays bounded, with beta_t |k_t|^2 > 2 it may grow from token to token.
    - `log_decay_BTN`: any floating dtype; 0 keeps all (the delta rule without a gate).
    - `beta_BTN`: any floating dtype; 1 replaces what the key held, 0 writes nothing,
      above 1 the transition has negative eigenvalues.
    - `scale`: a number, not traced; None is 1 / sqrt(H).
    - `state`: the memory before the first token; None is the empty memory.
    - `segment_ids`: integers of shape (B, T). Where the id differs from the token
      before it (the state's last token included) the memory is emptied exactly.
    - `precision`: "highest" multiplies float32 arrays in full. None leaves that to
      jax.default_matmul_precision in the GPU kernels, which round them to TF32 unless
      it says "highest"; the other forms always multiply in full.
    - `implementation`: None chooses; "triton" runs Pallas kernels on a GPU; "chunked"
      is plain JAX, costs O(T C) too, and comes first for a few tokens; "reference"
      steps.

    N is a multiple of K: value heads n*G to n*G + G - 1 share query/key head n. Sums,
    gates and states are in float32 (float64 for float64); matmuls take the dtype of q.
    Gradients are exact for every input, the state in and the state out. Source: Yang et
    al. 2025, eq. 10, arXiv:2412.06464; without decay Yang et al. 2024,
    arXiv:2406.06484.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state, segment_ids = jax.tree.map(
        jnp.asarray,
        (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state, segment_ids),
    )
    size = _check(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state)
    check_segment_ids("gated_delta_rule", "segment_ids", segment_ids, q_BTKH.shape[:2])
    dtype, empty = accumulation_dtype(q_BTKH.dtype), state is None
    if state is None:
        widths = {"key_width": size["H"], "value_width": size["P"]}
        state = initial_state(batch=size["B"], heads=size["N"], **widths)
    resets_BT, segment_id_B = resets(segment_ids, state.segment_id_B)
    gates = (log_decay_BTN.astype(dtype), beta_BTN.astype(dtype))
    s_BNHP = state.s_BNHP.astype(dtype)
    arrays = alike((q_BTKH, k_BTKH, v_BTNP, *gates, resets_BT, s_BNHP))
    scale = size["H"] ** -0.5 if scale is None else float(scale)
    options = {"precise": multiplies_in_full(precision), "empty": empty}
    forms = {
        "triton": lambda: gated_delta_rule_triton(*arrays, scale=scale, **options),
        "chunked": lambda: gated_delta_rule_chunked(*arrays, scale=scale),
        "reference": lambda: gated_delta_rule_reference(*arrays, scale=scale),
    }
    if q_BTKH.shape[1] <= FEW_TOKENS:
        forms = {name: forms[name] for name in ("chunked", "triton", "reference")}
    out_BTNP, s_BNHP = dispatch(
        "gated_delta_rule", forms, implementation=implementation
    )
    return out_BTNP, LinearAttentionState(s_BNHP, segment_id_B)


def _check(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state):
    """Returns the size of each dimension; raises ValueError on a broken contract."""
    name = "gated_delta_rule"
    arrays = {"q_BTKH": q_BTKH, "k_BTKH": k_BTKH, "v_BTNP": v_BTNP}
    gates = {"log_decay_BTN": log_decay_BTN, "beta_BTN": beta_BTN}
    memory = {}
    if state is not None:
        memory = {
            "state.s_BNHP": state.s_BNHP,
            "state.segment_id_B": state.segment_id_B,
        }
    size = check_shapes(name, {**arrays, **gates, **memory})
    check_floating(name, arrays)
    for gate, array in gates.items():
        check_floating(name, {gate: array})
    if size["N"] % size["K"]:
        raise ValueError(
            f"{name} wants the number of value heads to be a multiple of the number of "
            f"query/key heads; got N = {size['N']}, K = {size['K']}."
        )
    return size
