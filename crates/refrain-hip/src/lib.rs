//! AMD and Hygon GPUs behind the runtime trait: HIP, hipRTC and rocBLAS, loaded at run time.
