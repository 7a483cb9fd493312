"""Every operation, in every variant of the table, against PyTorch and its autograd.

In float64 the two must agree to rounding. In float32 our error, against PyTorch in float64, may be twice
PyTorch's own.
"""

import pytest
from common.autograd import against, with_autograd
from common.operations import CASES, names
from common.torch_operations import Reference


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_agrees_with_pytorch(case, torch):
    arrays = case.arrays()
    inputs = {f"argument {place}": array for place, array in enumerate(arrays) if array is not None}

    def all_arguments(named):
        return [named.get(f"argument {place}") for place in range(len(arrays))]

    def ours(inputs, dy):
        y, saved = case.forward(*all_arguments(inputs), **case.settings)
        return y, [gradient for gradient in case.backward(dy, saved) if gradient is not None]

    reference = getattr(Reference(torch), case.operation, None)
    assert reference, f"write {case.operation} in PyTorch, in Reference of tests/common/torch_operations.py"
    theirs = with_autograd(torch, lambda tensors: reference(*all_arguments(tensors), **case.settings))
    against(ours, theirs, inputs)
