// Which bytes a kernel may touch, and when. GCC's -fsanitize=kernel-address puts a call of __asan_load4_noabort and the
// like before every access of the kernels' code; these functions are normally a kernel's, here they are ours (at the
// end of this file), and decide with the help of a few facts kept for every byte.
//
// Shared memory: the block that last wrote it (so that reads of unwritten bytes stand out), whether an asynchronous
// copy into it is in flight, and who read and wrote it since the last barrier. Two threads race when both touched a
// byte, one wrote it, and neither a barrier nor (in one warp) a sync_warp lies between. Reads are kept exactly for the
// lanes of one warp, and as "several" beyond, where only a barrier can order them anyway. Products of warpgroups
// (warpgroups.cpp) read it in between, and see only what was fenced by the thread that wrote it.
//
// Device memory: whether a byte was ever written, and by which block of this launch. Blocks are never ordered, so a
// byte that one block writes and another touches is an error, except through atomics.
#include "memory.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <fstream>
#include <map>
#include <sstream>
#include <vector>

extern "C" char __start_emulated_shared[] __attribute__((weak)), __stop_emulated_shared[] __attribute__((weak));

namespace emulator::memory {
namespace {

constexpr uint16_t kNobody = 0xffff, kAtomically = 0xfffe, kSeveralWarps = 0xfffd;
constexpr uintptr_t kWindow = 1024;  // a multiple of it is address 0 of dynamic shared memory, which begins behind that
constexpr size_t kMargin = 4096;     // around each device buffer, so that a miss does not hit the next
constexpr unsigned char kUnwritten = 0xa5;

struct SharedByte {
  uint32_t epoch = 0;         // between barriers, when what follows was noted
  uint32_t block = 0;         // that last wrote it
  uint16_t writer = kNobody;  // thread
  uint16_t reading_warp = kNobody;
  uint32_t write_warp_epoch = 0, read_warp_epoch = 0;
  uint32_t readers = 0;  // lanes
  bool in_flight = false;
  uint8_t products = 0;  // of warpgroups that read it
  uint16_t author = 0;   // thread that last wrote it, in this block
  uint32_t fences = 0;   // of that thread by then
};

struct SharedRange {
  char* begin;
  size_t bytes;
  std::vector<SharedByte> state;
};

struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  std::vector<char> memory;
  std::vector<bool> written;
  std::vector<uint32_t> writer;  // block + 1, in this launch
};

SharedRange ranges[2];  // static, dynamic
std::map<uintptr_t, Buffer> buffers;
uintptr_t constants_begin = 0, constants_end = 0;  // this library's read-only data

bool checking = false;
uint32_t epoch = 1, block = 0;  // counted over all launches, so that old notes need no clearing
uint32_t block_in_launch = 0;
uint32_t warp_epochs[32];
struct Fences {                 // of a thread, over all launches
  uint32_t epoch, before, now;  // the last one, those before it, all

  uint32_t ordered() const { return epoch == memory::epoch ? before : now; }  // before the last barrier
};
Fences fences[1024];
unsigned thread = 0;
uintptr_t stack_begin = 0, stack_end = 0;

// Where the instruction stands, for addr2line (tests/emulated.py).
std::string at(const void* instruction) {
  Dl_info info;
  if (!instruction || !dladdr(instruction, &info)) return "";
  std::ostringstream out;
  out << " [at 0x" << std::hex << static_cast<const char*>(instruction) - static_cast<const char*>(info.dli_fbase) - 1
      << "]";
  return out.str();
}

std::string thread_name(unsigned linear) {
  const dim3& n = registers.threads;
  return "(" + std::to_string(linear % n.x) + ", " + std::to_string(linear / n.x % n.y) + ", " +
         std::to_string(linear / n.x / n.y) + ")";
}

std::string block_name(uint32_t linear) {
  const dim3& n = registers.blocks;
  return "(" + std::to_string(linear % n.x) + ", " + std::to_string(linear / n.x % n.y) + ", " +
         std::to_string(linear / n.x / n.y) + ")";
}

const char* verb(Access access) {
  return access == Access::kRead ? "reads" : access == Access::kWrite ? "writes" : "updates";
}

struct What {
  uintptr_t address;
  size_t bytes;
  Access access;
  const void* instruction;

