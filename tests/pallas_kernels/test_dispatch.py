"""The choice of an implementation: refusals are tried in turn and listed."""

import pytest

from pallas_kernels.dispatch import dispatch


def refuse(reason):
    raise NotImplementedError(reason)


def test_the_first_form_that_serves_is_taken():
    forms = {"fast": lambda: refuse("no GPU."), "chunked": lambda: 2}
    assert dispatch("op", forms, implementation=None) == 2


def test_a_named_form_is_not_replaced():
    forms = {"fast": lambda: refuse("no GPU."), "chunked": lambda: 2}
    with pytest.raises(NotImplementedError, match="fast: no GPU"):
        dispatch("op", forms, implementation="fast")


def test_the_reference_runs_only_when_named():
    forms = {"chunked": lambda: refuse("too wide."), "reference": lambda: 3}
    with pytest.raises(NotImplementedError, match="chunked: too wide"):
        dispatch("op", forms, implementation=None)
    assert dispatch("op", forms, implementation="reference") == 3


def test_every_refusal_is_listed():
    forms = {"fast": lambda: refuse("no GPU."), "chunked": lambda: refuse("odd.")}
    with pytest.raises(NotImplementedError, match=r"fast: no GPU\. chunked: odd\."):
        dispatch("op", forms, implementation=None)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'chunked'"):
        dispatch("op", {"chunked": lambda: 1}, implementation="quick")
