"""Convolution, plain and deformable, channel shuffle, pooling and regions of interest as slow and obvious as they can
be, in float64: what every kernel is held against.

A convolution is a loop over the taps of the kernel; each tap is one slice of the padded input. Nothing here
calls ``torch.nn.functional``. Shapes are those of 2-D convolutions; ``padding`` is (top, left, bottom,
right).
"""

from collections.abc import Iterator
from math import ceil, copysign, floor, prod

import numpy as np
import torch
from torch import Tensor


def _pad(input: Tensor, padding: tuple[int, ...]) -> Tensor:
    N, C, H, W = input.shape
    top, left, bottom, right = padding
    padded = input.new_zeros(N, C, H + top + bottom, W + left + right)
    padded[:, :, top : top + H, left : left + W] = input
    return padded


def _taps(weight_size, output_size, stride, dilation):
    """Of every tap (r, s): the rows and columns of the padded input that it reads."""
    (R, S), (P, Q) = weight_size[2:], output_size[2:]
    for r in range(R):
        rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
        for s in range(S):
            columns = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
            yield r, s, rows, columns


def output_size(input_size, weight_size, stride, padding, dilation) -> tuple[int, int, int, int]:
    extent = [dilation[d] * (weight_size[2 + d] - 1) + 1 for d in (0, 1)]
    P, Q = ((input_size[2 + d] + padding[d] + padding[2 + d] - extent[d]) // stride[d] + 1 for d in (0, 1))
    return input_size[0], weight_size[0], P, Q


def conv(input, weight, bias, stride, padding, dilation, groups) -> Tensor:
    input, weight = input.double(), weight.double()
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    padded, output = _pad(input, padding), input.new_zeros(size)
    for k in range(groups):
        into, out = weight.shape[1], weight.shape[0] // groups
        c_range, k_range = slice(k * into, (k + 1) * into), slice(k * out, (k + 1) * out)
        for r, s, rows, columns in _taps(weight.shape, size, stride, dilation):
            window = padded[:, c_range, rows, columns]
            output[:, k_range] += torch.einsum("ncpq,kc->nkpq", window, weight[k_range, :, r, s])
    return output if bias is None else output + bias.double().view(1, -1, 1, 1)


def grad_input(grad_output, weight, input_size, stride, padding, dilation, groups) -> Tensor:
    grad_output, weight = grad_output.double(), weight.double()
    padded = _pad(grad_output.new_zeros(input_size), padding)
    for k in range(groups):
        into, out = weight.shape[1], weight.shape[0] // groups
        c_range, k_range = slice(k * into, (k + 1) * into), slice(k * out, (k + 1) * out)
        for r, s, rows, columns in _taps(weight.shape, grad_output.shape, stride, dilation):
            term = torch.einsum("nkpq,kc->ncpq", grad_output[:, k_range], weight[k_range, :, r, s])
            padded[:, c_range, rows, columns] += term
    top, left = padding[:2]
    return padded[:, :, top : top + input_size[2], left : left + input_size[3]]


def grad_weight(grad_output, input, weight_size, stride, padding, dilation, groups) -> Tensor:
    grad_output, padded = grad_output.double(), _pad(input.double(), padding)
    grad = grad_output.new_zeros(weight_size)
    for k in range(groups):
        into, out = weight_size[1], weight_size[0] // groups
        c_range, k_range = slice(k * into, (k + 1) * into), slice(k * out, (k + 1) * out)
        for r, s, rows, columns in _taps(weight_size, grad_output.shape, stride, dilation):
            window = padded[:, c_range, rows, columns]
            grad[k_range, :, r, s] = torch.einsum("nkpq,ncpq->kc", grad_output[:, k_range], window)
    return grad


def deform_conv(input, offset, weight, bias, mask, stride, padding, dilation, *, magnitudes: bool = False) -> Tensor:
    """Every tap looks at four pixels, each in turn; gradients are autograd's.

    ``magnitudes``: of everything that is added up, whatever its sign; that of offsets too, where the pixels above and
    to the left would count negative.
    """
    input, offset, weight = input.double(), offset.double(), weight.double()
    bias, mask = (None if tensor is None else tensor.double() for tensor in (bias, mask))
    if magnitudes:
        input, weight = input.abs(), weight.abs()
        bias, mask = (None if tensor is None else tensor.abs() for tensor in (bias, mask))
    (N, C, H, W), (K, of_group, R, S) = input.shape, weight.shape
    P, Q = output_size(input.shape, weight.shape, stride, (*padding, *padding), dilation)[2:]
    G, groups = offset.shape[1] // (2 * R * S), C // of_group
    offsets, planes = offset.view(N, G, R * S, 2, P, Q), input.reshape(N, G, C // G, H * W)
    masks = None if mask is None else mask.view(N, G, 1, R * S, P, Q)
    output = [torch.zeros(N, K // groups, P, Q, dtype=torch.float64) for _ in range(groups)]

    def before(part: Tensor) -> Tensor:
        return (1 - 2 * part).detach() + part if magnitudes else 1 - part

    for tap in range(R * S):
        r, s = tap // S, tap % S
        y = offsets[:, :, tap, 0] + (torch.arange(P) * stride[0] - padding[0] + r * dilation[0])[:, None]
        x = offsets[:, :, tap, 1] + (torch.arange(Q) * stride[1] - padding[1] + s * dilation[1])
        counts = (y >= -1) & (y < H) & (x >= -1) & (x < W)
        y, x = torch.where(counts, y, 0), torch.where(counts, x, 0)
        top, left = y.detach().floor(), x.detach().floor()
        samples = torch.zeros(N, G, C // G, P, Q, dtype=torch.float64)
        for h, share_y in ((top, before(y - top)), (top + 1, y - top)):
            for w, share_x in ((left, before(x - left)), (left + 1, x - left)):
                inside = counts & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                at = torch.where(inside, h * W + w, 0).long().flatten(2)[:, :, None].expand(-1, -1, C // G, -1)
                pixels = planes.gather(3, at).view(samples.shape) * (share_y * share_x)[:, :, None]
                samples = samples + torch.where(inside[:, :, None], pixels, 0)
        if masks is not None:
            samples = samples * masks[:, :, :, tap]
        for g, of in enumerate(samples.view(N, C, P, Q).chunk(groups, 1)):
            output[g] = output[g] + torch.einsum("ncpq,kc->nkpq", of, weight[:, :, r, s].chunk(groups)[g])
    whole = torch.cat(output, 1)
    return whole if bias is None else whole + bias.view(1, -1, 1, 1)


def transposed_size(input_size, weight_size, stride, padding, output_padding, dilation, groups) -> tuple:
    extent = [dilation[d] * (weight_size[2 + d] - 1) + 1 for d in (0, 1)]
    sizes = [(input_size[2 + d] - 1) * stride[d] + extent[d] + output_padding[d] - 2 * padding[d] for d in (0, 1)]
    return input_size[0], weight_size[1] * groups, *sizes


def _transposed_taps(input_size, weight_size, stride, dilation, groups):
    """Of every group and tap: channels in, channels out, tap, and the rows and columns of the output, its padding
    not yet cut off, that the input is added to."""
    into, out = weight_size[0] // groups, weight_size[1]
    for k in range(groups):
        c_range, k_range = slice(k * into, (k + 1) * into), slice(k * out, (k + 1) * out)
        for r, s, rows, columns in _taps(weight_size, input_size, stride, dilation):
            yield c_range, k_range, r, s, rows, columns


def conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups) -> Tensor:
    """Every element of the input adds the kernel times itself; then padding is cut off."""
    input, weight = input.double(), weight.double()
    size = transposed_size(input.shape, weight.shape, stride, padding, output_padding, dilation, groups)
    whole = input.new_zeros(*size[:2], size[2] + 2 * padding[0], size[3] + 2 * padding[1])
    for c_range, k_range, r, s, rows, columns in _transposed_taps(input.shape, weight.shape, stride, dilation, groups):
        term = torch.einsum("nchw,ck->nkhw", input[:, c_range], weight[c_range, :, r, s])
        whole[:, k_range, rows, columns] += term
    output = whole[:, :, padding[0] : padding[0] + size[2], padding[1] : padding[1] + size[3]]
    return output if bias is None else output + bias.double().view(1, -1, 1, 1)


def transposed_grad_input(grad_output, weight, input_size, *, stride, padding, dilation, groups, **_) -> Tensor:
    whole, weight = _pad(grad_output.double(), padding * 2), weight.double()
    grad = whole.new_zeros(input_size)
    for c_range, k_range, r, s, rows, columns in _transposed_taps(input_size, weight.shape, stride, dilation, groups):
        window = whole[:, k_range, rows, columns]
        grad[:, c_range] += torch.einsum("nkhw,ck->nchw", window, weight[c_range, :, r, s])
    return grad


def transposed_grad_weight(grad_output, input, weight_size, *, stride, padding, dilation, groups, **_) -> Tensor:
    whole, input = _pad(grad_output.double(), padding * 2), input.double()
    grad = whole.new_zeros(weight_size)
    for c_range, k_range, r, s, rows, columns in _transposed_taps(input.shape, weight_size, stride, dilation, groups):
        window = whole[:, k_range, rows, columns]
        grad[c_range, :, r, s] = torch.einsum("nkhw,nchw->ck", window, input[:, c_range])
    return grad


def grad_bias(grad_output) -> Tensor:
    return grad_output.double().sum((0, 2, 3))


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Channel i * (C / groups) + j goes to j * groups + i."""
    output = torch.empty_like(input)
    per_group = input.shape[1] // groups
    for i in range(groups):
        for j in range(per_group):
            output[:, j * groups + i] = input[:, i * per_group + j]
    return output


def channel_unshuffle(input: Tensor, groups: int) -> Tensor:
    output = torch.empty_like(input)
    per_group = input.shape[1] // groups
    for i in range(groups):
        for j in range(per_group):
            output[:, i * per_group + j] = input[:, j * groups + i]
    return output


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> list[list[int]]:
    """The positions of each window of one axis, those in the padding as well."""
    extent = dilation * (kernel - 1) + 1
    firsts = []
    first = -padding
    while first + extent <= size + padding or (ceil_mode and first < size and first + extent < size + padding + stride):
        firsts.append(first)
        first += stride
    return [[first + tap * dilation for tap in range(kernel)] for first in firsts]


def _adaptive_windows(size: int, outputs: int) -> list[list[int]]:
    return [list(range(o * size // outputs, -(-(o + 1) * size // outputs))) for o in range(outputs)]


def pool_windows(size, kernel=None, stride=None, padding=0, dilation=1, ceil_mode=False, output_size=None):
    """Rows and columns of the windows of planes of ``size``: two lists of lists of positions."""
    if output_size is not None:
        return tuple(_adaptive_windows(s, o) for s, o in zip(size, _two(output_size), strict=True))
    lists = zip(size, *map(_two, (kernel, stride or kernel, padding, dilation)), strict=True)
    return tuple(_windows(*each, ceil_mode) for each in lists)


def _two(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def max_pool(input: Tensor, **windows) -> tuple[Tensor, Tensor]:
    """Maxima and where they are: the first of equal ones, the last NaN; -inf and -1 of windows without elements."""
    N, C, H, W = input.shape
    rows, columns = pool_windows((H, W), **windows)
    values = torch.full((N, C, len(rows), len(columns)), -torch.inf, dtype=torch.float64)
    indices = torch.full(values.shape, -1)
    flat = input.double().flatten(2)
    for p, hs in enumerate(rows):
        for q, ws in enumerate(columns):
            inside = [h * W + w for h in hs if 0 <= h < H for w in ws if 0 <= w < W]
            if not inside:
                continue
            window = flat[..., inside]
            nan, number = window.isnan(), torch.arange(len(inside))
            last_nan = torch.where(nan, number, -1).amax(-1)
            largest = window.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
            first = torch.where(window == largest, number, len(inside)).amin(-1)
            winner = torch.where(last_nan >= 0, last_nan, first)
            values[..., p, q] = window.gather(-1, winner.unsqueeze(-1)).squeeze(-1)
            indices[..., p, q] = torch.tensor(inside)[winner]
    return values, indices


def max_pool_grad(grad: Tensor, indices: Tensor, size) -> Tensor:
    """Each window's gradient added to its winner."""
    N, C, H, W = size
    result = torch.zeros(N, C, H * W + 1, dtype=torch.float64)  # one more, for windows without elements
    where = indices.flatten(2)
    result.scatter_add_(2, torch.where(where < 0, torch.tensor(H * W), where), grad.double().flatten(2))
    return result[..., :-1].reshape(size)


def of_windows(arguments):
    """Of the arguments of a mean those that say where the windows are."""
    return {name: value for name, value in arguments.items() if name not in ("count_include_pad", "divisor_override")}


def _means(size, count_include_pad=True, divisor_override=None, **windows):
    """Of every mean: where it is, the elements of the plane that it adds up, and what it divides by."""
    H, W = size
    padding = _two(windows.get("padding", 0))
    rows, columns = pool_windows(size, **windows)
    for p, hs in enumerate(rows):
        for q, ws in enumerate(columns):
            inside = [h * W + w for h in hs if 0 <= h < H for w in ws if 0 <= w < W]
            counted = sum(h < H + padding[0] for h in hs) * sum(w < W + padding[1] for w in ws)
            yield p, q, inside, divisor_override or (counted if count_include_pad else len(inside))


def avg_pool(input: Tensor, **windows) -> Tensor:
    size = input.shape[2:]
    output = torch.zeros(*input.shape[:2], *map(len, pool_windows(size, **of_windows(windows))), dtype=torch.float64)
    flat = input.double().flatten(2)
    for p, q, inside, divisor in _means(size, **windows):
        output[..., p, q] = flat[..., inside].sum(-1) / divisor
    return output


def avg_pool_grad(grad: Tensor, size, **windows) -> Tensor:
    """Each mean's gradient in equal shares to what it has added up."""
    N, C, H, W = size
    result = torch.zeros(N, C, H * W, dtype=torch.float64)
    for p, q, inside, divisor in _means((H, W), **windows):
        result[..., inside] += grad[..., p, q].double().unsqueeze(-1) / divisor
    return result.reshape(size)


def max_unpool(values: Tensor, indices: Tensor, size) -> Tensor:
    """Each window's value to its index, one after the other."""
    N, C = values.shape[:2]
    planes = []
    for some, where in zip(values.flatten(2).flatten(0, 1).tolist(), indices.flatten(2).flatten(0, 1), strict=True):
        plane = [0.0] * prod(size)
        for value, index in zip(some, where.tolist(), strict=True):
            plane[index] = value
        planes.append(plane)
    return torch.tensor(planes, dtype=torch.float64).reshape(N, C, *size).to(values.dtype)


def max_unpool_grad(grad: Tensor, indices: Tensor) -> Tensor:
    """Each window's gradient is that of its index."""
    return grad.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)


def avg_unpool(values: Tensor, size, kernel, stride=None, padding=0) -> Tensor:
    """The mean of the windows that cover each position, zero where none does."""
    kernel, stride, padding = _two(kernel), _two(stride or kernel), _two(padding)
    N, C, P, Q = values.shape
    result = torch.zeros(N, C, *size, dtype=torch.float64)
    for h in range(size[0]):
        for w in range(size[1]):
            covering = [
                values[:, :, p, q].double()
                for p in range(P)
                if 0 <= h + padding[0] - p * stride[0] < kernel[0]
                for q in range(Q)
                if 0 <= w + padding[1] - q * stride[1] < kernel[1]
            ]
            if covering:
                result[:, :, h, w] = sum(covering) / len(covering)
    return result


def philox(counter, key) -> tuple[int, int, int, int]:
    """Four words of 32 random bits: Philox 4x32-10, as its paper has it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def stochastic_pool(input: Tensor, seed: int, **windows) -> tuple[Tensor, Tensor]:
    """What is drawn, and where it is: the first tap with which the sum exceeds its share of the whole sum, in the type
    that sums are computed in. Of windows of zeros zero, and the first tap."""
    N, C, H, W = input.shape
    rows, columns = pool_windows((H, W), **windows)
    wide = input.double() if input.dtype == torch.float64 else input.float()
    values = torch.zeros(N, C, len(rows), len(columns), dtype=torch.float64)
    indices = torch.zeros(values.shape, dtype=torch.int64)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    bits = [philox((place & 0xFFFFFFFF, place >> 32, 0, 0), key) for place in range(values.numel())]
    if wide.dtype == torch.float64:
        uniform = torch.tensor([((w[1] << 32 | w[0]) >> 11) * 2.0**-53 for w in bits], dtype=wide.dtype)
    else:
        uniform = torch.tensor([(w[0] >> 8) * 2.0**-24 for w in bits], dtype=wide.dtype)
    uniform = uniform.view(values.shape)
    for p, hs in enumerate(rows):
        for q, ws in enumerate(columns):
            inside = [(h, w) for h in hs if 0 <= h < H for w in ws if 0 <= w < W]
            total = torch.zeros(N, C, dtype=wide.dtype)
            for h, w in inside:
                total = total + wide[..., h, w]
            target, so_far, found = uniform[..., p, q] * total, torch.zeros_like(total), total < 0
            indices[..., p, q] = inside[0][0] * W + inside[0][1]
            for h, w in inside:
                so_far = so_far + wide[..., h, w]
                now = (so_far > target) & ~found
                values[..., p, q] = torch.where(now, wide[..., h, w].double(), values[..., p, q])
                indices[..., p, q] = torch.where(now, torch.tensor(h * W + w), indices[..., p, q])
                found = found | now
    return values, indices


def _boxes(input: Tensor, boxes: Tensor, scale: float) -> Iterator[tuple[int, tuple, tuple]]:
    """Of each box its image, and where it begins and ends on the map along both axes: in the type that sums are
    computed in, because what is rounded decides on how many samples there are."""
    wide = np.float64 if input.dtype == torch.float64 else np.float32
    for image, x1, y1, x2, y2 in boxes.double().numpy().astype(wide):
        factor = wide(scale)
        yield int(image), (y1 * factor, y2 * factor), (x1 * factor, x2 * factor)


def _samples(ends, bins: int, sampling: int, aligned: bool, narrow: bool) -> list[list[float]]:
    """Of each bin of an axis the coordinates of its samples."""
    wide = type(ends[0])
    shift = wide(0.5 if aligned else 0)
    start = ends[0] - shift
    extent = ends[1] - shift - start
    if not narrow:
        extent = max(extent, wide(1))
    bin = extent / wide(bins)
    count = sampling if sampling > 0 else ceil(bin)
    return [
        [float(start + wide(b) * bin + (wide(i) + wide(0.5)) * bin / wide(count)) for i in range(count)]
        for b in range(bins)
    ]


def _bilinear(size, y: float, x: float) -> list[tuple[int, float]]:
    """The pixels that a sample is made of, with their weights."""
    if not (-1 <= y <= size[0] and -1 <= x <= size[1]):
        return []
    axes = []
    for at, most in ((y, size[0] - 1), (x, size[1] - 1)):
        low = min(int(max(at, 0)), most)
        part = max(at, 0) - low if low < most else 0.0
        axes.append([(low, 1 - part), (min(low + 1, most), part)])
    return [(i * size[1] + j, a * b) for i, a in axes[0] for j, b in axes[1]]


def _pixels(ends, bins: int, size: int, inclusive: bool) -> list[range]:
    """Of each bin of an axis its whole pixels."""
    first, last = (copysign(floor(abs(float(end)) + 0.5), end) for end in ends)
    wide = type(ends[0])
    bin = wide(max(last - first + inclusive, 1)) / wide(bins)
    return [
        range(*(min(max(int(first) + edge, 0), size) for edge in (floor(wide(b) * bin), ceil(wide(b + 1) * bin))))
        for b in range(bins)
    ]


def roi_weights(op: str, input: Tensor, boxes: Tensor, output_size, scale=1.0, sampling=-1, aligned=False):
    """Of each box its image, and what each pixel weighs in each of its bins, ``Tensor[K, P, Q, H * W]``: all there is
    to roi_align, ps_roi_align and ps_roi_pool."""
    (P, Q), (H, W) = output_size, input.shape[2:]
    images, weights = [], np.zeros((boxes.shape[0], P, Q, H * W))
    for k, (image, *axes) in enumerate(_boxes(input, boxes, scale)):
        images.append(image)
        if op == "ps_roi_pool":  # the last row and the last column are in no bin
            rows, columns = (_pixels(*axis, False) for axis in zip(axes, (P, Q), (H - 1, W - 1), strict=True))
        else:
            kind = (True, True) if op == "ps_roi_align" else (aligned, aligned)
            rows, columns = (_samples(*axis, sampling, *kind) for axis in zip(axes, (P, Q), strict=True))
        for p, q in np.ndindex(P, Q):
            count = len(rows[p]) * len(columns[q])
            for y in rows[p]:
                for x in columns[q]:
                    inside = [(y * W + x, 1.0)] if op == "ps_roi_pool" else _bilinear((H, W), y, x)
                    for at, weight in inside:
                        weights[k, p, q, at] += weight / count
    return images, torch.from_numpy(weights)


def roi_means(op: str, input: Tensor, images: list[int], weights: Tensor) -> Tensor:
    K, P, Q, _ = weights.shape
    sensitive = op.startswith("ps_")
    output = torch.zeros(K, input.shape[1] // (P * Q if sensitive else 1), P, Q, dtype=torch.float64)
    flat = input.double().flatten(2)
    for k in range(K):
        if sensitive:
            output[k] = torch.einsum("cpqx,pqx->cpq", flat[images[k]].unflatten(0, (-1, P, Q)), weights[k])
        else:
            output[k] = torch.einsum("cx,pqx->cpq", flat[images[k]], weights[k])
    return output


def roi_means_grad(op: str, grad: Tensor, images: list[int], weights: Tensor, size) -> Tensor:
    """Each bin's gradient to the pixels that it is made of, by their weights."""
    result = torch.zeros(*size[:2], size[2] * size[3], dtype=torch.float64)
    for k in range(weights.shape[0]):
        if op.startswith("ps_"):
            each = grad[k].double().unsqueeze(-1) * weights[k]
            result[images[k]] += each.reshape(size[1], -1)
        else:
            result[images[k]] += torch.einsum("cpq,pqx->cx", grad[k].double(), weights[k])
    return result.reshape(size)


def roi_pool(input: Tensor, boxes: Tensor, output_size, scale=1.0) -> tuple[Tensor, Tensor]:
    """The largest pixel of each bin and where it is: the first of equal ones, the last NaN; 0 and -1 of empty bins."""
    (P, Q), (H, W) = output_size, input.shape[2:]
    values = torch.zeros(boxes.shape[0], input.shape[1], P, Q, dtype=torch.float64)
    ids = torch.full(values.shape, -1, dtype=torch.int32)
    flat = input.double().flatten(2)
    for k, (image, rows, columns) in enumerate(_boxes(input, boxes, scale)):
        rows, columns = _pixels(rows, P, H, True), _pixels(columns, Q, W, True)
        for p, q in np.ndindex(P, Q):
            inside = [y * W + x for y in rows[p] for x in columns[q]]
            if not inside:
                continue
            pixels, number = flat[image][:, inside], torch.arange(len(inside))
            last_nan = torch.where(pixels.isnan(), number, -1).amax(-1)
            largest = torch.where(pixels.isnan(), -torch.inf, pixels).amax(-1, keepdim=True)
            first = torch.where(pixels == largest, number, len(inside)).amin(-1)
            winner = torch.where(last_nan >= 0, last_nan, first)
            values[k, :, p, q] = pixels.gather(-1, winner.unsqueeze(-1)).squeeze(-1)
            ids[k, :, p, q] = torch.tensor(inside, dtype=torch.int32)[winner]
    return values, ids


def roi_pool_grad(grad: Tensor, ids: Tensor, boxes: Tensor, size) -> Tensor:
    """Each bin's gradient to its winner."""
    result = torch.zeros(*size[:2], size[2] * size[3] + 1, dtype=torch.float64)  # one more, for empty bins
    where = torch.where(ids < 0, size[2] * size[3], ids).long().flatten(2)
    for k, image in enumerate(boxes[:, 0].int().tolist()):
        result[image].scatter_add_(1, where[k], grad[k].double().flatten(1))
    return result[..., :-1].reshape(size)
