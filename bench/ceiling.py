"""The limits of the machine: contenders that measure them in the same race."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

SIZE = 2048  # of square matrices: large enough that overheads do not matter
MATRIX_PRODUCT = "bench.ceiling:make_matrix_product"
MATRIX_PRODUCT_FLOPS = 2 * SIZE**3
STREAM = 2**26  # numbers per array
MEMORY_STREAM = "bench.ceiling:make_memory_stream"
MEMORY_STREAM_BYTES = 3 * 4 * STREAM  # two arrays are read, one is written


def make_matrix_product():
    """Return a step that does one float32 matrix product."""
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal((SIZE, SIZE), np.float32) for _ in range(3))

    def step(number):
        np.matmul(a, b, out=c)
        return float(c[0, 0])

    return step


def make_memory_stream(threads):
    """Return a step that adds two arrays, far larger than any cache, one slice per thread."""
    a, b, c = (np.ones(STREAM, np.float32) for _ in range(3))  # pages of zeros are not allocated yet
    pool = ThreadPoolExecutor(threads)
    slices = [slice(i * STREAM // threads, (i + 1) * STREAM // threads) for i in range(threads)]

    def step(number):
        for _ in pool.map(lambda part: np.add(a[part], b[part], out=c[part]), slices):
            pass
        return float(c[0])

    return step
