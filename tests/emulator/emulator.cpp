// The emulator's machine: fibers, barriers, warp instructions, launches. What memory may be accessed is decided in
// memory.cpp; why there is an emulator at all is said in emulator.h.
#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <deque>
#include <vector>

#include "memory.h"
#include "warpgroups.h"

namespace emulator {

Registers registers;

namespace {

constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 4 << 10;
constexpr unsigned kMaxThreads = 1024, kWarpgroup = 128;

enum class State { kReady, kAtBarrier, kInWarp, kInWarpgroup, kDone };

struct AsyncCopy {
  char* to;
  const char* from;
  int bytes, valid;
};

struct Fiber {
  char* stack = nullptr;
  jmp_buf context;
  bool started = false;
  State state = State::kReady;
  Site site{};          // where it waits
  unsigned mask = 0;    // with whom, in a warp instruction
  void* own = nullptr;  // what it brings
  dim3 index;
  std::vector<AsyncCopy> uncommitted;
  std::deque<std::vector<AsyncCopy>> groups;
};

Fiber fibers[kMaxThreads];
unsigned count = 0;        // of the block that runs
Fiber* current = nullptr;  // nullptr in host code
jmp_buf scheduler;
ucontext_t scheduler_context;  // only ever left, for makecontext wants one
std::string failure;           // of the launch that runs
std::string kernel_name;
std::string launched;  // kernels since emulator_launched was last asked
void (*thread_function)(const void*, const void*);
const void* kernel_function;
const void* kernel_params;
std::vector<char> dynamic;
char* dynamic_begin = nullptr;

unsigned number(const Fiber& fiber) { return static_cast<unsigned>(&fiber - fibers); }

std::string text(const dim3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}
std::string text(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(site.what) + " (" + (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}
bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// A jump saves and restores no signal mask, which makes it some ten times cheaper than swapcontext.
void pause() {
  if (!_setjmp(current->context)) _longjmp(scheduler, 1);
}

// A fiber outlives the thread that it runs: it is reused by the next block.
void fiber_main() {
  for (;;) {
    thread_function(kernel_function, kernel_params);
    copy_async_commit();
    copy_async_wait(0);
    warpgroups::end_thread();
    current->state = State::kDone;
    pause();
  }
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  current = &fiber;
  registers.thread = fiber.index;
  memory::set_thread(number(fiber), fiber.stack, fiber.stack + kStackBytes);
  if (!_setjmp(scheduler)) {
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = &scheduler_context;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
  }
  current = nullptr;
  memory::set_host();
}

void describe(const Fiber& fiber, const std::string& what) {
  failure =
      "kernel " + kernel_name + ", block " + text(registers.block) + ", thread " + text(fiber.index) + ": " + what;
}

// No thread can go on and not all have ended: says who waits for what, and which thread does not come.
void describe_deadlock() {
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& waiting = fibers[i];
    if (waiting.state != State::kInWarpgroup) continue;
    for (unsigned j = i / kWarpgroup * kWarpgroup; j < i / kWarpgroup * kWarpgroup + kWarpgroup; ++j) {
      const Fiber& missing = fibers[j];
      const std::string who = "waits in " + text(waiting.site) + " for thread " + text(missing.index) + ", which ";
      if (missing.state == State::kDone) return describe(waiting, who + "has exited");
      if (missing.state != State::kInWarpgroup || !same(missing.site, waiting.site))
        return describe(waiting, who + "waits at " + text(missing.site));
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& waiting = fibers[i];
    if (waiting.state != State::kInWarp) continue;
    const unsigned first = i / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(waiting.mask >> lane & 1)) continue;
      const std::string who = "waits in " + text(waiting.site) + " for lane " + std::to_string(lane) + ", which ";
      if (first + lane >= count) return describe(waiting, who + "the block does not have");
      const Fiber& missing = fibers[first + lane];
      if (missing.state == State::kDone) return describe(waiting, who + "has exited");
      if (missing.state == State::kAtBarrier || !same(missing.site, waiting.site))
        return describe(waiting, who + "waits at " + text(missing.site));
      if (missing.mask != waiting.mask) return describe(waiting, who + "names other lanes in its mask");
    }
  }
  const Fiber* waiting = nullptr;
  for (unsigned i = 0; i < count && !waiting; ++i)
    if (fibers[i].state == State::kAtBarrier) waiting = &fibers[i];
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& other = fibers[i];
    const std::string who = "waits at " + text(waiting->site) + " for thread " + text(other.index) + ", which ";
    if (other.state == State::kDone) return describe(*waiting, who + "has exited");
    if (!same(other.site, waiting->site)) return describe(*waiting, who + "waits at " + text(other.site));
  }
  describe(*waiting, "cannot go on");
}