  [[noreturn]] void fail(const std::string& rest) const {
    emulator::fail(std::string(verb(access)) + " " + std::to_string(bytes) + " byte" + (bytes > 1 ? "s " : " ") + rest +
                   at(instruction));
  }
};

void check_shared(SharedRange& range, const What& what) {
  const size_t offset = what.address - reinterpret_cast<uintptr_t>(range.begin);
  const std::string where = &range == &ranges[1] ? "dynamic shared memory" : "static shared memory";
  if (offset + what.bytes > range.bytes)
    what.fail("at offset " + std::to_string(offset) + " of " + std::to_string(range.bytes) + " bytes of " + where);
  const uint16_t warp = static_cast<uint16_t>(thread / 32), me = static_cast<uint16_t>(thread);
  const uint32_t now = warp_epochs[warp], lane = 1u << thread % 32;
  for (size_t i = offset; i < offset + what.bytes; ++i) {
    SharedByte& byte = range.state[i];
    const auto place = [&] { return "at offset " + std::to_string(i) + " of " + where; };
    if (byte.in_flight)
      what.fail(place() +
                ", where an asynchronous copy is in flight (copy_async_wait is missing, or a barrier after it)");
    if (byte.epoch != epoch) {
      byte.epoch = epoch;
      byte.writer = byte.reading_warp = kNobody;
      byte.readers = 0;
    }
    // Another thread wrote here: fine after a sync_warp of the same warp, or between atomics.
    const bool both_atomic = byte.writer == kAtomically && what.access == Access::kAtomic;
    if (byte.writer != kNobody && byte.writer != me && !both_atomic &&
        !(byte.writer / 32 == warp && byte.write_warp_epoch < now))
      what.fail(place() +
                ", a race: " + (byte.writer == kAtomically ? "an atomic" : "thread " + thread_name(byte.writer)) +
                " wrote there and no barrier lies between");
    if (what.access == Access::kRead) {
      if (byte.block != block) what.fail(place() + ", which this block has not written");
      if (byte.reading_warp != kNobody && byte.reading_warp != warp) {
        byte.reading_warp = kSeveralWarps;
      } else if (byte.reading_warp != kSeveralWarps) {
        byte.readers = (byte.reading_warp == warp && byte.read_warp_epoch == now ? byte.readers : 0) | lane;
        byte.reading_warp = warp;
        byte.read_warp_epoch = now;
      }
      continue;
    }
    if (byte.products)
      what.fail(place() + ", which a product in flight reads (wgmma_wait is missing, or a barrier after it)");
    const bool others_read = byte.reading_warp == kSeveralWarps ||
                             (byte.reading_warp != kNobody && byte.reading_warp != warp) ||
                             (byte.reading_warp == warp && byte.read_warp_epoch == now && (byte.readers & ~lane));
    if (others_read) what.fail(place() + ", a race: another thread read there and no barrier lies between");
    byte.writer = what.access == Access::kAtomic ? kAtomically : me;
    byte.write_warp_epoch = now;
    byte.block = block;
    byte.author = me;
    byte.fences = fences[me].now;
  }
}

void check_buffer(Buffer& buffer, const What& what) {
  const size_t offset = what.address - reinterpret_cast<uintptr_t>(buffer.begin);
  for (size_t i = offset; i < offset + what.bytes; ++i) {
    const auto place = [&] { return "at offset " + std::to_string(i) + " of " + buffer.name; };
    if (what.access == Access::kAtomic) {
      buffer.written[i] = true;
      continue;
    }
    const uint32_t writer = buffer.writer[i];
    if (writer && writer != block_in_launch + 1)
      what.fail(place() + ", a race: block " + block_name(writer - 1) + " writes there in the same launch");
    if (what.access == Access::kWrite) {
      buffer.writer[i] = block_in_launch + 1;
      buffer.written[i] = true;
    } else if (!buffer.written[i]) {
      what.fail(place() + ", which nobody has written");
    }
  }
}

// The buffer that holds all of the access; nullptr where none does, and then `near` says which is closest below.
Buffer* find_buffer(const What& what, std::string* near) {
  auto next = buffers.upper_bound(what.address);
  const auto distance = [&](const Buffer& b) {
    return static_cast<int64_t>(what.address) - static_cast<int64_t>(reinterpret_cast<uintptr_t>(b.begin));
  };
  Buffer* closest = nullptr;
  if (next != buffers.begin()) {
    Buffer& below = std::prev(next)->second;
    const int64_t offset = distance(below);
    if (offset + static_cast<int64_t>(what.bytes) <= static_cast<int64_t>(below.bytes)) return &below;
    if (offset < static_cast<int64_t>(below.bytes + kMargin)) closest = &below;
  }
  if (!closest && next != buffers.end() && -distance(next->second) <= static_cast<int64_t>(kMargin))
    closest = &next->second;
  if (near)
    *near = closest ? "at offset " + std::to_string(distance(*closest)) + " of " + closest->name + ", which has " +
                          std::to_string(closest->bytes) + " bytes"
                    : "where no buffer is";
  return nullptr;
}

bool inside(uintptr_t address, uintptr_t begin, uintptr_t end) { return address >= begin && address < end; }

// `aligned`: the access is one instruction, whose address must be a multiple of its size.
void check_access(const What& what, bool aligned) {
  if (!checking) return;
  if (inside(what.address, stack_begin, stack_end)) return;
  const uintptr_t builtin = reinterpret_cast<uintptr_t>(&registers);
  if (inside(what.address, builtin, builtin + sizeof registers)) return;
  if (aligned && what.address % what.bytes)
    what.fail("at an address that is " + std::to_string(what.address % what.bytes) + " off a multiple of " +
              std::to_string(what.bytes));
  for (SharedRange& range : ranges)
    if (inside(what.address, reinterpret_cast<uintptr_t>(range.begin),
               reinterpret_cast<uintptr_t>(range.begin) + range.bytes))
      return check_shared(range, what);
  std::string near;
  if (Buffer* buffer = find_buffer(what, &near)) return check_buffer(*buffer, what);
  if (what.access == Access::kRead && inside(what.address, constants_begin, constants_end)) return;
  const uintptr_t dynamic = reinterpret_cast<uintptr_t>(ranges[1].begin);
  if (inside(what.address, dynamic - 64, dynamic + ranges[1].bytes + 64))
    near = "at offset " + std::to_string(static_cast<int64_t>(what.address - dynamic)) +
           " of dynamic shared memory, which has " + std::to_string(ranges[1].bytes) + " bytes";
  what.fail(near);
}

void reset(SharedRange& range, char* begin, size_t bytes) {
  range.begin = begin;
  range.bytes = bytes;
  range.state.assign(bytes, SharedByte{});
}

// This library's segments without write permission: constants that a kernel may read.
void find_constants() {
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        uintptr_t begin = UINTPTR_MAX, end = 0;
        bool ours = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          const uintptr_t from = info->dlpi_addr + segment.p_vaddr, to = from + segment.p_memsz;
          ours |= inside(reinterpret_cast<uintptr_t>(&find_constants), from, to);
          if (segment.p_flags & PF_W) continue;
          begin = std::min(begin, from);
          end = std::max(end, to);
        }
        if (ours) constants_begin = begin, constants_end = end;
        return static_cast<int>(ours);
      },
      nullptr);
}

}  // namespace

