//! A simulated GPU behind the runtime trait: runs the kernel sources on the CPU, for tests.
