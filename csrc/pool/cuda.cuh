// Pooling on CUDA. The arithmetic is small and the elements are many, so what counts is that each is read about once,
// in wide accesses, with few instructions around them. From the input to the output:
//
// pool_pixels: a thread has one window of up to 16 bytes of neighbouring channels (channels_last memory), or one window
// of a plane (contiguous memory, which is channels_last of one channel).
//
// pool_strips: contiguous memory, and the windows that networks are made of. A thread reads 16 bytes of each row, at
// once where rows are aligned, and the few columns to their left and right, and has all windows that begin there:
// positions are registers, as the window's size, stride and padding are known to the compiler.
//
// pool_spans, pool_slices: large windows that overlap little, down to one that is the whole plane. Several threads, up
// to a block, share a window and join what they have found: neighbouring threads read neighbouring elements of the
// plane (spans, contiguous memory) or neighbouring channels (slices, channels_last memory).
//
// And back. The gradient of the input is gathered: an element is written once, by the thread that owns it, which asks
// the windows that cover it, always in the same order.
//
// pool_gather_pixels: a thread has 16 bytes of channels of one position, or one position of a plane.
//
// pool_gather_rows: contiguous memory; a thread has 16 bytes of a row. It goes through the windows that cover them,
// each of which is read once and adds to the one position that won (max) or to all that it has (avg).
//
// Of draws and of unpooling the files of these names speak.
#pragma once
#include "pool/cuda_backward.cuh"
#include "pool/cuda_forward.cuh"
#include "pool/cuda_ids.cuh"
#include "pool/cuda_stochastic.cuh"
#include "pool/cuda_unpool.cuh"
