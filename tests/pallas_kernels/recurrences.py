"""The recurrences as their tests call them: a dict of arrays in, out and memory out."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.gated_linear_attention import gated_linear_attention
from pallas_kernels.linear_attention import LinearAttentionState, linear_attention
from pallas_kernels.wkv7 import wkv7
from tests.tolerances import assert_near

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """An operation, and what its tests have to know of it.

    `tokens`: the names of its positional arrays; `wide`: those that are float32 where
    the others are narrower; `writes`: those that a token writes, each with a factor
    under which no later token forgets it; `on_memory`: those that act on nothing but
    the memory before the token; `queries`: what reads.

    `slow_kernels`: interpreting its kernels takes so long that a quick pass leaves that
    to the tests of the kernels alone; None: it has none.
    """

    operation: Callable[..., Any]
    arrays: Callable[..., Arrays]
    tokens: tuple[str, ...]
    wide: tuple[str, ...]
    writes: tuple[tuple[str, float], ...]
    on_memory: tuple[str, ...] = ()
    keywords: tuple[tuple[str, str], ...] = ()
    grouped: bool = False
    scaled: bool = True
    precise: bool = False
    slow_kernels: bool | None = True

    @property
    def queries(self) -> str:
        return self.tokens[0]

    @property
    def fast(self) -> list[Any]:
        """The forms of linear cost, as parameters of a test."""
        if self.slow_kernels is None:
            return ["chunked"]
        slow = pytest.param("triton", marks=pytest.mark.slow)
        return ["chunked", slow if self.slow_kernels else "triton"]

    @property
    def implementations(self) -> list[Any]:
        """All forms, as parameters of a test."""
        return [*self.fast, "reference"]

    @property
    def forms(self) -> list[Any]:
        """The forms of linear cost, each with its widest dtype."""
        marks = [pytest.mark.slow] if self.slow_kernels else []
        kernels = pytest.param("triton", "float32", marks=marks)
        exact = [("chunked", "float64"), kernels]
        return exact[:1] if self.slow_kernels is None else exact

    def draw(self, seed: int, /, *, heads=(2, 2), **sizes: int) -> Arrays:
        """Returns arrays of so many key heads, each with so many value heads where the
        operation has groups of them."""
        names = {"K": heads[0], "G": heads[1]} if self.grouped else {"N": heads[0]}
        return self.arrays(seed, **names, **sizes)

    def segments(self, seed: int, a: Arrays, /, *, count: int = 4) -> np.ndarray:
        """Returns sorted segment ids for the tokens of `a`."""
        shape = a[self.queries].shape[:2]
        ids = np.random.default_rng(seed).integers(0, count, size=shape)
        return np.sort(ids, axis=1).astype(np.int32)

    def run(
        self, a: Arrays, *, ids=None, state: Any = None, implementation=None, **options
    ) -> Any:
        """Returns (out, last state); Triton kernels are interpreted.

        Without "s" or a state the memory is empty; what has a keyword may be absent.
        """
        if "s" in a:
            ids_before = np.zeros(a["s"].shape[0], np.int32)
            state = LinearAttentionState(a["s"], ids_before)
        options |= {keyword: a.get(name) for name, keyword in self.keywords}
        named = implementation == "triton"
        with backend.interpreted() if named else contextlib.nullcontext():
            return self.operation(
                *(a[name] for name in self.tokens),
                state=state,
                segment_ids=ids,
                implementation=implementation,
                **options,
            )

    @property
    def jitted(self) -> Callable[..., Any]:
        """`run`, compiled once for all arrays of one shape."""
        return partial(_run, self)

    @property
    def value_and_gradients(self) -> Callable[..., Any]:
        """Returns out, the memory and the gradients of a random projection of both."""
        return partial(_value_and_gradients, self)

    def check(self, a: Arrays, implementation, dtype, /, *, ids=None) -> None:
        """Returns nothing; the implementation in `dtype` equals the float64 reference,
        values and gradients."""
        options: Arrays = {"ids": ids} | ({"scale": 0.7} if self.scaled else {})
        with jax.enable_x64(True):
            narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
            if dtype != "float64":
                wide = {n: jnp.asarray(x, "float32") for n, x in a.items()}
                narrow |= {n: wide[n] for n in (*self.wide, "s") if n in a}
            exact = {n: x.astype("float64") for n, x in narrow.items()}
            wanted = self.value_and_gradients(
                exact, implementation="reference", **options
            )
            options |= {"precision": "highest"} if self.precise else {}
            options |= {"implementation": implementation}
            found = self.value_and_gradients(narrow, **options)
            assert_near(found, wanted, dtype=dtype)


_jitted = partial(
    jax.jit, static_argnums=0, static_argnames=("scale", "implementation", "precision")
)


@_jitted
def _run(recurrence: Recurrence, a: Arrays, /, **options: Any) -> Any:
    return recurrence.run(a, **options)


@_jitted
def _value_and_gradients(recurrence: Recurrence, a: Arrays, /, **options: Any) -> Any:
    def loss(a):
        out, state = recurrence.run(a, **options)
        parts = (out, state.s_BNHP)
        rng = np.random.default_rng(9)
        wide = (p.astype(jnp.result_type(float)) for p in parts)
        return sum(jnp.sum(p * rng.normal(size=p.shape)) for p in wide), parts

    (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return parts, gradients


def _scalar_decays(rng, heads):
    return -rng.exponential(size=heads) * rng.choice([0.01, 0.3, 3.0], heads)


def _channel_decays(rng, channels):
    B, _, N, H = channels
    strengths = rng.choice([1e-3, 0.03, 0.3, 3.0], (B, 1, N, H))
    return -rng.exponential(size=channels) * strengths


def linear_attention_arrays(seed, *, B=2, T=65, K=2, G=1, H=8, P=5) -> Arrays:
    """Returns q, k, v, the logarithms of the gates and a state s, in float64."""
    rng = np.random.default_rng(seed)
    heads = (B, T, K * G)
    return {
        "q": rng.normal(size=(B, T, K, H)),
        "k": rng.normal(size=(B, T, K, H)),
        "v": rng.normal(size=(*heads, P)),
        "decay": _scalar_decays(rng, heads),
        "write": rng.normal(size=heads),
        "s": rng.normal(size=(B, K * G, H, P)),
    }


def gated_linear_attention_arrays(seed, *, B=2, T=65, N=2, H=8, P=5) -> Arrays:
    """Returns q, k, v, the log decays and a state s, in float64."""
    rng = np.random.default_rng(seed)
    channels = (B, T, N, H)
    return {
        "q": rng.normal(size=channels),
        "k": rng.normal(size=channels),
        "v": rng.normal(size=(B, T, N, P)),
        "decay": _channel_decays(rng, channels),
        "s": rng.normal(size=(B, N, H, P)),
    }


def gated_delta_rule_arrays(
    seed, *, B=2, T=65, K=2, G=1, H=8, P=5, strongest=1.0
) -> Arrays:
    """Returns q, k of length 1, v, the gates and a state s, in float64; beta lies
    between 0 and `strongest`."""
    rng = np.random.default_rng(seed)
    heads = (B, T, K * G)
    k = rng.normal(size=(B, T, K, H))
    return {
        "q": rng.normal(size=(B, T, K, H)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(*heads, P)),
        "decay": _scalar_decays(rng, heads),
        "beta": strongest * rng.uniform(size=heads),
        "s": rng.normal(size=(B, K * G, H, P)),
    }


def wkv7_arrays(seed, *, B=2, T=65, N=2, H=8, P=5) -> Arrays:
    """Returns the tokens' arrays and a state s, in float64.

    a and b are near what RWKV-7 makes of a removal key, each with a part of its own.
    """
    rng = np.random.default_rng(seed)
    channels = (B, T, N, H)
    c, *own = rng.normal(size=(3, *channels))
    c /= np.linalg.norm(c, axis=-1, keepdims=True)
    return {
        "r": rng.normal(size=channels),
        "decay": _channel_decays(rng, channels),
        "k": rng.normal(size=channels),
        "v": rng.normal(size=(B, T, N, P)),
        "a": -c + 0.1 * own[0],
        "b": c * rng.uniform(size=channels) + 0.1 * own[1],
        "s": rng.normal(size=(B, N, H, P)),
    }


LINEAR_ATTENTION = Recurrence(
    linear_attention,
    linear_attention_arrays,
    tokens=("q", "k", "v", "decay"),
    wide=("decay", "write"),
    writes=(("k", 1.0),),
    keywords=(("write", "log_write"),),
    grouped=True,
    precise=True,
    slow_kernels=False,
)
GATED_LINEAR_ATTENTION = Recurrence(
    gated_linear_attention,
    gated_linear_attention_arrays,
    tokens=("q", "k", "v", "decay"),
    wide=("decay",),
    writes=(("k", 1.0),),
    on_memory=("decay",),
)
GATED_DELTA_RULE = Recurrence(
    gated_delta_rule,
    gated_delta_rule_arrays,
    tokens=("q", "k", "v", "decay", "beta"),
    wide=("decay", "beta"),
    writes=(("k", 1.0), ("beta", 0.1)),
    grouped=True,
)
WKV7 = Recurrence(
    wkv7,
    wkv7_arrays,
    tokens=("r", "decay", "k", "v", "a", "b"),
    wide=("decay",),
    writes=(("k", 1.0), ("b", 0.1)),
    on_memory=("decay", "a", "b"),
    scaled=False,
    slow_kernels=None,
)
RECURRENCES = {
    "linear_attention": LINEAR_ATTENTION,
    "gated_linear_attention": GATED_LINEAR_ATTENTION,
    "gated_delta_rule": GATED_DELTA_RULE,
    "wkv7": WKV7,
}
