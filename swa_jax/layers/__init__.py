"""Flax modules: parameters and wiring, no algorithm.

A mixer takes `mixer(x_BTD, *, positions_BT, window, segment_ids_BT, state)` and returns
(y_BTD, state): None in gives None out.
"""
