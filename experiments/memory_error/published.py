"""The published forms, through the registry of the package mlstm_kernels.

They are measured where the package and PyTorch are installed; never needed or copied.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kernel_speed.gpu.torch_tensors import Tensors, load
from experiments.kernel_speed.peer import PEER_CHUNK

from .cases import Inputs
from .ours import LONGEST_INTERPRETED
from .outputs import GRADIENTS, VALUES, Outputs, cotangents

KERNEL = "xl_chunk"  # in Triton, for a GPU; the others are PyTorch
QUADRATIC, LONGEST_QUADRATIC = "native_autograd", 8192  # tokens; 7 minutes at 65 536
PUBLISHED = {
    QUADRATIC: "chunkwise--native_autograd",
    "native_custbw": "chunkwise--native_custbw",
    KERNEL: "chunkwise--triton_xl_chunk",
}


def measure_published(name: str, inputs: Inputs, weights_BTNP: jax.Array, /) -> Outputs:
    """Returns the outputs of one of PUBLISHED.

    The native forms take float32 only: they get narrower inputs widened, and what comes
    back is rounded, so that all that they compute in between is in float32.

    Raises:
      PeerMissing: PyTorch or mlstm_kernels is not installed.
      NotImplementedError: the form does not serve this call on this device.
    """
    tokens, dtype = inputs.q_BTNH.shape[1], inputs.q_BTNH.dtype
    if tokens % PEER_CHUNK:
        raise NotImplementedError(f"wants a multiple of {PEER_CHUNK} tokens")
    if name == QUADRATIC and tokens > LONGEST_QUADRATIC:
        raise NotImplementedError(f"quadratic: up to {LONGEST_QUADRATIC} tokens")
    tensors = Tensors(inputs.q_BTNH)
    if name == KERNEL and not tensors.on_gpu:
        _refuse_interpreting(tokens, dtype)
    function = load("mlstm_kernels.torch").get_mlstm_kernel(PUBLISHED[name])
    narrow = getattr(tensors.torch, dtype.name)
    inside = narrow if name == KERNEL else tensors.torch.float32
    leaves = [
        tensors.tensor(x, heads_first=i < 5).requires_grad_()
        for i, x in enumerate(inputs)
    ]
    *vectors, i_BNT, f_BNT, c_BNHP, n_BNH, m_BN = leaves
    h_BNTP, state = function(
        *(x.to(inside) for x in vectors),
        i_BNT,
        f_BNT,
        c_initial=c_BNHP,
        n_initial=n_BNH,
        m_initial=m_BN,
        return_last_states=True,
        chunk_size=PEER_CHUNK,
        autocast_kernel_dtype=inside,
    )
    return _outputs(tensors, h_BNTP.to(narrow), state, leaves, weights_BTNP)


def _refuse_interpreting(tokens, dtype):
    """Returns nothing where Triton can interpret the kernel."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1")
    if dtype != jnp.float32:
        raise NotImplementedError(f"Triton does not interpret {dtype.name} correctly")
    if tokens > LONGEST_INTERPRETED:
        raise NotImplementedError(f"interpreted up to {LONGEST_INTERPRETED} tokens")


def _outputs(tensors, h_BNTP, state, leaves, weights_BTNP):
    """Returns the values, and the gradients of every leaf: zero where it has none."""
    gradients = {}
    h_BTNP = tensors.arrays(h_BNTP, heads_first=True)
    for loss, dh_BTNP in cotangents(h_BTNP, weights_BTNP).items():
        found = tensors.torch.autograd.grad(
            h_BNTP,
            leaves,
            tensors.tensor(dh_BTNP, heads_first=True),
            retain_graph=True,
            materialize_grads=True,
        )
        tokens, memory = map(_on_host, found[:5]), map(_on_host, found[5:])
        arrays = (*(np.swapaxes(x, 1, 2) for x in tokens), *memory)
        gradients[loss] = dict(zip(GRADIENTS, arrays, strict=True))
    values = (np.swapaxes(_on_host(h_BNTP), 1, 2), *map(_on_host, state))
    *others, m_BN = values
    values = (*others, m_BN.reshape(leaves[-1].shape))
    return Outputs(dict(zip(VALUES, values, strict=True)), gradients)


def _on_host(tensor: Any) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
