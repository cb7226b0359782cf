# The only place with -m flags. fastconv_isa_objects(OUT sources...) compiles the same kernel sources once per
# instruction set, each into a namespace of its own (FASTCONV_ISA), and collects the objects in OUT.
include(CheckCXXCompilerFlag)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(fastconv_isas baseline avx2 avx512)
  set(fastconv_flags_baseline -march=x86-64-v2)
  set(fastconv_flags_avx2 -march=x86-64-v3)
  set(fastconv_flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
else()
  set(fastconv_isas baseline) # plain C++ vectors: NEON on aarch64
  set(fastconv_flags_baseline "")
endif()

function(fastconv_isa_objects out)
  set(objects "")
  foreach(isa IN LISTS fastconv_isas)
    set(target fastconv_${isa})
    add_library(${target} OBJECT ${ARGN})
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/csrc)
    target_compile_definitions(${target} PRIVATE FASTCONV_ISA=${isa})
    # -fno-exceptions, -fno-rtti: kernels neither throw nor use the STL, so they leave no weak symbol behind that
    # the linker could keep for machines without this instruction set (tests/test_binary.py looks).
    target_compile_options(${target} PRIVATE
      ${fastconv_flags_${isa}} -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti
      -fno-asynchronous-unwind-tables)
    target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
    list(APPEND objects $<TARGET_OBJECTS:${target}>)
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

list(TRANSFORM fastconv_isas PREPEND "FASTCONV_HAS_" OUTPUT_VARIABLE isa_definitions)
add_compile_definitions(${isa_definitions})
