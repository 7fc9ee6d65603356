//! The CPU backend: runs a program on AVX2, AVX-512 or AMX
