// Channel shuffle on CUDA moves bytes and computes nothing, so the only question is how few and how wide the accesses
// are. Two kernels:
//
// transpose_planes: whole planes of `inner` elements change places (contiguous memory). Each thread works out where its
// bytes come from once and then moves the same bytes of several samples: the divisions are shared, and the loads are in
// flight together. Accesses are as wide as the planes' size allows; planes of an odd number of 8- or 16-bit elements
// (7x7 in bfloat16) are read one element at a time but still written as whole 32-bit words.
//
// transpose_pixels: the C elements of a pixel are a small matrix to transpose (channels_last memory). A block brings a
// run of pixels into shared memory and takes it out again with 16-byte accesses on both sides; the elements change
// places on the way out, or on the way in where that spares bank conflicts.
#pragma once
#include "core/divisor.h"
#include "core/launch.h"
#include "rearrange/params.h"

namespace fastconv {
namespace {

constexpr int kTransposeThreads = 256;
constexpr int kSamplesPerThread = 4;
constexpr int64_t kGroupBlocks = 8;
constexpr int64_t kPixelTileBytes = 16 << 10;     // small enough for 8 or more blocks a multiprocessor
constexpr int64_t kPixelTileMaxBytes = 48 << 10;  // what a block gets without asking

// `samples` are moved in groups of `fold`, so that small ones fill blocks and ragged ones a 32-bit word; `Index` holds
// the number of pieces in a group and of blocks, the offset of a group is 64-bit.
template <class Index>
struct PlanesArgs {
  const char* input;                    // [samples, rows, columns, plane]
  char* output;                         // [samples, columns, rows, plane]
  int64_t pieces;                       // in all samples
  int64_t group_pieces;                 // in `fold` samples
  int64_t blocks;                       // in all; a block takes its part of kSamplesPerThread groups
  Divisor<Index> blocks_per_group;      // that cover one group
  Divisor<Index> plane, rows, columns;  // plane in pieces
};

// A thread writes Words made of one or more Pieces; a piece never crosses from one plane into the next.
template <class Word, class Piece, class Index>
__global__ void __launch_bounds__(kTransposeThreads) transpose_planes(const PlanesArgs<Index> args) {
  constexpr int kPieces = sizeof(Word) / sizeof(Piece);
  const Piece* input = reinterpret_cast<const Piece*>(args.input);
  for (int64_t block = blockIdx.x; block < args.blocks; block += gridDim.x) {
    const Index chunk = args.blocks_per_group.divide(static_cast<Index>(block));
    const Index part = static_cast<Index>(block) - chunk * args.blocks_per_group.value;
    const Index first = (part * kTransposeThreads + threadIdx.x) * kPieces;
    if (first >= static_cast<uint64_t>(args.group_pieces)) continue;
    Index source[kPieces];  // where each piece comes from, within a group
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const Index piece = first + k;
      const Index plane = args.plane.divide(piece), pair = args.rows.divide(plane);
      const Index sample = args.columns.divide(pair), column = pair - sample * args.columns.value;
      const Index row = plane - pair * args.rows.value;
      source[k] = ((sample * args.rows.value + row) * args.columns.value + column) * args.plane.value + piece -
                  plane * args.plane.value;
    }
    const int64_t base = static_cast<int64_t>(chunk) * kSamplesPerThread * args.group_pieces;
    Piece moved[kSamplesPerThread][kPieces];
#pragma unroll
    for (int s = 0; s < kSamplesPerThread; ++s)
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        const int64_t group = base + s * args.group_pieces;
        if (group + static_cast<int64_t>(first) + k < args.pieces) moved[s][k] = input[group + source[k]];
      }
#pragma unroll
    for (int s = 0; s < kSamplesPerThread; ++s) {
      const int64_t at = base + s * args.group_pieces + static_cast<int64_t>(first);
      Piece* output = reinterpret_cast<Piece*>(args.output) + at;
      if constexpr (kPieces > 1) {
        if (at + kPieces <= args.pieces) {
          Word word = 0;
#pragma unroll
          for (int k = 0; k < kPieces; ++k) word |= static_cast<Word>(moved[s][k]) << (8 * sizeof(Piece) * k);
          *reinterpret_cast<Word*>(output) = word;
          continue;
        }
      }
#pragma unroll
      for (int k = 0; k < kPieces; ++k)
        if (at + k < args.pieces) output[k] = moved[s][k];
    }
  }
}