void begin_launch(char* shared, size_t bytes) {
  if (!constants_begin) find_constants();
  reset(ranges[0], __start_emulated_shared,
        __start_emulated_shared ? static_cast<size_t>(__stop_emulated_shared - __start_emulated_shared) : 0);
  reset(ranges[1], shared, bytes);
  for (auto& [address, buffer] : buffers) std::fill(buffer.writer.begin(), buffer.writer.end(), 0);
}

void begin_block() {
  ++block;
  ++epoch;
  const auto& r = registers;
  block_in_launch = (r.block.z * r.blocks.y + r.block.y) * r.blocks.x + r.block.x;
  for (SharedRange& range : ranges)
    if (range.bytes) std::memset(range.begin, kUnwritten, range.bytes);
}

void end_epoch() { ++epoch; }
void end_warp_epoch(unsigned warp) { ++warp_epochs[warp]; }

void set_thread(unsigned number, const char* begin, const char* end) {
  thread = number;
  stack_begin = reinterpret_cast<uintptr_t>(begin);
  stack_end = reinterpret_cast<uintptr_t>(end);
  checking = true;
}

void set_host() { checking = false; }

void check_global(const void* address, size_t bytes) {
  const What what{reinterpret_cast<uintptr_t>(address), bytes, Access::kRead, __builtin_return_address(0)};
  std::string near;
  Buffer* buffer = find_buffer(what, &near);
  if (!buffer) what.fail("asynchronously " + near);
  check_buffer(*buffer, what);
}

