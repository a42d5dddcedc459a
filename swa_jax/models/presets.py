"""Named models: every size crossed with every pattern of mixers.

A size fixes everything but the mixers, so that the kinds of one size differ in the
pattern alone. A size is called by its parameters, as is the habit at its scale: with
both embedding matrices up to 410m, without the input embedding at 1.4b and 7b.
"""

from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig

KINDS: dict[str, tuple[str, ...]] = {
    "swax": ("swa", "mlstm"),
    "transformer": ("attention",),
    "xlstm": ("mlstm",),
    "swa": ("swa",),
    "hybrid": ("swa", "attention"),
}

# The fields of a ModelConfig, `attention` and `mlstm` as their numbers of heads;
# `layers` stands for pattern and periods.
SIZES: dict[str, dict] = {
    "nano": {
        "vocab_size": 2048,
        "d_model": 128,
        "layers": 4,
        "attention": 4,
        "mlstm": 2,
        "feed_forward_width": 256,
        "dtype": "float32",
    },
    "60m": {
        "vocab_size": 32_768,
        "d_model": 512,
        "layers": 8,
        "attention": 8,
        "mlstm": 4,
    },
    "160m": {
        "vocab_size": 50_304,
        "d_model": 768,
        "layers": 12,
        "attention": 12,
        "mlstm": 4,
    },
    "410m": {
        "vocab_size": 50_304,
        "d_model": 1024,
        "layers": 24,
        "attention": 16,
        "mlstm": 4,
    },
    "1.4b": {
        "vocab_size": 128_000,
        "d_model": 2048,
        "layers": 24,
        "attention": 16,
        "mlstm": 4,
        "remat": "full",
    },
    "7b": {
        "vocab_size": 128_000,
        "d_model": 4096,
        "layers": 32,
        "attention": 32,
        "mlstm": 8,
        "remat": "full",
    },
}


def _model(size: str, pattern: tuple[str, ...]) -> ModelConfig:
    fields = dict(SIZES[size])
    periods, rest = divmod(fields.pop("layers"), len(pattern))
    if rest:
        raise ValueError(f"{size}: the layers are not whole periods of {pattern}")
    return ModelConfig(
        pattern=pattern,
        periods=periods,
        attention=AttentionConfig(heads=fields.pop("attention")),
        mlstm=MLSTMConfig(heads=fields.pop("mlstm")),
        **fields,
    )


PRESETS: dict[str, ModelConfig] = {
    f"{kind}-{size}": _model(size, pattern)
    for size in SIZES
    for kind, pattern in KINDS.items()
}


def preset(name: str, /) -> ModelConfig:
    """The model of a name: "swax-160m" or, with any layers, "short_swa+gla-160m".

    Layers of one period are joined by commas: "swa,short_conv+mamba2-nano". Raises
    ValueError for another name.
    """
    kind, _, size = name.partition("-")
    pattern = KINDS.get(kind, tuple(kind.split(",")))
    if size in SIZES:
        try:
            return _model(size, pattern)
        except ValueError as error:
            fault = f": {error}"
    else:
        fault = ""
    raise ValueError(
        f"no preset is called {name!r}; the names are KIND-SIZE with SIZE one of "
        f"{', '.join(SIZES)} and KIND one of {', '.join(KINDS)}, or the layers of one "
        f"period such as 'short_swa+gla' or 'swa,short_conv+mamba2'{fault}"
    )
