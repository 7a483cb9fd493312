"""Every pair of ``minitransformer.functional``, in all its variants, against differences of its forward."""

import inspect

import pytest
from common.operations import CASES, SMALL_CASES, names

from minitransformer import functional
from minitransformer.gradcheck import ELEMENTS_UP_TO, check_operation

TABLE = "CASES of tests/common/operations.py"

every_operation = pytest.mark.parametrize(
    "operation", [name for name in functional.__all__ if f"{name}_backward" in functional.__all__]
)


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_gradient_is_that_of_the_forward(case):
    arrays = case.arrays()
    errors = check_operation(case.forward, case.backward, *arrays, **case.settings)
    assert len(errors) == sum(array is not None for array in arrays)
    # the table's "large" rows are those that are checked along random directions
    size = sum(array.size for array in arrays if array is not None)
    assert (size > ELEMENTS_UP_TO) == (case.variant == "large"), (
        f"{size} entries: the variant large has more than {ELEMENTS_UP_TO}, all others at most as many"
    )


@every_operation
def test_every_operation_is_in_the_table(operation):
    variants = {case.variant for case in CASES if case.operation == operation}
    assert len(variants) >= 2, f"give {operation} small cases in {TABLE}"
    assert "large" in variants, (
        f"give {operation} a case large, of more than {ELEMENTS_UP_TO} entries, in {TABLE}"
    )


@every_operation
def test_every_setting_is_in_the_table(operation):
    parameters = inspect.signature(getattr(functional, operation)).parameters.values()
    for setting in (parameter for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY):
        cases = [case for case in SMALL_CASES if case.operation == operation]
        values = [case.settings.get(setting.name, setting.default) for case in cases]
        others = [value for value in values if value is not setting.default]
        assert others, f"give {operation} a small case with another {setting.name} in {TABLE}"
