// A rocBLAS for the fake HIP library that lies in the same folder: its functions, its enumerations, its column-major
// matrices, and its habits: to free memory of its own when it is given a workspace, and to ask after a stream that is new
// to it, which no capture survives.
#include "fake.h"

typedef int Enqueue(void* stream, int (*run)(const void*), const void* data, size_t bytes);
typedef int Malloc(void** memory, size_t bytes);
typedef int Free(void* memory);
typedef int Query(void* stream);

template <class F> static F* hip(const char* name) {
    Dl_info info;
    dladdr((void*)hip<F>, &info);
    const std::string own = info.dli_fname;
    return (F*)dlsym(dlopen((own.substr(0, own.rfind('/')) + "/libamdhip64.so").c_str(), RTLD_NOW), name);
}

struct Handle {
    void* stream = nullptr;
    void* own = nullptr; // its default workspace
    void* workspace = nullptr;
    size_t bytes = 0, wanted = 0;
    bool query = false;
};
struct Product {
    int m, n, k, lda, ldb, ldd, input, output;
    bool transpose_a, transpose_b;
    const void *a, *b;
    void* d;
};

static float half_to_float(u16 bits) { return kx_f16_to_f32(bits); }
static float read(const void* from, size_t at, int type) {
    return type == 151 ? ((const float*)from)[at] : half_to_float(((const u16*)from)[at]);
}
static int multiply(const void* data) {
    const Product& p = *(const Product*)data;
    for (int row = 0; row < p.m; row++) {
        for (int column = 0; column < p.n; column++) {
            float sum = 0;
            for (int i = 0; i < p.k; i++) {
                const size_t a = p.transpose_a ? (size_t)row * p.lda + i : (size_t)i * p.lda + row;
                const size_t b = p.transpose_b ? (size_t)i * p.ldb + column : (size_t)column * p.ldb + i;
                sum += read(p.a, a, p.input) * read(p.b, b, p.input);
            }
            const size_t at = (size_t)column * p.ldd + row;
            if (p.output == 151) ((float*)p.d)[at] = sum;
            else ((u16*)p.d)[at] = kx_f32_to_f16(sum);
        }
    }
    return 0;
}

API int rocblas_create_handle(Handle** handle) {
    *handle = new Handle;
    return hip<Malloc>("hipMalloc")(&(*handle)->own, 4096) ? 5 : 0;
}
API int rocblas_destroy_handle(Handle* handle) {
    if (handle->own) hip<Free>("hipFree")(handle->own);
    delete handle;
    return 0;
}
API int rocblas_get_version_string(char* text, size_t bytes) { return snprintf(text, bytes, "2.46.0.fake") < 0; }
API const char* rocblas_status_to_string(int status) {
    return status == 2 ? "rocblas_status_not_implemented" : "rocblas_status_something";
}
API int rocblas_set_atomics_mode(Handle*, int mode) { return mode == 0 ? 0 : 11; }
API int rocblas_set_stream(Handle* handle, void* stream) {
    if (stream == handle->stream) return 0;
    if (stream && hip<Query>("hipStreamQuery")(stream) == 400) return 11;
    handle->stream = stream;
    return 0;
}
API int rocblas_set_workspace(Handle* handle, void* memory, size_t bytes) {
    if (handle->own && hip<Free>("hipFree")(handle->own)) return 6;
    handle->own = nullptr, handle->workspace = memory, handle->bytes = bytes;
    return 0;
}
API int rocblas_start_device_memory_size_query(Handle* handle) {
    if (handle->query) return 8;
    handle->query = true, handle->wanted = 0;
    return 0;
}
API int rocblas_stop_device_memory_size_query(Handle* handle, size_t* bytes) {
    if (!handle->query) return 8;
    handle->query = false, *bytes = handle->wanted;
    return 0;
}
API int rocblas_gemm_ex(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                        int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, const void* c, int c_type,
                        int ldc, void* d, int d_type, int ldd, int compute, int algorithm, int, unsigned) {
    if (!a || !b || !c || !d) return 3;
    if (a_type != b_type || c_type != d_type || c != d || ldc != ldd || algorithm != 0 || compute != 151) return 2;
    const bool known = (a_type == 151 && d_type == 151) || (a_type == 150 && (d_type == 150 || d_type == 151));
    if (!known) return 2;
    if (*(const float*)alpha != 1.0f || *(const float*)beta != 0.0f) return 2;
    if (lda < (transpose_a == 112 ? k : m) || ldb < (transpose_b == 112 ? n : k) || ldd < m) return 4;
    const size_t needed = k > 1000 ? 1 << 16 : 0;
    if (handle->query) return handle->wanted = std::max(handle->wanted, needed), 9;
    if (needed > handle->bytes) return 5;
#ifdef LACKS_ROWS // code for the device is missing, which no query tells
    if (n >= LACKS_ROWS) return 2;
#endif
    const Product product = {m, n, k, lda, ldb, ldd, a_type, d_type, transpose_a == 112, transpose_b == 112, a, b, d};
    return hip<Enqueue>("fake_enqueue")(handle->stream, multiply, &product, sizeof product) ? 6 : 0;
}
