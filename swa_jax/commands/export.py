"""``swax export``: the parameters of a run as safetensors."""

import sys
from pathlib import Path

from swa_jax.training.config import Step
from swa_jax.training.export import PARAMETERS_FILE, write_export
from swa_jax.training.run import CONFIG_FILE, TOKENIZER_FILE, open_run


def export_run(run: Path, /, *, out: Path, step: Step, dtype: str) -> None:
    """Writes an export of a checkpoint that verifies and prints where.

    Raises ValueError and FileNotFoundError for a run or a folder that does not serve.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; give a folder that is not")
    opened = open_run(run, step=step)
    for note in opened.notes:
        print(note, file=sys.stderr)
    write_export(
        out,
        params=opened.params,
        config=run / CONFIG_FILE,
        tokenizer=run / TOKENIZER_FILE,
        step=opened.step,
        fingerprint=opened.fingerprint,
        dtype=dtype,
    )
    size = (out / PARAMETERS_FILE).stat().st_size
    print(f"step {opened.step}, {size:,} bytes: {out / PARAMETERS_FILE}")
