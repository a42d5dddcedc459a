"""cuDNN's attention: what it serves, when it is chosen, and that its window is ours."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from pallas_kernels import backend
from pallas_kernels.local_attention import Past, local_attention
from tests.pallas_kernels.triton_programs import lower_for_cuda
from tests.tolerances import assert_near

CALL = "dot_product_attention_fwd_wrapper"  # the primitive in a jaxpr


@pytest.fixture
def installed(monkeypatch):
    """Makes JAX believe that cuDNN is installed, as on a machine with a GPU."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)


def arrays(*, T=34, S=None, H=16, dtype=jnp.bfloat16):
    shapes = [(2, T, 4, H), (2, S or T, 2, H), (2, S or T, 2, H)]
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def traced(made, **options):
    with backend.compiling_for("gpu"):
        function = lambda *made: local_attention(*made, **options)  # noqa: E731
        return str(jax.make_jaxpr(function)(*made))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_full_attention_on_a_gpu_is_cudnn_s(installed, dtype):
    text = traced(arrays(dtype=dtype), window=None)
    assert CALL in text
    assert "pallas_call" not in text


def test_a_window_on_a_gpu_is_ours_unless_cudnn_is_named(installed):
    assert CALL not in traced(arrays(), window=5)
    text = traced(arrays(), window=np.int64(5), implementation="cudnn")
    # cuDNN counts the query's own token, jax.nn does not.
    assert "sliding_window_length=5\n" in text


def test_what_cudnn_does_not_serve_is_ours(installed):
    ids = jnp.zeros((2, 34), jnp.int32)
    text = traced(arrays(), window=None, segment_ids=ids)
    assert CALL not in text
    assert "pallas_call" in text


def test_without_cudnn_the_next_form_serves(monkeypatch):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", missing)
    assert "pallas_call" in traced(arrays(), window=None)


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({"dtype": jnp.float32}, {}, "not float32"),
        ({"S": 40}, {}, "as many queries as keys"),
        ({"T": 33}, {}, "an even number of tokens"),
        ({"H": 12}, {}, "multiple of 8 up to 128; got 12"),
        ({"H": 136}, {}, "multiple of 8 up to 128; got 136"),
        ({}, {"window": jnp.int32(5)}, "known when it compiles"),
        ({}, {"softcap": 30.0}, "no segments, sinks or softcap"),
        ({}, {"sinks": jnp.zeros(4)}, "no segments, sinks or softcap"),
        (
            {},
            {"segment_ids": jnp.zeros((2, 34), jnp.int32)},
            "no segments, sinks or softcap",
        ),
        (
            {},
            {"past": Past(*[jnp.zeros((2, 3, 2, 16), jnp.bfloat16)] * 2)},
            "as many queries as keys",
        ),
    ],
)
def test_what_it_cannot_do_it_refuses(installed, sizes, options, words):
    options = {"window": None, **options}
    with pytest.raises(NotImplementedError, match=words):
        traced(arrays(**sizes), **options, implementation="cudnn")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_on_a_cpu_it_refuses_and_is_not_chosen(installed):
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        local_attention(*arrays(), window=None, implementation="cudnn")
    assert local_attention(*arrays(), window=None).shape == (2, 34, 4, 16)


def test_forward_and_gradients_lower_to_cudnn_s_calls(installed):
    @jax.jit  # as in a scan: the choice is made before it is differentiated
    def total(*made):
        return jnp.sum(local_attention(*made, window=None).astype(jnp.float32))

    with backend.compiling_for("gpu"):
        lowered = lower_for_cuda(jax.grad(total, argnums=(0, 1, 2)), *arrays())
    calls = re.findall(r"__cudnn\$\w+", lowered.as_text())
    assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 9, 200])
def test_on_a_gpu_values_and_gradients_are_those_of_the_definition(window):
    made = arrays(T=130, H=64)
    dout = jnp.asarray(
        np.random.default_rng(1).normal(size=made[0].shape), jnp.bfloat16
    )

    def both(implementation, *made, dtype):
        def attend(*made):
            return local_attention(*made, window=window, implementation=implementation)

        out, pullback = jax.vjp(attend, *(x.astype(dtype) for x in made))
        return out, pullback(dout.astype(dtype))

    found = both("cudnn", *made, dtype=jnp.bfloat16)
    with jax.default_device(jax.devices("cpu")[0]):
        made = [jax.device_put(x, jax.devices("cpu")[0]) for x in made]
        dout = jax.device_put(dout, jax.devices("cpu")[0])
        wanted = both("reference", *made, dtype=jnp.float32)
    assert_near(found, wanted, dtype="bfloat16")