struct PixelsArgs {
  const char* input;  // [pixels, rows, columns]
  char* output;       // [pixels, columns, rows]
  int64_t bytes;      // in all pixels
  int64_t tiles;
  uint32_t tile_bytes;           // whole pixels, and a multiple of 16
  bool wide_input, wide_output;  // the pointer is a multiple of 16
  Divisor<uint32_t> pixel;       // elements
  uint32_t major;                // the factor of a pixel that counts slowly on the side whose order the walk follows
  Divisor<uint32_t> minor;       // and the one that counts fast
};

// Walks elements in the order of one side of a tile and says where each lies on the other side: element
// (pixel, a, b) of [pixels, major, minor] is (pixel, b, a) there. One division at the start, then only carries.
struct TransposedWalk {
  uint32_t pixel, a, b, major, minor, elements;

  __device__ TransposedWalk(const PixelsArgs& args, uint32_t element)
      : major(args.major), minor(args.minor.value), elements(args.pixel.value) {
    const uint32_t index = args.pixel.divide(element);
    pixel = index * elements;
    a = args.minor.divide(element - pixel);
    b = element - pixel - a * minor;
  }
  __device__ uint32_t there() const { return pixel + b * major + a; }
  __device__ void next() {
    if (++b < minor) return;
    b = 0;
    if (++a < major) return;
    a = 0;
    pixel += elements;
  }
};

// Gather: shared memory holds the tile as it came, and the walk follows the output. Otherwise (scatter) the walk
// follows the input, and shared memory holds the tile as it leaves.
template <class T, bool Gather>
__global__ void __launch_bounds__(kTransposeThreads) transpose_pixels(const PixelsArgs args) {
  constexpr uint32_t kPerWide = 16 / sizeof(T);
  T* tile = dynamic_shared<T>();
  for (int64_t t = blockIdx.x; t < args.tiles; t += gridDim.x) {
    const int64_t offset = t * args.tile_bytes;
    const int64_t left = args.bytes - offset;
    const uint32_t bytes = left < args.tile_bytes ? static_cast<uint32_t>(left) : args.tile_bytes;
    const char* input = args.input + offset;
    char* output = args.output + offset;

    const uint32_t wide_in = args.wide_input ? bytes / 16 : 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < wide_in; i += kTransposeThreads) {
      const uint4 words = load16(input + 16 * i);
      if constexpr (Gather || kPerWide == 1) {
        if constexpr (Gather)
          store16(tile + i * kPerWide, words);
        else
          store16(tile + TransposedWalk(args, i).there(), words);
      } else {
        alignas(16) T pieces[kPerWide];
        store16(pieces, words);
        TransposedWalk walk(args, i * kPerWide);
#pragma unroll
        for (uint32_t k = 0; k < kPerWide; ++k, walk.next()) tile[walk.there()] = pieces[k];
      }
    }
    const uint32_t elements = bytes / sizeof(T);
    for (uint32_t i = wide_in * kPerWide + threadIdx.x; i < elements; i += kTransposeThreads) {
      const T element = reinterpret_cast<const T*>(input)[i];
      tile[Gather ? i : TransposedWalk(args, i).there()] = element;
    }
    sync_block();

    const uint32_t wide_out = args.wide_output ? bytes / 16 : 0;
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < wide_out; i += kTransposeThreads) {
      if constexpr (!Gather) {
        store16(output + 16 * i, load16(tile + i * kPerWide));
      } else {
        alignas(16) T pieces[kPerWide];
        TransposedWalk walk(args, i * kPerWide);
#pragma unroll
        for (uint32_t k = 0; k < kPerWide; ++k, walk.next()) pieces[k] = tile[walk.there()];
        store16(output + 16 * i, load16(pieces));
      }
    }
    for (uint32_t i = wide_out * kPerWide + threadIdx.x; i < elements; i += kTransposeThreads)
      reinterpret_cast<T*>(output)[i] = tile[Gather ? TransposedWalk(args, i).there() : i];
    sync_block();  // before the next tile overwrites this one
  }
}

