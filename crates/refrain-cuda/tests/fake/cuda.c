// A driver of the tests: what this crate calls of libcuda.so.1, on host memory, with the rules that matter here. It checks
// what a driver takes on trust (a current context on the calling thread, the size of the arguments), tells what a launch
// was, and fails on request. Kernels don't run. Numbers are those of cuda.h.
//
// Compiled with -DFAKE_INIT=code it does not start; with -DFAKE_OLD it lacks what came with CUDA 12.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ILLEGAL_STATE = 401 };
enum { NOT_FOUND = 500, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, UPDATE_FAILURE = 910 };

typedef struct { int id; char pad[4]; union { char room[64]; int overlap; } value; } Attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    void* stream;
    Attribute* attributes;
    unsigned attribute_count;
} Config;
typedef struct { int device, retained; unsigned life; } Context;
typedef struct { int capturing, broken, nodes; } Stream;
typedef struct { int nodes; } Graph;
typedef struct { int loaded, most_shared; unsigned argument_bytes; } Function;

// What the tests see and set.
typedef struct {
    unsigned grid[3], block[3], shared, overlap, argument_bytes, launches;
    unsigned char arguments[256];
} Launch;
Launch fake_launch;
int fake_busy, fake_lost, fake_live_graphs, fake_live_executables, fake_context_switches;
static char fail_call[64];
static int fail_code;
void fake_fail(const char* call, int code) { strncpy(fail_call, call, sizeof fail_call - 1), fail_code = code; }

static const size_t MEMORY = 1 << 30;
static size_t used;
static Context contexts[2] = {{0, 0, 0}, {1, 0, 0}};
static _Thread_local Context* current;
static _Thread_local unsigned current_life;
static Function function;

static int enter(const char* call) {
    if (fake_lost) return fake_lost;
    if (fail_code && !strcmp(call, fail_call)) {
        const int code = fail_code;
        return fail_code = 0, code;
    }
    return OK;
}
#define ENTER { const int code = enter(__func__); if (code) return code; }
// For calls that need a context: one that was made current on this thread in its present life.
#define ENTER_CONTEXT ENTER if (!current || !current->retained || current_life != current->life) return INVALID_CONTEXT;

int cuInit(unsigned flags) {
#ifdef FAKE_INIT
    return flags ? INVALID_VALUE : FAKE_INIT;
#else
    return flags ? INVALID_VALUE : OK;
#endif
}
int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
int cuGetErrorName(unsigned code, const char** text) {
    *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0;
    return *text ? OK : INVALID_VALUE;
}
int cuGetErrorString(unsigned code, const char** text) {
    *text = code == 700 ? "an illegal memory access was encountered" : 0;
    return *text ? OK : INVALID_VALUE;
}

int cuDeviceGetCount(int* count) { ENTER return *count = 2, OK; }
int cuDeviceGet(int* device, int index) { ENTER return *device = index, index < 2 ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char* name, int room, int device) {
    ENTER return strncpy(name, device ? "Fake T4" : "Fake H100", (size_t)room), OK;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { ENTER return *bytes = MEMORY, device < 2 ? OK : INVALID_DEVICE; }
int cuDeviceGetAttribute(int* value, int which, int device) {
    ENTER
    switch (which) {
    case 16: return *value = 132, OK;
    case 20: return *value = 0, OK;
    case 75: return *value = device ? 7 : 9, OK;
    case 76: return *value = device ? 5 : 0, OK;
    case 97: return *value = 232448, OK;
    }
    return INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(Context** context, int device) {
    ENTER
    contexts[device].life += contexts[device].retained++ == 0;
    return *context = &contexts[device], OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { ENTER return contexts[device].retained--, OK; }
int fake_retained(int device) { return contexts[device].retained; }
int cuCtxSetCurrent(Context* context) {
    ENTER
    fake_context_switches++;
    return current = context, current_life = context->life, OK;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) { ENTER_CONTEXT return *free = MEMORY - used, *total = MEMORY, OK; }
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    ENTER_CONTEXT
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > MEMORY) return OUT_OF_MEMORY;
    size_t* block = aligned_alloc(256, (bytes + 511) / 256 * 256);
    used += *block = bytes;
    return *address = (uint64_t)(uintptr_t)block + 256, OK;
}
int cuMemFree_v2(uint64_t address) {
    ENTER_CONTEXT
    size_t* block = (size_t*)(uintptr_t)(address - 256);
    return used -= *block, free(block), OK;
}
int cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    ENTER_CONTEXT return *address = malloc(bytes), flags == 1 ? OK : INVALID_VALUE;
}
int cuMemFreeHost(void* address) { ENTER_CONTEXT return free(address), OK; }

