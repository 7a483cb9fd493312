"""Kernels for the CPU: vectors and threads through Numba, for float32 arrays of NumPy.

A contents, to be read in this order. The tools:

    emitting, vectors            LLVM's vector instructions, and their names in compiled functions
    products                     the micro-kernel of every matrix product: a tile of sums, kept in registers
    compiling                    when code is compiled, and where it is cached
    records                      how a call's addresses, strides and numbers reach compiled code
    threads                      the pool: tasks are drawn, and nobody waits for a core that is taken away
    report                       what ``minitransformer info`` says of all this

A training step, each file naming the definition that it accelerates, what is never stored and what is
computed again:

    matrix_product               panels and blocks around the micro-kernel, and the epilogue: bias, GELU
    activations                  GELU and its derivative in vectors
    linear, linear_gelu          the affine map, alone and with GELU in the epilogue
    linear_cross_entropy         the language model's head and loss, without all logits at once
    rows                         what the others share: one row after the other
    layer_norm, embedding        normalisation in one pass each way; sums into the rows of a table
    dropout, relu, philox        entries one by one, and the random words that choose those to drop
    optimisation                 AdamW and the norm of the gradients, over the flat buffers

Attention, and decoding:

    attention                    the pair; attention_problem is its record, attention_tiles what passes share
    attention_forward            FlashAttention's loop over tiles
    attention_backward           the same for the gradients: probabilities are computed again
    attention_of_one_query       with a cache: as fast as keys and values can be read
    packed_linear                the affine map by packed weights: as fast as these can be read

Names in this package, each with one meaning. Sizes count elements; a byte size, stride or offset ends in
``_bytes``. Inside compiled functions an array is the address of its first element, and a float takes 4 bytes.

    LANES, VECTOR_BYTES   float32 per vector register, and its size in bytes
    ROWS, COLUMNS         in attention the results of one ``product``: ROWS rows of COLUMNS = 2 LANES
    PANEL                 columns of one ``product`` of ``matrix_product``; its ROWS differ from attention's
    PANEL_OUTPUTS         outputs side by side in packed weights; X_ROWS rows of x share each load of them
    KEY_BLOCK             keys whose scores exist at a time: "a block of keys"
    QUERY_BLOCK           queries whose scores exist at a time: "a block of queries", one per lane
    tile                  the queries for which a block of keys is packed once: some blocks of queries
    tile_queries          queries per tile
    task, worker          what a thread computes between two looks at the counter; the thread
    splits                parts of one task's work, so that every worker gets about as much
    heads, kv_heads       query heads H, and key/value heads G; h and g are their indices
    group_size            query heads per key/value head: H / G
    head_width            floats per head K; ``padded_width`` is that of rows in scratch memory
    q, k, v, y, dy, …     whole arrays, (B, T, H, K) by their strides
    k_block, dk_block, …  a block of keys in scratch memory, in padded rows
    q_lanes, q_rows, …    a block of queries in scratch memory, transposed and not
    state                 what a block of queries keeps from one block of keys to the next
    scores, weights       (keys, queries) of a block: in units of log 2, and 2 to that power
    largest, peak         per query, the largest score, and the probability of its key
    delta                 per query, Σ dy·y
    visible_counts        per query, n: it sees the keys 0 … n − 1; visible_count, of a tile's last query
    lane                  the index of a query in its block; j is that of a key in its block
    count, keys, rows     numbers of queries, keys and rows; rows_address is the address of the first row
    offset                the mask's: query i sees key j ≤ i + offset
    n, d                  the index of a row, and of an entry in it, of arrays (N, D)
    entries               numbers of an array, whatever its shape
"""

import functools
import importlib.util
import warnings

import numpy as np

# multiplications, of attention those in q kᵀ; with fewer, a definition is as fast as loading Numba
WORTH = 1_000_000
FEWEST_ROWS = 16  # with fewer, packing the weights costs more than the product
WORTH_OF_ONE_QUERY = 300_000  # likewise, of attention that reads keys and values once
WORTH_OF_ROWS = 2**15  # entries of an array of rows, or of a flat buffer; with fewer, likewise


def accepts_attention(q, k, v, **settings):
    """Return True for arrays of NumPy, where kernels can run and there is enough to compute."""
    if not all(type(x) is np.ndarray and x.ndim == 4 for x in (q, k, v)):
        return False
    worth = WORTH_OF_ONE_QUERY if q.shape[1] == 1 else WORTH
    return q.size * k.shape[1] >= worth and usable()


def accepts_linear(x, weight, bias, **settings):
    """Return True for arrays of NumPy, where kernels can run and there is enough to compute."""
    if not (type(x) is type(weight) is np.ndarray and weight.ndim == 2 and x.ndim >= 1 and x.size):
        return False
    return x.size >= FEWEST_ROWS * x.shape[-1] and x.size * weight.shape[1] >= WORTH and usable()


def accepts_linear_cross_entropy(h, table, bias, **settings):
    """Return True for arrays of NumPy, where kernels can run and there is enough to compute."""
    return table.ndim == 2 and accepts_linear(h, table.T, bias)


def accepts_rows(x, *arrays, **settings):
    """Return True for arrays of NumPy, where kernels can run and ``x`` has many entries."""
    if not all(array is None or type(array) is np.ndarray for array in (x, *arrays)):
        return False
    return x.size >= WORTH_OF_ROWS and usable()


def accepts_embedding(table, *, ids):
    """Return True for a table (V, D) and ids of NumPy, where kernels can run and many entries are chosen."""
    if not all(type(array) is np.ndarray for array in (table, ids)) or table.ndim != 2:
        return False
    return ids.size * table.shape[1] >= WORTH_OF_ROWS and usable()


def accepts_flat(buffer, *buffers, **settings):
    """Return True for contiguous arrays (N,) of NumPy, where kernels can run and these are long."""
    buffers = buffer, *buffers
    if not all(type(x) is np.ndarray and x.shape == (buffer.size,) and x.strides == (4,) for x in buffers):
        return False
    return buffer.size >= WORTH_OF_ROWS and usable()


def accepts_adamw(values, gradients, first_moment, second_moment, **settings):
    """Return True for what ``accepts_flat`` accepts, if the arrays that change can be written to."""
    writable = all(
        getattr(x, "flags", None) and x.flags.writeable for x in (values, first_moment, second_moment)
    )
    return writable and accepts_flat(values, gradients, first_moment, second_moment)


def accepts_packed_linear(x, bias, *, weight, **settings):
    """Return True for arrays of NumPy, of any size, where kernels can run: definitions unpack all."""
    return all(type(array) is np.ndarray for array in (x, weight.panels)) and usable()


@functools.cache
def usable():
    """Return True if Numba is installed, can be imported and compiles."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        numba = importlib.import_module("numba")
    except (ImportError, ValueError) as error:  # ValueError: about its environment variables
        warnings.warn(
            f"Numba is installed but cannot be imported, so definitions run instead of kernels: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return not numba.config.DISABLE_JIT
