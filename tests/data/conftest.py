"""A small corpus that several files of this folder read."""

from pathlib import Path

import pytest

from swa_jax.data.pipeline import TextData, load_text_data
from tests.data.small_corpus import config_for, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "python")


@pytest.fixture(scope="module")
def data(folder) -> TextData:
    return load_text_data(config_for(folder), seed=0)
