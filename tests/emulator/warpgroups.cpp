// Tensor cores that a warpgroup, 128 threads, asks for products of matrices in shared memory (`wgmma`, compute
// capability 9.0). Descriptors, the swizzle of 128 bytes and which thread has which sums are as the PTX manual says,
// worked out from the bits of a descriptor alone.
//
// A product is in flight from the instruction until each of the threads has waited for the group it was committed to.
// What it reads must have been written by threads that called fence_async_shared() behind that and before the last
// barrier, and stays as it is meanwhile; its sums are NaN meanwhile, and must still be when they are waited for. A
// thread has to call wgmma_fence() between a wait, or its beginning, and its next product.
//
// What cannot be seen: whether the sums were touched after that fence and before the product, or read in flight (NaN
// shows in the results, if they are looked at); a fence that another thread than the writer calls, which the hardware
// may do with, is none here; nor is there another layout than that one, nor a matrix in static shared memory.
#include "warpgroups.h"

#include <deque>
#include <memory>
#include <vector>

#include "emulator.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr int kThreads = 128, kRows = 64, kColumns = 128, kDepth = 16, kSums = 64;
constexpr uint32_t kInFlight = 0x7fc0f11eu;  // a NaN, in the place of a sum

struct Product {
  uint64_t a, b;  // descriptors
  float (*widen_bits)(uint16_t);
  int left = kThreads;  // that have not waited for it
  bool done = false;
  float result[kRows][kColumns];
};
using Products = std::vector<std::shared_ptr<Product>>;

// A thread's sums while products add to them.
struct Held {
  float* sums;
  float values[kSums];
  int products;
};

struct Thread {
  bool fenced = false;
  std::vector<Held> held;
  std::vector<std::pair<std::shared_ptr<Product>, float*>> uncommitted;
  std::deque<std::vector<std::pair<std::shared_ptr<Product>, float*>>> groups;
};
Thread threads[1024];

int thread_number() {
  const auto& r = registers;
  return static_cast<int>((r.thread.z * r.threads.y + r.thread.y) * r.threads.x + r.thread.x);
}

// The 16 bytes that hold terms 8 * half to 8 * half + 7 of a row.
const char* piece_of(uint64_t matrix, int row, int half) {
  const uint32_t begin = (matrix & 0x3fff) << 4, eight_rows = (matrix >> 32 & 0x3fff) << 4;
  const uint32_t place = begin + static_cast<uint32_t>(row / 8) * eight_rows + static_cast<uint32_t>(row % 8) * 128 +
                         static_cast<uint32_t>(half) * 16;
  return memory::shared_at(place ^ (place >> 7 & 7) << 4);
}

template <class Body>
void for_each_piece(const Product& product, const Body& body) {
  for (int half = 0; half < 2; ++half) {
    for (int row = 0; row < kRows; ++row) body(piece_of(product.a, row, half));
    for (int row = 0; row < kColumns; ++row) body(piece_of(product.b, row, half));
  }
}

void multiply(Product& product) {
  const auto load = [&](uint64_t matrix, int row, int k) {
    uint16_t bits;
    std::memcpy(&bits, piece_of(matrix, row, k / 8) + k % 8 * 2, sizeof bits);
    return product.widen_bits(bits);
  };
  float b[kDepth][kColumns];
  for (int k = 0; k < kDepth; ++k)
    for (int column = 0; column < kColumns; ++column) b[k][column] = load(product.b, column, k);
  for (int row = 0; row < kRows; ++row) {
    float* sums = product.result[row];
    std::fill(sums, sums + kColumns, 0.f);
    for (int k = 0; k < kDepth; ++k) {
      const float a = load(product.a, row, k);
      for (int column = 0; column < kColumns; ++column) sums[column] += a * b[k][column];
    }
  }
  product.done = true;
}

void check_untouched(const Held& held) {
  for (int i = 0; i < kSums; ++i)
    if (std::memcmp(&held.sums[i], &kInFlight, sizeof kInFlight) != 0)
      fail("has written to sums of a product in flight (wgmma_wait is missing)");
}