void check_async_destination(void* shared, size_t bytes) {
  check_access({reinterpret_cast<uintptr_t>(shared), bytes, Access::kWrite, nullptr}, true);
  for (SharedRange& range : ranges) {
    const size_t offset = static_cast<size_t>(static_cast<char*>(shared) - range.begin);
    if (offset >= range.bytes) continue;
    for (size_t i = offset; i < offset + bytes; ++i) range.state[i].in_flight = true;
    return;
  }
  emulator::fail("copies asynchronously to an address that is not in shared memory");
}

// The data arrives: a write by the thread that waited for it.
void complete_async(void* shared, size_t bytes) {
  for (SharedRange& range : ranges) {
    const size_t offset = static_cast<size_t>(static_cast<char*>(shared) - range.begin);
    if (offset >= range.bytes) continue;
    for (size_t i = offset; i < offset + bytes; ++i) range.state[i].in_flight = false;
  }
  check_access({reinterpret_cast<uintptr_t>(shared), bytes, Access::kWrite, nullptr}, true);
}

uint32_t shared_address(const void* shared) {
  const char* begin = ranges[1].begin;
  if (static_cast<const char*>(shared) < begin || static_cast<const char*>(shared) >= begin + ranges[1].bytes)
    emulator::fail("multiplies a matrix that is not in dynamic shared memory");
  return static_cast<uint32_t>(static_cast<const char*>(shared) - shared_at(0));
}
const char* shared_at(uint32_t address) {
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(ranges[1].begin) / kWindow * kWindow) + address;
}

// As a read by several warps: of what was written before the last barrier, and of what its threads have fenced.
void begin_product(const char* shared) {
  SharedRange& range = ranges[1];
  const int64_t offset = shared - range.begin;
  const auto fail = [&](int64_t i, const std::string& rest) {
    emulator::fail("multiplies what is at offset " + std::to_string(i) + " of dynamic shared memory, which " + rest);
  };
  if (offset < 0 || offset + 16 > static_cast<int64_t>(range.bytes))
    fail(offset, "has " + std::to_string(range.bytes) + " bytes");
  for (int64_t i = offset; i < offset + 16; ++i) {
    SharedByte& byte = range.state[static_cast<size_t>(i)];
    if (byte.block != block) fail(i, "this block has not written");
    if (byte.in_flight) fail(i, "an asynchronous copy in flight writes");
    if (byte.epoch == epoch && byte.writer != kNobody)
      fail(i, "thread " + thread_name(byte.author) + " has written since the last barrier");
    if (fences[byte.author].ordered() <= byte.fences)
      fail(i,
           "thread " + thread_name(byte.author) + " has written, with no fence_async_shared before the last barrier");
    ++byte.products;
  }
}
void end_product(const char* shared) {
  for (size_t i = static_cast<size_t>(shared - ranges[1].begin), end = i + 16; i < end; ++i) {
    SharedByte& byte = ranges[1].state[i];
    --byte.products;
    if (byte.epoch != epoch) {
      byte.epoch = epoch;
      byte.writer = kNobody;
    }
    byte.reading_warp = kSeveralWarps;
  }
}

