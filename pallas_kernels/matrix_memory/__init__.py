"""The gated matrix memory, C_t = f_t C_{t-1} + i_t k_t v_t^T, scalar gates per head.

`pallas_kernels.mlstm` and `pallas_kernels.linear_attention` are its public faces.
"""
