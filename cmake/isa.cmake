# The only place with -m flags. fastconv_isa_objects(OUT "isas" sources...) compiles the same kernel sources once for each
# of these instruction sets, each into a namespace of its own (FASTCONV_ISA), and adds the objects to OUT.
#
# fastconv_isas have every kernel; fastconv_extra_isas, beyond AVX-512, only add some and need a compiler that knows them.
include(CheckCXXCompilerFlag)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(fastconv_isas baseline avx2 avx512)
  set(fastconv_flags_baseline -march=x86-64-v2)
  set(fastconv_flags_avx2 -march=x86-64-v3)
  set(fastconv_flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  set(fastconv_flags_avx512_bf16 ${fastconv_flags_avx512} -mavx512bf16)
  set(fastconv_flags_amx ${fastconv_flags_avx512_bf16} -mamx-tile -mamx-bf16)
  check_cxx_compiler_flag("-mavx512bf16 -mamx-tile -mamx-bf16" fastconv_compiler_has_amx)
  if(fastconv_compiler_has_amx)
    set(fastconv_extra_isas avx512_bf16 amx)
  endif()
else()
  set(fastconv_isas baseline) # plain C++ vectors: NEON on aarch64
  set(fastconv_flags_baseline "")
endif()

function(fastconv_isa_objects out isas)
  set(objects ${${out}})
  foreach(isa IN LISTS isas)
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

set(isa_definitions ${fastconv_isas} ${fastconv_extra_isas})
list(TRANSFORM isa_definitions PREPEND "FASTCONV_HAS_")
add_compile_definitions(${isa_definitions})
