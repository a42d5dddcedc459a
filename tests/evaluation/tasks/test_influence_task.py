"""The influence task: what a model of windows sees, beside what its windows reach."""

import json

import jax
import numpy as np
import pytest

from swa_jax.data.tokenizer import byte_tokenizer
from swa_jax.evaluation.task_sections import task_sections
from swa_jax.evaluation.tasks.influence import Influence, influence
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.task import Subject
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model

TEXT = np.arange(600, dtype=np.int32) % 251


def subject_of(pattern: tuple[str, ...], *, with_config: bool = True) -> Subject:
    config = ModelConfig(
        vocab_size=264,
        d_model=16,
        pattern=pattern,
        periods=1,
        attention=AttentionConfig(heads=2),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=16,
    )
    model = language_model(config)
    params = model.init(jax.random.key(0))
    return Subject(
        model,
        params,
        byte_tokenizer(),
        264,
        lambda: TEXT,
        config=config if with_config else None,
    )


def test_windows_see_what_they_reach_and_a_memory_more(tmp_path):
    task = Influence(lengths=(48,), windows=(8,), rows=1, probes=4)
    [cell] = task.cells()
    windows, again = (task.judge(subject_of(("swa", "swa")), cell) for _ in range(2))
    assert windows == again == json.loads(json.dumps(windows))
    assert windows["reach"] == 15
    assert windows["beyond_reach"] == 0.0
    assert windows["horizon"] <= windows["binomial_horizon"] + 2 <= 17
    assert windows["distances"] == [0, 1, 2, 4, 8, 16, 32]
    assert windows["tail"][-2:] == [0.0, 0.0]
    assert all(
        a >= b for a, b in zip(windows["tail"], windows["tail"][1:], strict=False)
    )
    memory = task.judge(subject_of(("swa", "mlstm")), cell)
    assert memory["reach"] == 8
    assert memory["beyond_reach"] > 0.01
    assert memory["horizon"] > 15
    line = {"task": "influence", "step": 3, "cell": cell, "result": windows}
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "influence.jsonl"
    path.write_text(json.dumps(line | {"run": "x", "settings": {}}) + "\n")
    [section] = task_sections(tmp_path)
    assert "dotted: what the windows reach" in section
    assert "<svg" in section


def test_a_model_without_windows_has_no_reach():
    task = Influence(lengths=(16,), windows=(4,), rows=1, probes=2)
    found = task.judge(subject_of(("mlstm",)), task.cells()[0])
    assert found["reach"] is None
    assert found["alpha"] is None
    assert found["horizon"] == 16


def test_what_cannot_be_measured_is_refused():
    task = Influence(lengths=(16,), windows=(4,))
    with pytest.raises(ValueError, match="config"):
        task.judge(subject_of(("swa",), with_config=False), task.cells()[0])
    with pytest.raises(ValueError, match="at least 2 tokens, got"):
        influence(Choices(windows=(1,), lengths=(16,)))
    with pytest.raises(ValueError, match="rows of at least 2"):
        influence(Choices(windows=(4,), lengths=(1,)))
    assert influence(Choices(windows=(1, 4), lengths=(1, 16))).windows == (4,)
