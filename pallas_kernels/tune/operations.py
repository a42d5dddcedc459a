"""The operations that are tuned, by name."""

from pallas_kernels.tune.local_attention import LocalAttention
from pallas_kernels.tune.matrix_memory import MatrixMemory
from pallas_kernels.tune.operation import Operation

_TUNED: tuple[Operation, ...] = (LocalAttention(), MatrixMemory())
OPERATIONS = {operation.name: operation for operation in _TUNED}
