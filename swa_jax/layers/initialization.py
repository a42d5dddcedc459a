"""Standard deviations of the initial weights (those of xLSTM 7B)."""

import math


def input_std(width: int, /) -> float:
    """Returns sqrt(2 / (5 D)), for what reads the residual stream of width D.

    Source: Nguyen and Salazar 2019, "small init", arXiv:1910.05895.
    """
    return math.sqrt(2 / (5 * width))


def residual_std(width: int, layers: int, /) -> float:
    """Returns 2 / (layers sqrt(D)), for what writes to the residual stream.

    Source: Wang and Komatsuzaki 2021 (mesh-transformer-jax), "wang init".
    """
    return 2 / (layers * math.sqrt(width))
