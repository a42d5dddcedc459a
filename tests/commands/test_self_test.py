"""The self-test of the kernels: right forms pass, a wrong digit is found, and kept."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.commands import self_test as module
from swa_jax.commands.self_test import (
    Case,
    Finding,
    cache_file,
    cases,
    largest_error,
    run_tests,
    self_test,
)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.slow
def test_every_operation_is_right_on_this_device():
    found = list(run_tests(cases()))
    assert {f.operation for f in found} == {
        "local_attention",
        "mlstm",
        "linear_attention",
        "gated_linear_attention",
        "gated_delta_rule",
    }
    assert [f for f in found if not f.well] == []
    # On a CPU the kernels for GPUs do not serve, and are not reported.
    assert [f.form for f in found] == ["chosen", "chunked"] * 5


def toy_case(*, wrong_output=0.0, wrong_gradient=0.0, raises=None, form="chunked"):
    """A product with a form that may be wrong."""

    def call(x, y, *, implementation):
        if implementation == "reference":
            return x * y
        if implementation not in (None, form):
            raise ValueError(f"product wants implementation=None or one of {form!r}")
        if raises is not None:
            raise raises
        # A gradient with respect to y that is off where the output is not.
        off = wrong_gradient * (y - jnp.asarray(np.asarray(y_1), y.dtype))
        return x * y + wrong_output + x * off

    y_1 = np.ones((2, 3))
    return Case("product", call, (np.ones((2, 3)), y_1), 2)


@pytest.mark.parametrize(
    "wrong",
    [{"wrong_output": 1e-4}, {"wrong_gradient": 1e-4}, {"wrong_output": np.nan}],
)
def test_a_wrong_output_and_a_wrong_gradient_are_found(wrong):
    found = list(run_tests([toy_case(**wrong)]))
    assert [f.form for f in found] == ["chosen", "chunked"]
    assert not any(f.well for f in found)
    assert all(f.well for f in run_tests([toy_case()]))


def test_a_form_that_ends_in_an_error_is_no_form_that_does_not_serve():
    broken = RuntimeError("PTX was compiled with an unsupported toolchain")
    found = list(run_tests([toy_case(raises=broken)]))
    assert [f.form for f in found] == ["chosen", "chunked"]
    assert all("unsupported toolchain" in f.words and not f.well for f in found)
    (found,) = run_tests([toy_case(raises=NotImplementedError("not here"))])
    assert (found.form, found.words) == ("chosen", "not here")


def test_an_array_that_is_small_beside_the_others_is_measured_by_itself():
    wanted = [np.full(3, 100.0), np.full(3, 1.0)]
    assert largest_error([wanted[0], wanted[1] + 0.01], wanted) == pytest.approx(0.01)
    assert largest_error([wanted[0] + 0.01, wanted[1]], wanted) == pytest.approx(1e-4)


@pytest.fixture
def tests_made(monkeypatch):
    """How often the kernels are tested, with the error that they then have."""
    made = []

    def run(_cases):
        made.append(1)
        return [Finding("product", "chosen", "float32", errors[0])]

    errors = [1e-7]
    monkeypatch.setattr(module, "run_tests", run)
    return made, errors


def test_what_is_known_of_a_device_and_its_packages_is_not_tested_again(
    tests_made, monkeypatch
):
    made, errors = tests_made
    first = self_test()
    assert self_test() == first
    assert len(made) == 1
    self_test(recheck=True)
    self_test(cache=False)
    assert len(made) == 3
    monkeypatch.setattr(module, "fingerprint", lambda: "another card")
    self_test()
    assert len(made) == 4
    assert len(json.loads(cache_file().read_text())) == 2
    errors[0] = 1.0  # what failed is not kept: it is tested until it is well
    monkeypatch.setattr(module, "fingerprint", lambda: "a third card")
    self_test()
    self_test()
    assert len(made) == 6


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": [[1]]}'])
def test_a_cache_that_is_none_is_made_again(tests_made, text):
    made, _ = tests_made
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    self_test()
    self_test()
    assert len(made) == 1


def test_a_home_that_cannot_be_written_is_no_failure(tests_made, tmp_path):
    (tmp_path / "swa_jax").write_text("a file in the folder's place")
    assert self_test()[0].well
