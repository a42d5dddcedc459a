"""PyTorch beside JAX: the same arrays as tensors, waiting, and memory.

Peers that are written for PyTorch run in the same process, on copies of the inputs.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..peer import PeerMissing

NOT_INSTALLED = "not installed"  # how the reason of a missing peer begins


class Tensors:
    """The way from JAX's arrays to tensors on the same device, and back."""

    def __init__(self, array: jax.Array, /):
        """Takes the device of an array.

        Raises:
          PeerMissing: torch is not installed, or cannot use that device.
        """
        self.torch: Any = load("torch")
        self.on_gpu = next(iter(array.devices())).platform == "gpu"
        if self.on_gpu and not self.torch.cuda.is_available():
            raise PeerMissing(f"torch {self.torch.__version__} finds no CUDA here")

    def tensor(self, x_BTN: jax.Array, /, *, heads_first: bool) -> Any:
        """Returns an array BTN... as a tensor, or as BNT... where `heads_first`."""
        tensor = self.torch.from_dlpack(jax.block_until_ready(x_BTN))
        return tensor.transpose(1, 2).contiguous() if heads_first else tensor.clone()

    def arrays(self, tensors: Any, /, *, heads_first: bool) -> Any:
        """Returns tensors, which it waits for, as arrays BTN..."""
        self.wait(tensors)

        def array(tensor):
            tensor = tensor.detach()
            if heads_first:
                tensor = tensor.transpose(1, 2)
            return jnp.from_dlpack(tensor.contiguous())

        return jax.tree.map(array, tensors)

    def wait(self, _: Any = None, /) -> None:
        """Returns nothing, once the device has done all that it was asked to."""
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def peak_bytes(self, run: Callable[[], Any], /) -> int | None:
        """Returns the most memory that torch holds during a run, more than before."""
        if not self.on_gpu:
            return None
        self.wait()
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        result = run()
        self.wait()
        del result
        return self.torch.cuda.max_memory_allocated() - before


def load(module: str, /) -> Any:
    """Returns a peer's module.

    Raises:
      PeerMissing: it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise PeerMissing(f"{NOT_INSTALLED}: {package} ({error})") from error
