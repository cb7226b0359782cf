// What the emulator's machine (emulator.cpp) tells the warpgroups (warpgroups.cpp).
#pragma once

namespace emulator::warpgroups {

void begin_block();
void end_thread();  // the thread that is running

}  // namespace emulator::warpgroups
