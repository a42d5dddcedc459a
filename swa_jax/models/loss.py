"""The loss of a language model."""

import jax
import jax.numpy as jnp


def next_token_nll(logits_BTV: jax.Array, targets_BT: jax.Array, /) -> jax.Array:
    """Returns the negative log likelihood of each target, nats per token, float32.

    nll_bt = logsumexp_v logits_btv - logits_bt[target_bt]; nothing is masked or
    averaged. A target outside 0..V-1 gives NaN.

    Raises:
      ValueError: targets that are no integers, or shapes that do not belong together.
    """
    if not jnp.issubdtype(targets_BT.dtype, jnp.integer):
        raise ValueError(
            f"next_token_nll wants targets in an integer dtype; got {targets_BT.dtype}."
        )
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != targets_BT.shape:
        raise ValueError(
            "next_token_nll wants logits (B, T, V) and targets (B, T); got "
            f"{logits_BTV.shape} and {targets_BT.shape}."
        )
    logits_BTV = logits_BTV.astype(jnp.float32)
    known_BT = (targets_BT >= 0) & (targets_BT < logits_BTV.shape[-1])
    index_BT1 = jnp.where(known_BT, targets_BT, 0)[..., None]
    target_BT = jnp.take_along_axis(logits_BTV, index_BT1, axis=-1)[..., 0]
    target_BT = jnp.where(known_BT, target_BT, jnp.nan)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