// The thread has waited for a product: it has its part of it, and with the last one nobody reads the matrices.
void finish(Thread& own, Product& product, float* sums) {
  if (!product.done) multiply(product);
  auto held = own.held.begin();
  while (held->sums != sums) ++held;
  check_untouched(*held);
  const int thread = thread_number() % kThreads, lane = thread % 32;
  for (int i = 0; i < kSums; ++i)
    held->values[i] += product.result[thread / 32 * 16 + i / 2 % 2 * 8 + lane / 4][i / 4 * 8 + lane % 4 * 2 + i % 2];
  if (--held->products == 0) {
    std::memcpy(held->sums, held->values, sizeof held->values);
    own.held.erase(held);
  }
  if (--product.left == 0) for_each_piece(product, memory::end_product);
}

struct Issue {
  uint64_t a, b;
  float (*widen_bits)(uint16_t);
  std::shared_ptr<Product> product;
};

void start(void** lanes) {
  const auto at = [&](int i) -> Issue& { return *static_cast<Issue*>(lanes[i]); };
  auto product = std::make_shared<Product>();
  product->a = at(0).a;
  product->b = at(0).b;
  product->widen_bits = at(0).widen_bits;
  for (int i = 0; i < kThreads; ++i) {
    if (at(i).a != product->a || at(i).b != product->b) fail("multiplies other matrices than its warpgroup");
    at(i).product = product;
  }
  for (uint64_t matrix : {product->a, product->b})
    if (matrix >> 62 != 1 || (matrix >> 49 & 7) != 0)
      fail("multiplies a matrix in a layout that the emulator does not know: only the swizzle of 128 bytes");
  for_each_piece(*product, memory::begin_product);
}

void meet(const Site& site) {
  int nothing = 0;
  collective(site, fastconv::kFullWarp, &nothing, [](void**) {});
}

}  // namespace

namespace warpgroups {

void begin_block() {
  for (Thread& thread : threads) {
    thread.fenced = false;
    thread.held.clear();
    thread.uncommitted.clear();
    thread.groups.clear();
  }
}

void end_thread() {
  const Thread& own = threads[thread_number()];
  if (!own.uncommitted.empty() || !own.groups.empty())
    for (const Held& held : own.held)
      if (held.products > 0) fail("has exited with a product in flight (wgmma_commit or wgmma_wait is missing)");
}

}  // namespace warpgroups
}  // namespace emulator

namespace fastconv {

using namespace emulator;

uint64_t wgmma_matrix(const void* shared) {
  const uint64_t address = memory::shared_address(shared), leading = 1, eight_rows = 1024 >> 4, swizzle = 1;
  return (address >> 4 & 0x3fff) | leading << 16 | eight_rows << 32 | swizzle << 62;
}

void emulated_wgmma(float* sums, uint64_t a, uint64_t b, float (*widen_bits)(uint16_t), const Site& site) {
  Thread& own = threads[thread_number()];
  Issue issue{a, b, widen_bits, nullptr};
  warpgroup(site, &issue, start);
  Held* held = nullptr;
  for (Held& one : own.held)
    if (one.sums == sums) held = &one;
  if (held) {
    check_untouched(*held);
  } else {
    if (!own.fenced) fail("multiplies without a wgmma_fence before");
    held = &own.held.emplace_back();
    held->sums = sums;
    held->products = 0;
    std::memcpy(held->values, sums, sizeof held->values);
    for (int i = 0; i < kSums; ++i) std::memcpy(&sums[i], &kInFlight, sizeof kInFlight);
  }
  ++held->products;
  own.uncommitted.emplace_back(issue.product, sums);
}

void emulated_wgmma_fence(const Site& site) {
  meet(site);
  threads[thread_number()].fenced = true;
}

void emulated_wgmma_commit(const Site& site) {
  meet(site);
  Thread& own = threads[thread_number()];
  own.groups.push_back(std::move(own.uncommitted));
  own.uncommitted.clear();
}

void emulated_wgmma_wait(int groups, const Site& site) {
  meet(site);
  Thread& own = threads[thread_number()];
  own.fenced = false;
  while (own.groups.size() > static_cast<size_t>(groups)) {
    for (auto& [product, sums] : own.groups.front()) finish(own, *product, sums);
    own.groups.pop_front();
  }
}

}  // namespace fastconv
