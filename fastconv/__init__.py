"""fastconv: convolution, pooling and region operators for PyTorch, handwritten for CPU and CUDA."""

from fastconv import nn
from fastconv.bilinear_pool import bilinear_pool2d, compact_bilinear_pool2d
from fastconv.conv import conv1d, conv2d
from fastconv.conv_transpose import conv_transpose1d, conv_transpose2d
from fastconv.convert import convert
from fastconv.deform import deform_conv2d, deform_sample2d
from fastconv.explain import explain
from fastconv.flags import flags
from fastconv.lp_pool import lp_pool2d
from fastconv.pool import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    global_avg_pool2d,
    global_max_pool2d,
    max_pool1d,
    max_pool2d,
)
from fastconv.rearrange import channel_shuffle, channel_unshuffle
from fastconv.roi import multi_scale_roi_align, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from fastconv.spatial_pyramid_pool import spatial_pyramid_pool2d
from fastconv.stochastic_pool import stochastic_pool2d
from fastconv.unpool import avg_unpool2d, max_unpool1d, max_unpool2d

__version__ = "0.1.0"

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_unpool2d",
    "bilinear_pool2d",
    "channel_shuffle",
    "channel_unshuffle",
    "compact_bilinear_pool2d",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "convert",
    "deform_conv2d",
    "deform_sample2d",
    "explain",
    "flags",
    "global_avg_pool2d",
    "global_max_pool2d",
    "lp_pool2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool1d",
    "max_unpool2d",
    "multi_scale_roi_align",
    "nn",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "spatial_pyramid_pool2d",
    "stochastic_pool2d",
]
