"""fastconv: convolution, pooling and region operators for PyTorch, handwritten for CPU and CUDA."""

from fastconv import nn
from fastconv.conv import conv1d, conv2d
from fastconv.conv_transpose import conv_transpose1d, conv_transpose2d
from fastconv.convert import convert
from fastconv.explain import explain
from fastconv.flags import flags
from fastconv.rearrange import channel_shuffle, channel_unshuffle

__version__ = "0.1.0"

__all__ = [
    "channel_shuffle",
    "channel_unshuffle",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "convert",
    "explain",
    "flags",
    "nn",
]