// ---- launchers ----

inline int64_t greatest_common_divisor(int64_t a, int64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }
// The widest access, up to 16 bytes, that all of `bits` (addresses and sizes, combined with |) are multiples of.
inline int64_t widest_access(uint64_t bits) { return static_cast<int64_t>((bits | 16) & -(bits | 16)); }

template <class Word, class Piece, class Index>
void launch_planes(const TransposeParams& p, int64_t plane_bytes, int64_t fold, const Stream& stream,
                   int64_t max_grid) {
  constexpr int64_t kPieces = sizeof(Word) / sizeof(Piece);
  PlanesArgs<Index> args;
  args.input = static_cast<const char*>(p.input);
  args.output = static_cast<char*>(p.output);
  const int64_t plane = plane_bytes / static_cast<int64_t>(sizeof(Piece));
  args.pieces = p.outer * p.rows * p.columns * plane;
  args.group_pieces = fold * p.rows * p.columns * plane;
  const int64_t blocks_per_group = ceil_divide(args.group_pieces, kPieces * kTransposeThreads);
  args.blocks = blocks_per_group * ceil_divide(p.outer, fold * kSamplesPerThread);
  args.blocks_per_group = Divisor<Index>(static_cast<Index>(blocks_per_group));
  args.plane = Divisor<Index>(static_cast<Index>(plane));
  args.rows = Divisor<Index>(static_cast<Index>(p.rows));
  args.columns = Divisor<Index>(static_cast<Index>(p.columns));
  const int64_t grid = args.blocks < max_grid ? args.blocks : max_grid;
  launch(transpose_planes<Word, Piece, Index>, dim3(static_cast<unsigned>(grid)), dim3(kTransposeThreads), 0, stream,
         args);
}

template <class Word, class Piece>
void choose_planes(const TransposeParams& p, int64_t plane_bytes, const Stream& stream, int64_t max_grid) {
  const int64_t sample_bytes = p.rows * p.columns * plane_bytes;
  constexpr int64_t kWord = sizeof(Word);
  // A group starts at a whole word, and has enough of them that its last block, which is not full, hardly counts.
  int64_t fold = kWord / greatest_common_divisor(sample_bytes, kWord);
  fold *= ceil_divide(kGroupBlocks * kTransposeThreads * kWord, fold * sample_bytes);
  const int64_t pieces = fold * sample_bytes / static_cast<int64_t>(sizeof(Piece));
  const int64_t most_blocks = ceil_divide(p.outer * sample_bytes, kWord);
  if (pieces < (int64_t{1} << 31) - kTransposeThreads * kWord && most_blocks < int64_t{1} << 31)
    launch_planes<Word, Piece, uint32_t>(p, plane_bytes, fold, stream, max_grid);
  else
    launch_planes<Word, Piece, uint64_t>(p, plane_bytes, fold, stream, max_grid);
}

inline void launch_transpose_planes(const TransposeParams& p, const Stream& stream, int64_t max_grid) {
  const int64_t plane_bytes = p.inner * p.element_size;
  const uint64_t output = reinterpret_cast<uintptr_t>(p.output);
  switch (widest_access(reinterpret_cast<uintptr_t>(p.input) | output | static_cast<uint64_t>(plane_bytes))) {
    case 16: return choose_planes<uint4, uint4>(p, plane_bytes, stream, max_grid);
    case 8: return choose_planes<uint2, uint2>(p, plane_bytes, stream, max_grid);
    case 4: return choose_planes<uint32_t, uint32_t>(p, plane_bytes, stream, max_grid);
    case 2:
      if (output % 4 == 0) return choose_planes<uint32_t, uint16_t>(p, plane_bytes, stream, max_grid);
      return choose_planes<uint16_t, uint16_t>(p, plane_bytes, stream, max_grid);
    default:
      if (output % 4 == 0) return choose_planes<uint32_t, uint8_t>(p, plane_bytes, stream, max_grid);
      return choose_planes<uint8_t, uint8_t>(p, plane_bytes, stream, max_grid);
  }
}

