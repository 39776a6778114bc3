"""The Triton kernel of `fused.py`. Shapes in brackets; R, C, D, E are the padded sizes of one block."""

# Triton compiles what Python's types cannot follow
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false
import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(base, strides, batch, head, rows, columns, num_rows, num_columns):
    """Loads `[rows, columns]` of one head of a `(B, H, N, D)` tensor with any strides, 0 beyond its ends."""
    start = base + batch * strides[0] + head * strides[1]
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(start + rows[:, None] * strides[2] + columns[None, :] * strides[3], mask=inside, other=0.0)


@triton.jit
def _store(base, block, rows, columns, plane, num_rows, num_columns):
    """Stores a block in plane `plane` of a contiguous stack of `num_rows x num_columns` matrices."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    pointers = base + (plane * num_rows + rows[:, None]) * num_columns + columns[None, :]
    tl.store(pointers, block.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _gaussian_rows_kernel(
    points,
    point_strides,
    values,
    value_strides,
    other_points,
    other_point_strides,
    other_values,
    other_value_strides,
    centre,
    product,
    gradient,
    heads,
    num_rows,
    num_others,
    point_width,
    value_width,
    chunk,
    PRODUCT: tl.constexpr,
    GRADIENT: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Sums over one chunk of the other side, for one block of rows: see `fused.py`."""
    row_blocks = tl.cdiv(num_rows, BLOCK_R)
    image_head = (tl.program_id(0) // row_blocks).to(tl.int64)
    batch, head = image_head // heads, image_head % heads
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(1).to(tl.int64)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)

    p = _load(points, point_strides, batch, head, rows, d, num_rows, point_width)  # [R, D]
    c = tl.load(centre + image_head * point_width + d, mask=d < point_width, other=0.0)  # [D]
    centred = tl.max(tl.abs(c), 0) > 0
    p_wide = p.to(tl.float32) - c[None, :]
    p_square = tl.sum(p_wide * p_wide, 1)  # [R]
    if GRADIENT:
        u = _load(values, value_strides, batch, head, rows, e, num_rows, value_width).to(tl.float32)  # [R, E]
        pulls = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        weights = tl.zeros([BLOCK_R], tl.float32)
    if PRODUCT:
        total = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)

    end = tl.minimum((split + 1) * chunk, num_others)
    for start in range(split * chunk, end, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        o = _load(other_points, other_point_strides, batch, head, columns, d, num_others, point_width)  # [C, D]
        o_wide = o.to(tl.float32) - c[None, :]
        w = _load(other_values, other_value_strides, batch, head, columns, e, num_others, value_width)
        w = w.to(tl.float32)  # [C, E]
        # products of halves are exact in the float32 accumulator; those of float32 must not be cut to tf32
        if NARROW:
            if centred:
                exponent = tl.dot(p_wide, tl.trans(o_wide), input_precision="ieee")  # [R, C]
            else:
                exponent = tl.dot(p, tl.trans(o), input_precision="ieee")
        else:
            exponent = tl.dot(p_wide, tl.trans(o_wide), input_precision="ieee")
        exponent -= 0.5 * p_square[:, None] + 0.5 * tl.sum(o_wide * o_wide, 1)[None, :]
        exponent = tl.where(exponent > 0, 0.0, exponent)  # unlike a minimum, keeps NaN
        kernel = tl.where(columns[None, :] < num_others, tl.exp2(exponent * _LOG2_E), 0.0)
        if PRODUCT:
            total += tl.dot(kernel, w, input_precision="ieee")
        if GRADIENT:
            s = kernel * tl.dot(u, tl.trans(w), input_precision="ieee")
            pulls += tl.dot(s, o_wide, input_precision="ieee")
            weights += tl.sum(s, 1)

    plane = split * (tl.num_programs(0) // row_blocks) + image_head
    if PRODUCT:
        _store(product, total, rows, e, plane, num_rows, value_width)
    if GRADIENT:
        _store(gradient, pulls - weights[:, None] * p_wide, rows, d, plane, num_rows, point_width)
