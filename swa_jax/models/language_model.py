"""The language model: embedding, scanned periods of layers, norm, head."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.sharded import placed
from swa_jax.layers.attend import served_window
from swa_jax.layers.functional import Functional, functional
from swa_jax.layers.initialization import input_std
from swa_jax.layers.linear import Embedding, Linear
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.soft_cap import soft_cap
from swa_jax.models.block import block
from swa_jax.models.config import ModelConfig
from swa_jax.models.mixers import initial_mixer_state
from swa_jax.models.periods import (
    Stream,
    apart,
    depths,
    into_first_layer,
    rematerialised,
    through,
    through_periods,
)
from swa_jax.models.statistics import layer_statistics

Params = dict[str, Any]


class ModelState(NamedTuple):
    """What a model remembers of the tokens that it has read.

    `position_B` is the position of the next token, `segment_id_B` the segment of the
    last one; `layers` holds the mixers' states under the names of `params["periods"]`,
    each with a leading axis of periods, or a tuple of periods (`Model.for_decoding`).
    """

    position_B: jax.Array
    segment_id_B: jax.Array
    layers: Any


class Hidden(Protocol):
    """The signature of `Model.hidden`; `language_model` says what it returns."""

    def __call__(
        self,
        params: Params,
        tokens_BT: jax.Array,
        /,
        *,
        window: int | jax.Array,
        segment_ids: jax.Array | None = None,
        state: ModelState | None = None,
    ) -> tuple[jax.Array, ModelState | None]: ...


class InitState(Protocol):
    """The signature of `Model.init_state`; `language_model` says what it returns."""

    def __call__(self, batch: int, /, *, window: int, context: int) -> ModelState: ...


class Statistics(Protocol):
    """The signature of `Model.statistics`; `language_model` says what it returns."""

    def __call__(
        self,
        params: Params,
        tokens_BT: jax.Array,
        /,
        *,
        window: int | jax.Array,
        segment_ids: jax.Array | None = None,
    ) -> dict[str, jax.Array]: ...


def no_statistics(
    params: Params, tokens_BT: jax.Array, /, **options: Any
) -> dict[str, jax.Array]:
    """Returns nothing, for a model that has nothing to say of its layers."""
    return {}


def unchanged(params: Params, state: Any, /) -> tuple[Params, Any]:
    """Returns both as they are, for a model that decodes with what it reads with."""
    return params, state


class Model(NamedTuple):
    """A language model as pure functions of a plain nested dict of float32 arrays.

    The head, which reads `params["head"]` alone, stands apart from the rest, so that a
    loss can take it to some of the tokens at a time.
    """

    init: Callable[[jax.Array], Params]
    hidden: Hidden
    head: Callable[[Params, jax.Array], jax.Array]
    init_state: InitState
    statistics: Statistics = no_statistics
    for_decoding: Callable[[Params, Any], tuple[Params, Any]] = unchanged

    def apply(
        self,
        params: Params,
        tokens_BT: jax.Array,
        /,
        *,
        window: int | jax.Array,
        segment_ids: jax.Array | None = None,
        state: ModelState | None = None,
    ) -> tuple[jax.Array, ModelState | None]:
        """Returns the logits_BTV of each next token, and the state after the last."""
        x_BTD, state = self.hidden(
            params, tokens_BT, window=window, segment_ids=segment_ids, state=state
        )
        return self.head(params["head"], x_BTD), state


@functools.cache
def language_model(config: ModelConfig, /) -> Model:
    """Returns the functions of the model that a config describes.

    Equal configs give the same functions, so that what was compiled for one model
    serves every other of its shape.

    - `init(key)`: the parameters. Everything under "periods" has a leading axis of
      periods.
    - `hidden(params, tokens_BT, *, window, segment_ids, state)`: x_BTD behind the final
      norm, and the state after the last token (None in, None out).
      `window`, in tokens and the reading token included, is for the layers "swa"; a
      traced scalar serves every window with one compilation. Tokens see their own
      segment alone; with a state, no segment ids means that the last segment goes on.
      Rotary positions run on through segments: only differences count.
    - `head(params["head"], x_BTD)`: the float32 logits_BTV of each next token;
      `apply`, with the arguments of `hidden`, is the two together.
    - `init_state(batch, *, window, context)`: the state before the first token. Layers
      "swa" keep window - 1 tokens, which serves windows up to `window`; layers
      "attention" read at least the last `context` tokens and those of the call.
    - `statistics(params, tokens_BT, *, window, segment_ids)`: scalars of the gates,
      normalisers and attention logits of each kind of layer (`layer_statistics`), at a
      cost quadratic in the tokens.
    - `for_decoding(params, state)`: the same with each period apart from the others,
      which `hidden` and `apply` take too. A token then costs what its layers read and
      write; a scan over periods copies their parameters and states out of the stack,
      and the states back. Every period is compiled by itself, and under `jit` the
      parameters are held twice.

    They raise ValueError for tokens, segment ids, a state, a window or parameters that
    do not fit the model or each other; a traced window larger than the one that the
    state was made for goes unnoticed, and reads what the state kept.
    """
    return Model(
        functools.partial(_init, config),
        functools.partial(_hidden, config),
        functools.partial(_head, config),
        functools.partial(_init_state, config),
        functools.partial(_statistics, config),
        functools.partial(_for_decoding, config),
    )


def layer_names(config: ModelConfig, /) -> tuple[str, ...]:
    """Returns the names of one period's layers, such as ("0_swa", "1_canon_mlstm")."""
    kinds = (name.replace("+", "_") for name in config.pattern)
    return tuple(f"{index}_{kind}" for index, kind in enumerate(kinds))


