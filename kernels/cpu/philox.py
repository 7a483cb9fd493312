"""Random words on the CPU: ``functional.philox`` in vectors, bit for bit."""

from minitransformer.functional.philox import MULTIPLIERS, WEYL
from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.vectors import high, longs, low, product_of_low


@inline
def philox(counter, key0, key1):
    """Return the four output words, LANES of each, for a counter of four longs and two words of a key.

    Each word has 64 bits for its products; the upper half is never read.
    """
    x0, x1, x2, x3 = counter
    for _ in range(10):
        product0 = product_of_low(x0, longs(MULTIPLIERS[0]))
        product1 = product_of_low(x2, longs(MULTIPLIERS[1]))
        x0, x1 = high(product1) ^ x1 ^ longs(key0), product1
        x2, x3 = high(product0) ^ x3 ^ longs(key1), product0
        key0 += WEYL[0]
        key1 += WEYL[1]
    return low(x0), low(x1), low(x2), low(x3)
