"""Native CPU kernels: tile programs as LLVM IR, compiled in the process."""
