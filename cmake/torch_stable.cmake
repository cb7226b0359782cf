# `torch_stable`: the headers of PyTorch's stable ABI and the one library they need. PyTorch is located without
# importing it, and without its own CMake package, which would ask for CUDA wherever PyTorch was built with it.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
  OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
message(STATUS "PyTorch: ${torch_dir}")

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${torch_dir}/include)
# Built against any PyTorch from 2.11 on, runs with any PyTorch from 2.11 on.
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(torch_stable INTERFACE ${torch_dir}/lib/libtorch_cpu.so)
# PyTorch is imported, and its libraries are loaded, before ours: no run path into somebody's site-packages.
set(CMAKE_SKIP_RPATH ON)