void run_block() {
  memory::begin_block();
  warpgroups::begin_block();
  unsigned i = 0;
  for (unsigned z = 0; z < registers.threads.z; ++z)
    for (unsigned y = 0; y < registers.threads.y; ++y)
      for (unsigned x = 0; x < registers.threads.x; ++x, ++i) {
        fibers[i].state = State::kReady;
        fibers[i].index = dim3(x, y, z);
      }
  for (;;) {
    unsigned ran = 0, done = 0, at_barrier = 0;
    for (unsigned i = 0; i < count; ++i) {
      if (fibers[i].state == State::kReady) {
        ++ran;
        resume(fibers[i]);
        if (!failure.empty()) return;
      }
      done += fibers[i].state == State::kDone;
      at_barrier += fibers[i].state == State::kAtBarrier && same(fibers[i].site, fibers[0].site);
    }
    if (done == count) return;
    if (at_barrier == count) {
      for (unsigned i = 0; i < count; ++i) fibers[i].state = State::kReady;
      memory::end_epoch();
    } else if (ran == 0) {
      return describe_deadlock();
    }
  }
}

void prepare_fibers() {
  for (unsigned i = 0; i < count; ++i) {
    if (fibers[i].stack) continue;
    char* pages = static_cast<char*>(mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pages == MAP_FAILED) throw std::runtime_error("emulator: no memory for a stack");
    mprotect(pages, kGuardBytes, PROT_NONE);  // stacks grow down
    fibers[i].stack = pages + kGuardBytes;
  }
}

// After a failure every fiber is left where it stands and begins anew.
void abandon_fibers() {
  for (Fiber& fiber : fibers) {
    fiber.started = false;
    fiber.uncommitted.clear();
    fiber.groups.clear();
  }
}

}  // namespace

bool in_kernel() { return current != nullptr; }

void fail(const std::string& what, int lane) {
  describe(lane < 0 ? *current : fibers[number(*current) / 32 * 32 + static_cast<unsigned>(lane)], what);
  _longjmp(scheduler, 1);
}

void* shared_memory() { return dynamic_begin; }

void barrier(const Site& site) {
  current->site = site;
  current->state = State::kAtBarrier;
  pause();
}

void collective(const Site& site, unsigned mask, void* own, void (*finish)(void** lanes)) {
  const unsigned lane = number(*current) % 32, first = number(*current) - lane;
  if (!(mask >> lane & 1)) fail("calls " + text(site) + " with a mask that leaves out the caller");
  Fiber& fiber = *current;
  fiber.site = site;
  fiber.mask = mask;
  fiber.own = own;
  fiber.state = State::kInWarp;
  void* lanes[32] = {};
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const bool exists = first + i < count;
    if (!exists || fibers[first + i].state == State::kDone)
      fail("calls " + text(site) + " with lane " + std::to_string(i) + " in its mask, which " +
           (exists ? "has exited" : "the block does not have"));
    const Fiber& other = fibers[first + i];
    if (other.state != State::kInWarp || other.mask != mask || !same(other.site, site)) return pause();
    lanes[i] = other.own;
  }
  finish(lanes);
  for (unsigned i = 0; i < 32; ++i)
    if (lanes[i]) fibers[first + i].state = State::kReady;
}

