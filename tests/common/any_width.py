"""One small check of each kernel but attention, for vectors of any width; see ``test_kernel_processes``."""

import numpy as np

from common import (
    fused_dropout,
    fused_embedding,
    fused_layer_norm,
    fused_optimisation,
    fused_packed_linear,
    fused_relu,
)
from common.kernel_pairs import check_pair, laid_out
from minitransformer import functional
from minitransformer.functional.packed_linear import PACKED_TYPES
from minitransformer.kernels.cpu import linear_cross_entropy, linear_gelu, matrix_product

WIDTHS = 33, 5  # a vector of any width, and a part of one; a part only


def check_kernels():
    """Compare kernels with their definitions."""
    check_products()
    check_linear_gelu()
    check_linear_cross_entropy()
    for number, width in enumerate(WIDTHS):
        fused_layer_norm.check(*fused_layer_norm.draw(number, (19, width)))
        fused_dropout.check(*fused_dropout.draw(number, (3, 4 * width)))
        fused_relu.check(*fused_relu.draw(number, (3, width)))
        fused_embedding.check(*fused_embedding.draw(number, 2, 7, width, 9))
        fused_optimisation.check_update(number, width)
        fused_optimisation.check_norm(number, width)
        for dtype in PACKED_TYPES:
            for rows in (1, 11, 35):
                fused_packed_linear.check(*fused_packed_linear.draw(number, rows, 21, width), dtype, "tanh")


def check_products():
    """Compare products whose last tiles are not whole with those in float64."""
    random = np.random.default_rng(0)
    panel, depth = matrix_product.PANEL, 29
    for rows, columns in ((2 * matrix_product.ROWS + 3, panel + 5), (3, panel - 1), (1, 1)):
        for layout in ("plain", "transposed", "every second"):
            left, right = random.random((rows, depth)), random.random((depth, columns))
            left, right = (laid_out(x.astype(np.float32), layout) for x in (left, right))
            out = np.ones((rows, columns + 3), np.float32)
            matrix_product.multiply(out[:, :columns], left, right, add=True)
            exact = 1 + left.astype(float) @ right.astype(float)
            np.testing.assert_allclose(out[:, :columns], exact, rtol=depth * 2.0**-24, err_msg=layout)
            assert (out[:, columns:] == 1).all()


def check_linear_gelu():
    """Compare the affine map with GELU, and its gradients."""
    pair = linear_gelu.linear_gelu, linear_gelu.linear_gelu_backward
    definition = functional.linear_gelu, functional.linear_gelu_backward
    random = np.random.default_rng(1)
    arrays = [random.standard_normal(shape, np.float32) for shape in ((19, 21), (21, 37), (37,), (19, 37))]
    for form in ("exact", "tanh"):
        check_pair(definition, pair, arrays[:3], arrays[3], sizes=[20] * 4, form=form)


def check_linear_cross_entropy():
    """Compare the head and the loss of a language model, and their gradients."""
    pair = linear_cross_entropy.linear_cross_entropy, linear_cross_entropy.linear_cross_entropy_backward
    definition = functional.linear_cross_entropy, functional.linear_cross_entropy_backward
    random = np.random.default_rng(2)
    arrays = [random.standard_normal(shape, np.float32) for shape in ((19, 9), (37, 9), (37,))]
    targets = random.integers(0, 37, 19)
    for label_smoothing in (0.0, 0.1):
        check_pair(
            *(definition, pair, arrays, np.float32(0.7)),
            sizes=[200] * 4,
            targets=targets,
            label_smoothing=label_smoothing,
        )
