"""Global mixers: what a ParallelBlock puts behind its branches, a file each.

Each has `branches`, `activation` and `output_width`, and takes `mixer(branches, x_BTD,
*, positions_BT, window, segment_ids_BT, state)` to (y_BTM, state).
"""
