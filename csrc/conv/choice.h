// Which kernel of the table runs: what introspection and the tests see of it.
#pragma once
#include <string>
#include <vector>

namespace fastconv {

std::vector<std::string> conv_kernel_names();  // in the order in which they are asked
// Makes every convolution of this process run the named kernel, or fail where it cannot serve the arguments; an empty
// name returns to the table's order. False where there is no such kernel.
bool conv_force_kernel(const std::string& name);

}  // namespace fastconv