// The name of a function with internal linkage, which the dynamic linker does not know: it stands in the symbol table
// of the file that this library was loaded from.
std::string function_name(const void* function) {
  static std::map<const void*, std::string> known;
  std::string& name = known[function];
  if (!name.empty()) return name;
  Dl_info info;
  if (!dladdr(function, &info)) return "?";
  std::ifstream stream(info.dli_fname, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const char* bytes = file.data();
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes);
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes + header->e_shoff);
  const uintptr_t wanted = reinterpret_cast<uintptr_t>(function) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes + sections[s].sh_offset);
    const char* names = bytes + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; ++i) {
      if (symbols[i].st_value != wanted || (symbols[i].st_info & 0xf) != STT_FUNC) continue;
      int status = 0;
      char* plain = abi::__cxa_demangle(names + symbols[i].st_name, nullptr, nullptr, &status);
      name = status == 0 ? plain : names + symbols[i].st_name;
      std::free(plain);
    }
  }
  // Neither the namespaces nor the types of the parameters help whoever reads the error.
  for (const char* noise : {"fastconv::", "(anonymous namespace)::", "void "})
    for (size_t i; (i = name.find(noise)) != std::string::npos;) name.erase(i, std::strlen(noise));
  const size_t parameters = name.find('(');
  if (parameters != std::string::npos) name.erase(parameters);
  return name;
}

}  // namespace emulator::memory

namespace emulator {

void fence_async_shared() {
  auto& own = memory::fences[memory::thread];
  if (own.epoch != memory::epoch) own = {memory::epoch, own.now, own.now};
  ++own.now;
}

void check(const void* address, size_t bytes, Access access) {
  memory::check_access({reinterpret_cast<uintptr_t>(address), bytes, access, __builtin_return_address(0)}, true);
}

}  // namespace emulator

// ---- what the compiler calls ----

#define EMULATOR_HOOK(size)                                                                                       \
  extern "C" void __asan_load##size##_noabort(uintptr_t address) {                                                \
    emulator::memory::check_access({address, size, emulator::Access::kRead, __builtin_return_address(0)}, true);  \
  }                                                                                                               \
  extern "C" void __asan_store##size##_noabort(uintptr_t address) {                                               \
    emulator::memory::check_access({address, size, emulator::Access::kWrite, __builtin_return_address(0)}, true); \
  }
EMULATOR_HOOK(1)
EMULATOR_HOOK(2)
EMULATOR_HOOK(4)
EMULATOR_HOOK(8)
EMULATOR_HOOK(16)
extern "C" void __asan_loadN_noabort(uintptr_t address, size_t bytes) {
  emulator::memory::check_access({address, bytes, emulator::Access::kRead, __builtin_return_address(0)}, false);
}
extern "C" void __asan_storeN_noabort(uintptr_t address, size_t bytes) {
  emulator::memory::check_access({address, bytes, emulator::Access::kWrite, __builtin_return_address(0)}, false);
}
extern "C" void __asan_handle_no_return() {}

// ---- what tests/emulated.py calls ----

extern "C" {

// A device buffer whose first byte lies `offset` beyond a multiple of 256, as views of tensors do.
void* emulator_allocate(const char* name, size_t bytes, size_t offset) {
  using namespace emulator::memory;
  Buffer buffer{name,
                nullptr,
                bytes,
                std::vector<char>(bytes + offset + 2 * kMargin, kUnwritten),
                std::vector<bool>(bytes, false),
                std::vector<uint32_t>(bytes, 0)};
  const uintptr_t base = (reinterpret_cast<uintptr_t>(buffer.memory.data()) + kMargin + 255) / 256 * 256 + offset;
  buffer.begin = reinterpret_cast<char*>(base);
  return buffers.emplace(base, std::move(buffer)).first->second.begin;
}

void emulator_release(void* address) { emulator::memory::buffers.erase(reinterpret_cast<uintptr_t>(address)); }

void emulator_upload(void* address, const void* from) {
  auto& buffer = emulator::memory::buffers.at(reinterpret_cast<uintptr_t>(address));
  std::memcpy(buffer.begin, from, buffer.bytes);
  buffer.written.assign(buffer.bytes, true);
}

// Returns how many bytes nobody has written.
size_t emulator_download(void* address, void* to) {
  auto& buffer = emulator::memory::buffers.at(reinterpret_cast<uintptr_t>(address));
  std::memcpy(to, buffer.begin, buffer.bytes);
  return static_cast<size_t>(std::count(buffer.written.begin(), buffer.written.end(), false));
}

}  // extern "C"
