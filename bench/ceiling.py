"""What the machine can do at most: contenders that measure it in the same race."""

import numpy as np

SIZE = 2048  # of square matrices: large enough that only the product takes time
MATRIX_PRODUCT = "bench.ceiling:matrix_product"
MATRIX_PRODUCT_FLOPS = 2 * SIZE**3


def matrix_product():
    """Return a step that does one float32 matrix product."""
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal((SIZE, SIZE), np.float32) for _ in range(3))

    def step(number):
        np.matmul(a, b, out=c)
        return float(c[0, 0])

    return step
