//! Kernel registry, compilation and its cache, and the backend that lowers a program to launches, shared by every GPU runtime.