void warpgroup(const Site& site, void* own, void (*finish)(void** threads)) {
  const unsigned first = number(*current) / kWarpgroup * kWarpgroup;
  if (first + kWarpgroup > count) fail("calls " + text(site) + " in less than a warpgroup");
  current->site = site;
  current->own = own;
  current->state = State::kInWarpgroup;
  void* all[kWarpgroup];
  for (unsigned i = 0; i < kWarpgroup; ++i) {
    const Fiber& other = fibers[first + i];
    if (other.state != State::kInWarpgroup || !same(other.site, site)) return pause();
    all[i] = other.own;
  }
  finish(all);
  for (unsigned i = 0; i < kWarpgroup; ++i) fibers[first + i].state = State::kReady;
}

void sync_warp(const Site& site, unsigned mask) {
  unsigned own = mask;
  collective(site, mask, &own, [](void** lanes) {
    // Orders accesses only where nobody is left out; a partial one orders too little to be worth the bookkeeping.
    const unsigned first = number(*current) / 32 * 32;
    for (unsigned i = 0; i < 32 && first + i < count; ++i)
      if (!lanes[i] && fibers[first + i].state != State::kDone) return;
    memory::end_warp_epoch(first / 32);
  });
}

// ---- asynchronous copies ----

void copy_async(void* shared, const void* global, int bytes, int valid) {
  if (valid < 0 || valid > bytes)
    fail("copies asynchronously " + std::to_string(valid) + " of " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes))
    fail("copies asynchronously from an address that is not a multiple of " + std::to_string(bytes));
  memory::check_async_destination(shared, static_cast<size_t>(bytes));
  if (valid) memory::check_global(global, static_cast<size_t>(valid));
  current->uncommitted.push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes, valid});
}

void copy_async_commit() {
  current->groups.push_back(std::move(current->uncommitted));
  current->uncommitted.clear();
}

void copy_async_wait(int groups) {
  while (current->groups.size() > static_cast<size_t>(groups)) {
    for (const AsyncCopy& copy : current->groups.front()) {
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
      std::memset(copy.to + copy.valid, 0, static_cast<size_t>(copy.bytes - copy.valid));
      memory::complete_async(copy.to, static_cast<size_t>(copy.bytes));
    }
    current->groups.pop_front();
  }
}

// ---- launch ----

void run(const void* kernel, dim3 grid, dim3 block, size_t shared, void (*thread)(const void*, const void*),
         const void* params) {
  kernel_name = memory::function_name(kernel);
  launched += kernel_name + "\n";
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool refused = threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.y == 0 ||
                       grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || shared > (227u << 10);
  if (refused)
    throw std::runtime_error("kernel " + kernel_name + ": no GPU launches a grid of " + text(grid) + " blocks of " +
                             text(block) + " threads with " + std::to_string(shared) + " bytes of shared memory");
  count = static_cast<unsigned>(threads);
  prepare_fibers();
  // As little aligned as it may be: 128 bytes behind a multiple of 1024.
  dynamic.assign(shared + 2048, 0);
  dynamic_begin = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic.data()) + 1023) / 1024 * 1024 + 128);
  memory::begin_launch(dynamic_begin, shared);
  failure.clear();
  thread_function = thread;
  kernel_function = kernel;
  kernel_params = params;
  registers.threads = block;
  registers.blocks = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        registers.block = dim3(x, y, z);
        run_block();
        if (!failure.empty()) {
          abandon_fibers();
          throw std::runtime_error(failure);
        }
      }
}

}  // namespace emulator

// The names of the kernels launched since the last call, a line each: how tests know which one their case has reached.
extern "C" const char* emulator_launched() {
  static std::string answer;
  answer = std::move(emulator::launched);
  emulator::launched.clear();
  return answer.c_str();
}