// The fewest pixels whose bytes are a multiple of 16.
inline int64_t pixel_step(const TransposeParams& p) {
  return 16 / greatest_common_divisor(p.rows * p.columns * p.element_size, 16);
}

template <class T>
void launch_transpose_pixels(const TransposeParams& p, const Stream& stream, int64_t max_grid) {
  const int64_t pixel_bytes = p.rows * p.columns * p.element_size, step = pixel_step(p);
  const int64_t steps = kPixelTileBytes / (step * pixel_bytes);
  const int64_t tile_bytes = (steps > 0 ? steps : 1) * step * pixel_bytes;
  // Whichever side the walk follows, neighbouring threads are neighbours along its fast axis, and on the other side
  // `major` elements apart in shared memory: follow the side where that is the smaller factor.
  const bool gather = p.rows <= p.columns;
  PixelsArgs args;
  args.input = static_cast<const char*>(p.input);
  args.output = static_cast<char*>(p.output);
  args.bytes = p.outer * pixel_bytes;
  args.tiles = ceil_divide(args.bytes, tile_bytes);
  args.tile_bytes = static_cast<uint32_t>(tile_bytes);
  args.wide_input = reinterpret_cast<uintptr_t>(p.input) % 16 == 0;
  args.wide_output = reinterpret_cast<uintptr_t>(p.output) % 16 == 0;
  args.pixel = Divisor<uint32_t>(static_cast<uint32_t>(p.rows * p.columns));
  args.major = static_cast<uint32_t>(gather ? p.columns : p.rows);
  args.minor = Divisor<uint32_t>(static_cast<uint32_t>(gather ? p.rows : p.columns));
  const dim3 grid(static_cast<unsigned>(args.tiles < max_grid ? args.tiles : max_grid)), block(kTransposeThreads);
  if (gather)
    launch(transpose_pixels<T, true>, grid, block, static_cast<size_t>(tile_bytes), stream, args);
  else
    launch(transpose_pixels<T, false>, grid, block, static_cast<size_t>(tile_bytes), stream, args);
}

// Runs the transposition that `params` describes. `max_grid` is there for the tests: with fewer blocks than work, the
// loops over the grid are reached at sizes that a test can afford.
inline void transpose(TransposeParams params, const Stream& stream, int64_t max_grid = kMaxGrid) {
  const uint64_t addresses = reinterpret_cast<uintptr_t>(params.input) | reinterpret_cast<uintptr_t>(params.output);
  // Planes of up to 16 bytes are elements of that size; elements that lie off their own size are planes of smaller
  // ones.
  const int64_t plane_bytes = params.inner * params.element_size;
  if (plane_bytes <= 16 && (plane_bytes & (plane_bytes - 1)) == 0) {
    params.element_size = plane_bytes;
    params.inner = 1;
  }
  while (addresses % static_cast<uint64_t>(params.element_size) != 0) {
    params.element_size /= 2;
    params.inner *= 2;
  }
  const int64_t least_tile = pixel_step(params) * params.rows * params.columns * params.element_size;
  if (params.inner > 1 || least_tile > kPixelTileMaxBytes) return launch_transpose_planes(params, stream, max_grid);
  switch (params.element_size) {
    case 1: return launch_transpose_pixels<uint8_t>(params, stream, max_grid);
    case 2: return launch_transpose_pixels<uint16_t>(params, stream, max_grid);
    case 4: return launch_transpose_pixels<uint32_t>(params, stream, max_grid);
    case 8: return launch_transpose_pixels<uint64_t>(params, stream, max_grid);
    case 16: return launch_transpose_pixels<uint4>(params, stream, max_grid);
  }
}

}  // namespace
}  // namespace fastconv
