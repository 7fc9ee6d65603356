//! NVIDIA GPUs behind the runtime trait: driver API, NVRTC and cuBLASLt, loaded at run time.
