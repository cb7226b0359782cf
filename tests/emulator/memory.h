// What the emulator knows about memory (memory.cpp), as its machine (emulator.cpp) sees it.
#pragma once
#include <cstddef>
#include <string>

#include "emulator.h"

namespace emulator {

bool in_kernel();

namespace memory {

void begin_launch(char* shared, size_t bytes);
void begin_block();
void end_epoch();                    // all threads of the block have met: what came before is ordered
void end_warp_epoch(unsigned warp);  // likewise, all lanes of one warp
void set_thread(unsigned thread, const char* stack_begin, const char* stack_end);
void set_host();  // no kernel runs; nothing is checked
void check_global(const void* address, size_t bytes);
void check_async_destination(void* shared, size_t bytes);
void complete_async(void* shared, size_t bytes);
// Where dynamic shared memory is for instructions that are given an address of their own, and back.
uint32_t shared_address(const void* shared);
const char* shared_at(uint32_t address);
// 16 bytes that the products of a warpgroup read, from then on and until then.
void begin_product(const char* shared);
void end_product(const char* shared);
std::string function_name(const void* function);

}  // namespace memory
}  // namespace emulator