int cuStreamCreate(Stream** stream, unsigned flags) {
    ENTER_CONTEXT return *stream = calloc(1, sizeof **stream), flags == 1 ? OK : INVALID_VALUE;
}
int cuStreamDestroy_v2(Stream* stream) { ENTER_CONTEXT return free(stream), OK; }
int cuStreamSynchronize(Stream* stream) {
    ENTER_CONTEXT
    return stream->capturing ? stream->broken = 1, CAPTURE_UNSUPPORTED : OK;
}
int cuStreamWaitEvent(Stream* stream, void* event, unsigned flags) {
    ENTER_CONTEXT return stream && event && !flags ? OK : INVALID_VALUE;
}
int cuEventCreate(void** event, unsigned flags) { ENTER_CONTEXT return *event = malloc(1), flags ? INVALID_VALUE : OK; }
int cuEventDestroy_v2(void* event) { ENTER_CONTEXT return free(event), OK; }
int cuEventRecord(void* event, Stream* stream) { ENTER_CONTEXT return event && stream ? OK : INVALID_VALUE; }
int cuEventQuery(void* event) { ENTER_CONTEXT return event && fake_busy ? NOT_READY : OK; }
int cuEventSynchronize(void* event) { ENTER_CONTEXT return event ? OK : INVALID_VALUE; }
int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    ENTER_CONTEXT return *milliseconds = from == to ? -1.0f : 1.5f, OK;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    ENTER_CONTEXT return memcpy((void*)(uintptr_t)to, from, bytes), stream ? OK : INVALID_VALUE;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER_CONTEXT return memcpy(to, (void*)(uintptr_t)from, bytes), stream ? OK : INVALID_VALUE;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER_CONTEXT return memcpy((void*)(uintptr_t)to, (void*)(uintptr_t)from, bytes), stream ? OK : INVALID_VALUE;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    ENTER_CONTEXT return memset((void*)(uintptr_t)to, value, bytes), stream ? OK : INVALID_VALUE;
}

// An image is text that ends with a zero; one with the word "unknown" is refused in the log.
int cuModuleLoadDataEx(void** module, const char* image, unsigned count, const int* options, void** values) {
    ENTER_CONTEXT
    if (count != 2 || options[0] != 5 || options[1] != 6) return INVALID_VALUE;
    if (!strstr(image, "unknown")) return *module = &function, OK;
    return strncpy(values[0], "line 2: unknown instruction", (size_t)(uintptr_t)values[1]), 218;
}
int cuModuleUnload(void* module) { ENTER_CONTEXT return module == &function ? OK : INVALID_VALUE; }
int cuModuleGetFunction(Function** found, void* module, const char* name) {
    ENTER_CONTEXT
    if (module != &function || strcmp(name, "add")) return NOT_FOUND;
    function.most_shared = function.most_shared ? function.most_shared : 48 << 10;
    return function.argument_bytes = 24, *found = &function, OK;
}
int cuFuncLoad(Function* of) { ENTER_CONTEXT return of->loaded = 1, OK; }
int cuFuncGetAttribute(int* value, int which, Function* of) {
    ENTER_CONTEXT
    return *value = which == 8 ? of->most_shared : which == 4 ? 32 : which == 1 ? 1024 : which == 3 ? 16 : -1, OK;
}
int cuFuncSetAttribute(Function* of, int which, int value) {
    ENTER_CONTEXT
    if (which != 8 || value > 232448) return INVALID_VALUE;
    return of->most_shared = value, OK;
}
int cuLaunchKernelEx(const Config* config, Function* of, void** parameters, void** extra) {
    ENTER_CONTEXT
    const unsigned char* arguments = 0;
    size_t bytes = 0;
    for (; extra && *extra; extra += 2) {
        if (extra[0] == (void*)1) arguments = extra[1];
        if (extra[0] == (void*)2) bytes = *(size_t*)extra[1];
    }
    if (parameters || !of->loaded || bytes != of->argument_bytes || !config->grid[0]) return INVALID_VALUE;
    if ((int)config->shared > of->most_shared) return INVALID_VALUE;
    memcpy(fake_launch.grid, config->grid, sizeof config->grid);
    memcpy(fake_launch.block, config->block, sizeof config->block);
    memcpy(fake_launch.arguments, arguments, bytes);
    fake_launch.shared = config->shared, fake_launch.argument_bytes = (unsigned)bytes, fake_launch.launches++;
    fake_launch.overlap = 0;
    for (unsigned i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == 6) fake_launch.overlap = (unsigned)config->attributes[i].value.overlap;
    Stream* stream = config->stream;
    return stream->nodes += stream->capturing, OK;
}

int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    ENTER_CONTEXT
    if (stream->capturing || mode != 1) return INVALID_VALUE;
    return *stream = (Stream){1, 0, 0}, OK;
}
int cuStreamEndCapture(Stream* stream, Graph** graph) {
    ENTER_CONTEXT
    *graph = 0;
    if (!stream->capturing) return ILLEGAL_STATE;
    stream->capturing = 0;
    if (stream->broken) return CAPTURE_INVALIDATED;
    *graph = malloc(sizeof **graph), (*graph)->nodes = stream->nodes, fake_live_graphs++;
    return OK;
}
int cuGraphGetNodes(Graph* graph, void** nodes, size_t* count) {
    ENTER_CONTEXT return *count = (size_t)graph->nodes, nodes ? INVALID_VALUE : OK;
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    ENTER_CONTEXT
    *executable = malloc(sizeof **executable), **executable = *graph, fake_live_executables++;
    return flags ? INVALID_VALUE : OK;
}
#ifndef FAKE_OLD
int cuGraphExecUpdate_v2(Graph* executable, Graph* graph, void* info) {
    ENTER_CONTEXT
    memset(info, 0xff, 24); // a result that no enum has
    if (executable->nodes == graph->nodes) return OK;
    executable->nodes = -1; // half done
    return UPDATE_FAILURE;
}
#endif
int cuGraphLaunch(Graph* executable, Stream* stream) {
    ENTER_CONTEXT return executable->nodes > 0 && stream ? OK : INVALID_VALUE;
}
int cuGraphExecDestroy(Graph* executable) { ENTER_CONTEXT return free(executable), fake_live_executables--, OK; }
int cuGraphDestroy(Graph* graph) { ENTER_CONTEXT return free(graph), fake_live_graphs--, OK; }
