# `_C_cuda`: the CUDA operators, built wherever nvcc is found (FASTCONV_CUDA=1 insists on it, 0 leaves it out), also
# beside a CPU build of PyTorch and on a machine without a GPU. FASTCONV_CUDA_ARCHS names the chips, "80;90" by default;
# the newest of them is also kept as PTX, for chips that come later. For 90 machine code is made with what that chip has
# and no later one (90a: wgmma), so its PTX, which must run on later ones, is compiled apart.
set(cuda_wanted "$ENV{FASTCONV_CUDA}")
if(cuda_wanted STREQUAL "")
  set(cuda_wanted auto)
endif()
if(NOT cuda_wanted MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "FASTCONV_CUDA must be auto, 0 or 1 (got \"${cuda_wanted}\")")
endif()

# Not check_language(CUDA): it would compile for a default chip, which may be one that this nvcc no longer knows.
set(fastconv_nvcc "")
if(NOT cuda_wanted STREQUAL "0")
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    find_program(found_nvcc "$ENV{CUDACXX}" NO_CACHE)
  else()
    find_program(found_nvcc nvcc PATHS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin NO_CACHE)
  endif()
  if(found_nvcc)
    set(fastconv_nvcc "${found_nvcc}")
  endif()
  if(NOT fastconv_nvcc AND cuda_wanted STREQUAL "1")
    message(FATAL_ERROR "fastconv was asked for CUDA (FASTCONV_CUDA=1) but found no nvcc: "
                        "install the CUDA toolkit or set CUDACXX")
  endif()
endif()

if(cuda_wanted STREQUAL "0")
  message(STATUS "CUDA: left out (FASTCONV_CUDA=0)")
elseif(NOT fastconv_nvcc)
  message(STATUS "CUDA: left out, no nvcc found")
endif()

# fastconv_cuda_library(sources...) adds the target, or nothing where CUDA is left out.
macro(fastconv_cuda_library)
  if(fastconv_nvcc)
    string(REGEX REPLACE "[ ,]+" ";" archs "$ENV{FASTCONV_CUDA_ARCHS}")
    if("${archs}" STREQUAL "")
      set(archs 80 90)
    endif()
    foreach(arch IN LISTS archs)
      if(NOT arch MATCHES "^[0-9]+[af]?$")
        message(FATAL_ERROR "FASTCONV_CUDA_ARCHS must list chips such as \"80;90\" (got \"$ENV{FASTCONV_CUDA_ARCHS}\")")
      endif()
    endforeach()
    list(SORT archs COMPARE NATURAL)
    list(POP_BACK archs newest)
    list(TRANSFORM archs APPEND -real)
    if(newest STREQUAL "90")
      list(APPEND archs 90-real 90-virtual)
    else()
      list(APPEND archs ${newest}) # without a suffix: machine code and PTX
    endif()
    list(TRANSFORM archs REPLACE "^90-real$" 90a-real)
    list(REMOVE_DUPLICATES archs)
    set(CMAKE_CUDA_ARCHITECTURES ${archs})
    set(warpgroups 0)
    if(archs MATCHES "90a")
      set(warpgroups 1)
    endif()
    set(CMAKE_CUDA_COMPILER "${fastconv_nvcc}")
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    message(STATUS "CUDA: ${fastconv_nvcc} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

    # aoti_torch_get_current_cuda_stream lives in PyTorch's libtorch_cuda.so, which a CPU build does not ship. An empty
    # library of that name at link time makes the real one a dependency at load time.
    file(WRITE ${CMAKE_BINARY_DIR}/empty.cpp "")
    add_library(torch_cuda_stub SHARED ${CMAKE_BINARY_DIR}/empty.cpp)
    set_target_properties(torch_cuda_stub PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub
                                                     OUTPUT_NAME torch_cuda)

    add_library(_C_cuda SHARED ${ARGN})
    set_target_properties(_C_cuda PROPERTIES PREFIX "" SUFFIX ".so")
    target_include_directories(_C_cuda PRIVATE csrc)
    string(REGEX REPLACE "[af]$" "" newest_number "${newest}")
    target_compile_definitions(_C_cuda PRIVATE USE_CUDA FASTCONV_NEWEST_CHIP=${newest_number}
                                               FASTCONV_WARPGROUPS=${warpgroups})
    target_compile_options(_C_cuda PRIVATE
      "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall;-Xptxas=-v>")
    set_property(TARGET _C_cuda PROPERTY CUDA_COMPILER_LAUNCHER # what ptxas says of the kernels stays beside the objects
                 sh ${CMAKE_SOURCE_DIR}/cmake/keep_ptxas.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
    # --exclude-libs: this library's own copy of the CUDA runtime stays its own, PyTorch has another.
    target_link_options(_C_cuda PRIVATE LINKER:--exclude-libs,ALL LINKER:--no-as-needed)
    target_link_libraries(_C_cuda PRIVATE torch_stable torch_cuda_stub)
    install(TARGETS _C_cuda LIBRARY DESTINATION fastconv)
  else() # one from an earlier build would still be loaded
    install(CODE "file(REMOVE \"\${CMAKE_INSTALL_PREFIX}/fastconv/_C_cuda.so\")")
  endif()
endmacro()