@functools.cache
def _parts(config: ModelConfig) -> tuple[dict[str, Functional], dict[str, Functional]]:
    """Returns what stands around the periods, and the layers of one period."""
    V, D = config.vocab_size, config.d_model
    options = {"std": input_std(D), "dtype": config.dtype}
    make = {
        "embed": lambda rngs: Embedding(V, D, rngs=rngs, **options),
        "final_norm": lambda rngs: RMSNorm(D, eps=config.norm_eps),
        "head": lambda rngs: Linear(
            D, V, output_dtype=jnp.float32, rngs=rngs, **options
        ),
    }
    outside = {name: functional(module, name=name) for name, module in make.items()}
    names = layer_names(config)
    layers = {n: block(config, k) for n, k in zip(names, config.pattern, strict=True)}
    return outside, layers


def outside_parts(config: ModelConfig, /) -> dict[str, Functional]:
    """Returns what stands around the layers: "embed", "final_norm" and "head"."""
    return _parts(config)[0]


def _init(config: ModelConfig, key: jax.Array, /) -> Params:
    outside, layers = _parts(config)
    periods_key, outside_key = jax.random.split(key)

    def init_period(key: jax.Array) -> Params:
        return _init_each(layers, key)

    period_keys = jax.random.split(periods_key, config.periods)
    periods = jax.vmap(init_period)(period_keys)
    return _init_each(outside, outside_key) | {"periods": periods}


def _init_each(parts: dict[str, Functional], key: jax.Array) -> Params:
    keys = jax.random.split(key, len(parts))
    return {n: parts[n].init(key) for n, key in zip(parts, keys, strict=True)}


def _hidden(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    /,
    *,
    window: int | jax.Array,
    segment_ids: jax.Array | None = None,
    state: ModelState | None = None,
) -> tuple[jax.Array, ModelState | None]:
    _check_tokens(tokens_BT, segment_ids)
    positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    if state is not None:
        _check_state(config, state, tokens_BT.shape[0], window)
        positions_BT = positions_BT + state.position_B[:, None]
        if segment_ids is None:
            segment_ids = jnp.broadcast_to(state.segment_id_B[:, None], tokens_BT.shape)
    outside, _ = _parts(config)
    x_BTD = placed(outside["embed"].bind(params["embed"])(tokens_BT), "BTD")
    x_BTD, layer_states = _through_layers(
        config,
        params["periods"],
        x_BTD,
        None if state is None else state.layers,
        positions_BT=positions_BT,
        window=window,
        segment_ids_BT=segment_ids,
    )
    x_BTD = outside["final_norm"].bind(params["final_norm"])(x_BTD)
    if state is None or segment_ids is None:
        return x_BTD, None
    position_B = state.position_B + tokens_BT.shape[1]
    segment_id_B = segment_ids[:, -1].astype(jnp.int32)
    return x_BTD, ModelState(position_B, segment_id_B, layer_states)


def _head(config: ModelConfig, params: Params, x_BTD: jax.Array, /) -> jax.Array:
    outside, _ = _parts(config)
    logits_BTV = outside["head"].bind(params)(x_BTD)
    if config.logit_softcap is None:
        return logits_BTV
    return soft_cap(logits_BTV, cap=config.logit_softcap)


