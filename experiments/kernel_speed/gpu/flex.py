"""PyTorch's FlexAttention as a contender, where torch with CUDA is installed.

The mask is given as lists of blocks, counted here: asking torch for them would evaluate
the mask at every pair. The window is a tensor that the mask reads, so that one
compilation serves all windows of a shape. Raced, never needed and never copied.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..cases import Part
from .clocks import Contender
from .sizes import Shape, Window
from .torch_tensors import Tensors, load

BLOCK = 128  # tokens of a query block and of a key block


class BlockLists(NamedTuple):
    """For each of the I query blocks the key blocks that it reads in part, and whole.

    The first counts_I[i] of indices_II[i] are meant, in ascending order.
    """

    part_counts_I: np.ndarray
    part_indices_II: np.ndarray
    whole_counts_I: np.ndarray
    whole_indices_II: np.ndarray


def block_lists(tokens: int, window: Window, /, *, block: int = BLOCK) -> BlockLists:
    """Returns the blocks with a pair 0 <= t - s < window, and those with no other.

    Raises:
      ValueError: the tokens are no whole number of blocks.
    """
    if tokens % block:
        raise ValueError(f"wants a multiple of {block} tokens; got {tokens}.")
    starts_I = np.arange(0, tokens, block)
    between_II = starts_I[:, None] - starts_I[None, :]
    smallest_II, largest_II = between_II - (block - 1), between_II + (block - 1)
    window = tokens if window is None else window
    visible_II = (largest_II >= 0) & (smallest_II < window)
    whole_II = (smallest_II >= 0) & (largest_II < window)
    return BlockLists(*_listed(visible_II & ~whole_II), *_listed(whole_II))


def _listed(chosen_II: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many columns of each row are chosen, and the columns, those first."""
    counts_I = chosen_II.sum(axis=1, dtype=np.int32)
    return counts_I, np.argsort(~chosen_II, axis=1, kind="stable").astype(np.int32)


class FlexAttention:
    """FlexAttention on the inputs of one shape."""

    def __init__(self, sets: Sequence[tuple[jax.Array, ...]], shape: Shape, /):
        """Copies the inputs into torch's layout, (B, heads, T, width).

        Raises:
          PeerMissing: torch is not installed, or cannot use the inputs' device.
        """
        self._tensors = Tensors(sets[0][0])
        self._torch = self._tensors.torch
        self._flex = load("torch.nn.attention.flex_attention")
        self._sets = [tuple(self._laid_out(x) for x in arrays) for arrays in sets]
        self._shape = shape
        self._window = self._torch.tensor(shape.row, device=self._sets[0][0].device)
        self._attention = self._flex.flex_attention
        if self._tensors.on_gpu:  # elsewhere torch has no gradients of it
            for q, k, v, _ in self._sets:
                for tensor in (q, k, v):
                    tensor.requires_grad_(True)
            # Each shape is compiled for itself, as the other contenders are.
            self._torch.compiler.reset()
            self._attention = self._torch.compile(self._attention, dynamic=False)

    def contender(self, window: Window, part: Part, /) -> Contender:
        """Returns the attention at a window; it ends the use of an earlier window's."""
        self._window.fill_(self._shape.row if window is None else window)
        mask = self._block_mask(window)

        def launch(i):
            q, k, v, dout = self._sets[i % len(self._sets)]
            out = self._attention(q, k, v, block_mask=mask, enable_gqa=True)
            if part == "forward":
                return out
            return out, self._torch.autograd.grad(out, (q, k, v), dout)

        return Contender(launch, self._tensors.wait, self._arrays)

    def _block_mask(self, window: Window) -> Any:
        limit = self._window

        def visible(batch, head, query, key):
            distance = query - key
            return (distance >= 0) & (distance < limit)

        tokens = self._shape.row
        lists = [
            self._torch.from_numpy(array)[None, None].to(limit.device)
            for array in block_lists(tokens, window)
        ]
        return self._flex.BlockMask.from_kv_blocks(
            *lists, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens)
        )

    def _laid_out(self, x_BTNH: jax.Array) -> Any:
        return self._tensors.tensor(x_BTNH, heads_first=True)

    def _arrays(self, result: Any) -> Any:
        return self._tensors.arrays(result, heads_first=True)
