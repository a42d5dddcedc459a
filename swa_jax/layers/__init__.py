"""Flax modules: parameters and wiring, no algorithm.

A layer's mixer is a `ParallelBlock` of a local and a global mixer. It takes
`mixer(x_BTD, *, positions_BT, window, segment_ids_BT, state)` and returns (y_BTD,
state): None in gives None out.
"""
