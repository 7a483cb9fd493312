"""What the machine can do at most: contenders that measure it in the same race."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

SIZE = 2048  # of square matrices: large enough that only the product takes time
MATRIX_PRODUCT = "bench.ceiling:matrix_product"
MATRIX_PRODUCT_FLOPS = 2 * SIZE**3
STREAM = 2**26  # numbers in an array
MEMORY_STREAM = "bench.ceiling:memory_stream"
MEMORY_STREAM_BYTES = 3 * 4 * STREAM  # two arrays are read and one is written


def matrix_product():
    """Return a step that does one float32 matrix product."""
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal((SIZE, SIZE), np.float32) for _ in range(3))

    def step(number):
        np.matmul(a, b, out=c)
        return float(c[0, 0])

    return step


def memory_stream(threads):
    """Return a step that adds two arrays, far larger than any cache, a slice of them in each thread."""
    a, b, c = (np.ones(STREAM, np.float32) for _ in range(3))  # zeros would not be memory yet
    pool = ThreadPoolExecutor(threads)
    slices = [slice(i * STREAM // threads, (i + 1) * STREAM // threads) for i in range(threads)]

    def step(number):
        for _ in pool.map(lambda part: np.add(a[part], b[part], out=c[part]), slices):
            pass
        return float(c[0])

    return step
