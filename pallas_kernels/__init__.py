"""Array operations for short attention windows and recurrent memory.

Arrays in, arrays out: no parameters, no Flax, no mesh. Each operation is a folder with
a definition (`reference`), a linear-cost form in plain JAX that runs on every platform
(`chunked`), and one public function that checks its arguments and chooses a form:

- `pallas_kernels.gated_delta_rule.gated_delta_rule`
- `pallas_kernels.gated_linear_attention.gated_linear_attention`
- `pallas_kernels.linear_attention.linear_attention`
- `pallas_kernels.local_attention.local_attention`
- `pallas_kernels.mlstm.mlstm`
- `pallas_kernels.short_conv.short_conv`
- `pallas_kernels.wkv7.wkv7`

Importing it sets XLA_FLAGS on a jaxlib that adds up wrongly on a CPU without
(`jaxlib_faults`).
"""

from pallas_kernels.jaxlib_faults import avoid_wrong_reductions

avoid_wrong_reductions()
