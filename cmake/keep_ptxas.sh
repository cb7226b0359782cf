#!/bin/sh
# keep_ptxas.sh NVCC ARGUMENTS...: runs the compiler, and keeps what ptxas says of each kernel (registers, stack, spills)
# in a file beside the object. tools/cuda_report.py reads it: the library itself no longer knows what was spilled.
for argument; do
  [ "$before" = -o ] && log=$argument.ptxas
  before=$argument
done
"$@" 2> "$log"
status=$?
grep -v -e '^ptxas info' -e '^    [0-9]* bytes stack frame' "$log" >&2
exit $status