def _statistics(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    /,
    *,
    window: int | jax.Array,
    segment_ids: jax.Array | None = None,
) -> dict[str, jax.Array]:
    _check_tokens(tokens_BT, segment_ids)
    outside, layers = _parts(config)
    return layer_statistics(
        layers,
        params["periods"],
        into_first_layer(config, outside["embed"].bind(params["embed"])(tokens_BT)),
        positions_BT=jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None],
        window=window,
        segment_ids_BT=segment_ids,
    )


def _through_layers(
    config: ModelConfig,
    params: Any,
    x_BTD: jax.Array,
    layer_states: Any,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns x_BTD after all periods, and the states of their layers.

    Every bound module is made inside the function of a period.
    """
    _, layers = _parts(config)

    def period(stream, inputs):
        params, states, depths_L = inputs
        if params.keys() != layers.keys():
            raise ValueError(
                f"parameters do not fit the model: a period has the layers "
                f"{sorted(layers)}, got {sorted(params)}"
            )
        new_states = {}
        for (name, layer), depth in zip(layers.items(), depths_L, strict=True):
            state = None if states is None else states[name]
            stream, new_states[name] = through(
                layer.bind(params[name]), stream, state=state, depth=depth, **options
            )
        return _placed(stream), new_states

    body = rematerialised(period, config.remat)
    depths_PL = depths(config.periods, len(layers))
    stream = into_first_layer(config, x_BTD)
    stream, layer_states = through_periods(
        body, stream, params, layer_states, depths_PL
    )
    return stream.x_BTD, layer_states


def _placed(stream: Stream) -> Stream:
    """Returns the stream where the layout wants its arrays."""
    first = stream.first_values
    if first is not None:
        first = first._replace(value_BTNP=placed(first.value_BTNP, "BTNP"))
    return Stream(placed(stream.x_BTD, "BTD"), first)


def _init_state(
    config: ModelConfig, batch: int, /, *, window: int, context: int
) -> ModelState:
    for name, count in {"batch": batch, "window": window}.items():
        if count < 1:
            raise ValueError(f"init_state wants {name} >= 1; got {name}={count}.")
    if context < 0:
        raise ValueError(f"init_state wants context >= 0 tokens; got {context=}.")
    layers = {
        name: initial_mixer_state(
            config, kind, batch=batch, window=window, context=context
        )
        for name, kind in zip(layer_names(config), config.kinds, strict=True)
    }
    stacked = jax.tree.map(
        lambda leaf: jnp.tile(leaf[None], (config.periods, *[1] * leaf.ndim)), layers
    )
    # An array of its own for each: a donated state must not have one twice.
    position_B, segment_id_B = (jnp.zeros((batch,), jnp.int32) for _ in range(2))
    return ModelState(position_B, segment_id_B, stacked)


def _for_decoding(
    config: ModelConfig, params: Params, state: ModelState, /
) -> tuple[Params, ModelState]:
    periods = apart(params["periods"], config.periods)
    layers = apart(state.layers, config.periods)
    return params | {"periods": periods}, state._replace(layers=layers)


def _check_tokens(tokens_BT: jax.Array, segment_ids: jax.Array | None) -> None:
    """Returns nothing; raises ValueError for what is not tokens and their segments."""
    for name, ids in {"tokens": tokens_BT, "segment_ids": segment_ids}.items():
        if ids is None:
            continue
        if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim != 2:
            raise ValueError(
                f"the model wants {name} as integers of shape (batch, tokens); got "
                f"{ids.dtype}{list(ids.shape)}."
            )
        if ids.shape != tokens_BT.shape or 0 in ids.shape:
            raise ValueError(
                f"the model wants at least one token, and segment_ids of the tokens' "
                f"shape; got {name} {ids.shape}, tokens {tokens_BT.shape}."
            )


def _check_state(
    config: ModelConfig, state: ModelState, batch: int, window: int | jax.Array
) -> None:
    """Returns nothing; raises ValueError for a state of other sequences or windows."""
    if state.position_B.shape != (batch,):
        raise ValueError(
            f"the model wants a state of the tokens' batch {batch}; got one made for "
            f"batch {state.position_B.shape[0]}."
        )
    for name, kind in zip(layer_names(config), config.kinds, strict=True):
        if kind.mixer != "swa" or not isinstance(window, int | np.integer):
            continue
        layers = state.layers[0] if isinstance(state.layers, tuple) else state.layers
        served = served_window(layers[name].mixer)
        if window > served:
            raise ValueError(
                f"the state was made for windows up to {served} tokens; got {window=}. "
                "Make it with init_state(..., window=the largest one)."
            )
