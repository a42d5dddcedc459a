"""Every mixer's shape: branches, a local mixer on some of them, a global one, out.

    branches = W_in x;  q, k, v, ... = local(q, k, v, ...);  y = W_out global(branches)

Source: Zhang 2025, "Rethinking SWA", section 4; the same layout is that of Mamba-2,
GLA, Gated DeltaNet, RetNet and, without a local mixer, of the Transformer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from swa_jax.layers.branches import Branch, Branches, split
from swa_jax.layers.first_values import FirstValues
from swa_jax.layers.initialization import residual_std
from swa_jax.layers.linear import Linear


class MixerState(NamedTuple):
    """What a mixer remembers: of its local part (None without one) and its global."""

    local: Any
    mixer: Any


class GlobalMixer(Protocol):
    """What a block asks of a global mixer.

    `branches`: what it wants projected, those of the local mixer first; `activation`:
    SiLU follows the local mixer, whichever it is; `output_width`: of y_BTM.
    """

    branches: tuple[Branch, ...]
    activation: bool
    output_width: int

    def __call__(
        self,
        branches: dict[str, jax.Array],
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        depth: float | jax.Array,
        state: Any,
    ) -> tuple[jax.Array, Any]: ...

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]: ...


@runtime_checkable
class MixesValues(Protocol):
    """A global mixer that mixes its values with those of a model's first such layer."""

    def mix_values(
        self, value_BTM: jax.Array, x_BTD: jax.Array, first: FirstValues, /
    ) -> tuple[jax.Array, FirstValues]: ...


class LocalMixer(Protocol):
    """What a block asks of a local mixer; `activation`: SiLU belongs to it."""

    activation: bool

    def __call__(
        self,
        x_BTM: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None,
        state: Any,
    ) -> tuple[jax.Array, Any]: ...


class ParallelBlock(nnx.Module):
    """y = W_out global(local(W_in x)), the state of both going in and coming out."""

    def __init__(
        self,
        width: int,
        mixer: GlobalMixer,
        make_local: Callable[[tuple[int, ...]], LocalMixer] | None,
        *,
        layers: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`make_local` makes the local mixer of branches of the given widths; `layers`
        is the depth of the model, which scales the output projection."""
        mixed = tuple(branch for branch in mixer.branches if branch.local)
        self.names = tuple(branch.name for branch in mixed)
        self.widths = tuple(branch.width for branch in mixed)
        self.branches = Branches(width, mixer.branches, dtype=dtype, rngs=rngs)
        self.local_mixer = None if make_local is None else make_local(self.widths)
        self.global_mixer = mixer
        std = residual_std(width, layers)
        self.out = Linear(mixer.output_width, width, std=std, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        state: MixerState | None,
        depth: float | jax.Array = 0.0,
        first_values: FirstValues | None = None,
    ) -> tuple[jax.Array, MixerState | None, FirstValues | None]:
        """Returns y_BTD, the state after the last token and what goes to the next layer
        beside y (None in, None out).

        `depth` is 0 in a model's first layer and 1 in its last. A mixer without
        positions, a window or a use for its depth is called with all the same. Without
        `first_values` a layer is a model's first.
        """
        options = {"positions_BT": positions_BT, "segment_ids_BT": segment_ids_BT}
        branches = self.branches(x_BTD)
        local, mixer = (None, None) if state is None else state
        mixed, local = self._mix_locally(branches, state=local, **options)
        branches |= mixed
        if first_values is not None and isinstance(self.global_mixer, MixesValues):
            branches["value"], first_values = self.global_mixer.mix_values(
                branches["value"], x_BTD, first_values
            )
        y_BTM, mixer = self.global_mixer(
            branches, x_BTD, window=window, depth=depth, state=mixer, **options
        )
        after = None if state is None else MixerState(local, mixer)
        return self.out(y_BTM), after, first_values

    def statistics(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Returns what the global mixer says of its gates or logits: scalars by name.

        A name ends in what becomes of it over layers: _mean, _min or _max. Its cost is
        quadratic in the tokens.
        """
        options = {"positions_BT": positions_BT, "segment_ids_BT": segment_ids_BT}
        branches = self.branches(x_BTD)
        mixed, _ = self._mix_locally(branches, state=None, **options)
        return self.global_mixer.statistics(
            branches | mixed, x_BTD, window=window, **options
        )

    def _mix_locally(
        self, branches: dict[str, jax.Array], *, state: Any, **options: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Returns the branches of the local mixer behind it, and its state."""
        activation = self.global_mixer.activation
        if self.local_mixer is None:
            if not activation:
                return {}, state
            return {name: jax.nn.silu(branches[name]) for name in self.names}, state
        x_BTM = jnp.concatenate([branches[name] for name in self.names], axis=-1)
        x_BTM, state = self.local_mixer(x_BTM, state=state, **options)
        if activation or self.local_mixer.activation:
            x_BTM = jax.nn.silu(x_BTM)
        return split(x_BTM, self.names, self.widths), state
