"""Every pair of ``minitransformer.functional``, in all its variants, against differences of its forward."""

import pytest
from common.operations import CASES, names

from minitransformer import functional
from minitransformer.gradcheck import ELEMENTS_UP_TO, check_operation


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_gradient_is_that_of_the_forward(case):
    arrays = case.arrays()
    errors = check_operation(case.forward, case.backward, *arrays, **case.settings)
    assert len(errors) == sum(array is not None for array in arrays)
    # the table's "large" rows are those that are checked along random directions
    size = sum(array.size for array in arrays if array is not None)
    assert (size > ELEMENTS_UP_TO) == (case.variant == "large")


@pytest.mark.parametrize(
    "operation", [name for name in functional.__all__ if f"{name}_backward" in functional.__all__]
)
def test_every_operation_is_in_the_table(operation):
    assert operation in {case.operation for case in CASES}
    assert (operation, "large") in {case[:2] for case in CASES}
