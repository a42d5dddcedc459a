"""PyTorch's kernels as contenders: mlstm_kernels' xl_chunk, fla's chunk_simple_gla.

Raced where they are installed, never needed and never copied. Each gets its own layout
before any clock starts, and what its authors chose for chunks and blocks.
"""

from collections.abc import Sequence
from typing import Any

import jax

from ...cases import Part
from ..clocks import Contender
from ..sizes import SIMPLE_GLA, XL_CHUNK, Form
from ..torch_tensors import Tensors, load
from .programs import Arrays

PEERS: dict[Form, str] = {"exp": XL_CHUNK, "sigmoid": XL_CHUNK, "linear": SIMPLE_GLA}
FUNCTIONS: dict[Form, tuple[str, str]] = {
    "exp": (
        "mlstm_kernels.torch.chunkwise.triton_xl_chunk",
        "mlstm_chunkwise__xl_chunk",
    ),
    "sigmoid": (
        "mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging",
        "mlstm_siging_chunkwise__xl_chunk",
    ),
    "linear": ("fla.ops.simple_gla", "chunk_simple_gla"),
}


class MatrixPeer:
    """The peer of one form, on the inputs of one shape."""

    def __init__(self, sets: Sequence[Arrays], form: Form, /):
        """Copies the inputs into torch, in the peer's layout.

        Raises:
          PeerMissing: torch or the peer is not installed, or cannot use the device.
        """
        self._tensors = Tensors(sets[0][0])
        module, name = FUNCTIONS[form]
        self._function = getattr(load(module), name)
        self._form: Form = form
        self._heads_first = form != "linear"
        self._sets = [tuple(map(self._laid_out, arrays)) for arrays in sets]

    def contender(self, part: Part, /) -> Contender:
        """Returns the peer, without or with its gradients."""
        torch = self._tensors.torch

        def launch(i):
            *inputs, dh = self._sets[i % len(self._sets)]
            if part == "forward":
                with torch.no_grad():
                    return self._read(*inputs)
            h = self._read(*inputs)
            return h, torch.autograd.grad(h, inputs, dh)

        return Contender(
            launch,
            self._tensors.wait,
            self._arrays,
            lambda: self._tensors.peak_bytes(lambda: launch(0)),
        )

    def _read(self, q: Any, k: Any, v: Any, *gates: Any) -> Any:
        """Returns h of the peer."""
        if self._form == "linear":
            (log_decay,) = gates
            scale = q.shape[-1] ** -0.5
            return self._function(q, k, v, g=log_decay, scale=scale)[0]
        # Without this it takes float32, outside of autocast too.
        return self._function(
            q, k, v, *gates, autocast_kernel_dtype=self._tensors.torch.bfloat16
        )

    def _laid_out(self, x_BTN: jax.Array) -> Any:
        tensor = self._tensors.tensor(x_BTN, heads_first=self._heads_first)
        return tensor.requires_grad_(True)

    def _arrays(self, result: Any) -> Any:
        return self._tensors.arrays(result, heads_first=self._heads_first)
