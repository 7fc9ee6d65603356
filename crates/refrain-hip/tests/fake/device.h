// Devices, memory, copies, and the tests' own functions.
#pragma once
#include "fake.h"

Fake& fake() {
    static Fake* one = new Fake; // outlives every user
    return *one;
}

API void fake_set(const char* name, long value) {
    std::lock_guard<std::recursive_mutex> guard(fake().lock);
    fake().numbers[name] = value;
}
API long fake_get(const char* name) {
    std::lock_guard<std::recursive_mutex> guard(fake().lock);
    const std::string key = name;
    if (key == "allocations") return (long)fake().memory.size();
    if (key == "streams") return (long)fake().streams.size();
    if (key == "events") return (long)fake().events.size();
    return fake().numbers[name];
}

API int hipInit(unsigned flags) {
    ENTER();
    return flags ? INVALID_VALUE : (int)fake().numbers["init"];
}
API int hipRuntimeGetVersion(int* version) {
    ENTER();
    *version = fake().numbers["numbering"] == 4 ? 40421401 : 60342133;
    return SUCCESS;
}
API int hipDriverGetVersion(int* version) { return hipRuntimeGetVersion(version); }
API int hipGetDeviceCount(int* count) {
    ENTER();
    *count = (int)fake().numbers["devices"];
    return *count ? SUCCESS : NO_DEVICE;
}
API int hipSetDevice(int device) {
    ENTER();
    return device >= 0 && device < fake().numbers["devices"] ? (int)fake().numbers["set_device"] : INVALID_DEVICE;
}
API int hipDeviceGetName(char* name, int length, int device) {
    ENTER();
    snprintf(name, (size_t)length, "Fake card %d", device);
    return SUCCESS;
}
API int hipDeviceTotalMem(size_t* bytes, int) {
    ENTER();
    *bytes = (size_t)fake().numbers["memory"];
    return SUCCESS;
}
static const char* arch_name() {
    switch (fake().numbers["machine"]) {
        case 0x2f: return "gfx906:sramecc+:xnack-";
        case 0x30: return "gfx908:sramecc+:xnack-";
        default: return "gfx9999";
    }
}
API int hipDeviceGetAttribute(int* value, int attribute, int) {
    ENTER();
    const long numbering = fake().numbers["numbering"];
    const std::map<int, int> known = numbering == 5 ? std::map<int, int>{{87, 64}, {63, 60}, {74, 65536}, {9, 1}, {14, 1}}
        : numbering == 4                            ? std::map<int, int>{{9, 64}, {14, 60}, {7, 65536}}
                                                    : std::map<int, int>{{87, 1}, {63, 0}, {74, -5}};
    if (attribute == 10004 && fake().numbers["arch_attribute"]) {
        memset(value, 0, 256);
        strcpy((char*)value, arch_name());
        return SUCCESS;
    }
    const auto found = known.find(attribute);
    if (found == known.end()) return INVALID_VALUE;
    *value = found->second;
    return SUCCESS;
}
// Sizes and places of two layouts of the struct: HIP 6's and HIP 5's.
static int properties(char* to, size_t bytes, size_t place) {
    memset(to, 0xee, bytes);
    strcpy(to, "Fake card");
    strcpy(to + place, fake().numbers["arch_known"] ? arch_name() : "unknown");
    to[place - 1] = 0;
    return SUCCESS;
}
API int hipGetDevicePropertiesR0600(char* to, int) {
    ENTER();
    return properties(to, 1472, 1160);
}
API int hipGetDeviceProperties(char* to, int) {
    ENTER();
    return properties(to, 792, 396);
}

API const char* hipGetErrorName(int status) { return status == OUT_OF_MEMORY ? "hipErrorOutOfMemory" : "hipErrorFake"; }
API const char* hipGetErrorString(int status) {
    switch (status) {
        case OUT_OF_MEMORY: return "out of memory";
        case NO_BINARY_FOR_GPU: return "no kernel image is available for execution on the device";
        case NOT_FOUND: return "named symbol not found";
        case LAUNCH_FAILURE: return "unspecified launch failure";
        case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
        default: return "an error";
    }
}

// Whether a capture of this thread is spoilt by the call; `status` is then what the call answers.
static bool spoils_capture(int& status) {
    Graph* graph = capture_here();
    if (!graph) return false;
    fake().numbers["illegal_calls"]++;
    graph->spoilt = true;
    status = CAPTURE_UNSUPPORTED;
    return !fake().numbers["spoil_silently"];
}

API int hipMemGetInfo(size_t* free, size_t* total) {
    ENTER();
    *total = (size_t)fake().numbers["memory"];
    *free = *total - (size_t)fake().used;
    return SUCCESS;
}
API int hipMalloc(void** memory, size_t bytes) {
    ENTER();
    if (int status; spoils_capture(status)) return status;
    long& countdown = fake().numbers["fail_allocation"];
    if (countdown > 0 && --countdown == 0) return OUT_OF_MEMORY;
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (fake().used + (long)rounded > fake().numbers["memory"]) return OUT_OF_MEMORY;
    char* got = (char*)aligned_alloc(256, rounded);
    memset(got, 0xcd, rounded);
    fake().used += (long)rounded;
    fake().memory[got] = rounded;
    *memory = got;
    return SUCCESS;
}
API int hipFree(void* memory) {
    ENTER();
    if (int status; spoils_capture(status)) return status;
    const auto found = fake().memory.find((char*)memory);
    if (found == fake().memory.end()) return INVALID_VALUE;
    for (Stream* stream : fake().streams) drain(stream);
    fake().used -= (long)found->second;
    memset(memory, 0xdd, found->second);
    fake().memory.erase(found);
    free(memory);
    return SUCCESS;
}
API int hipHostMalloc(void** memory, size_t bytes, unsigned) { return hipMalloc(memory, bytes); }
API int hipHostFree(void* memory) { return hipFree(memory); }

// Whether a range lies within an allocation.
static bool on_device(const void* from, size_t bytes) {
    auto after = fake().memory.upper_bound((char*)from);
    if (after == fake().memory.begin()) return false;
    const auto& [base, size] = *--after;
    return (char*)from + bytes <= base + size;
}
API int hipMemcpyHtoDAsync(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER();
    if (!on_device(to, bytes)) return INVALID_VALUE;
    return submit(stream, {[=](const std::string&) { return memcpy(to, from, bytes), SUCCESS; }});
}
API int hipMemcpyDtoHAsync(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER();
    if (!on_device(from, bytes)) return INVALID_VALUE;
    return submit(stream, {[=](const std::string&) { return memcpy(to, from, bytes), SUCCESS; }});
}
API int hipMemcpyDtoDAsync(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER();
    if (!on_device(to, bytes) || !on_device(from, bytes)) return INVALID_VALUE;
    return submit(stream, {[=](const std::string&) { return memcpy(to, from, bytes), SUCCESS; }});
}
API int hipMemsetD8Async(void* to, unsigned char value, size_t bytes, Stream* stream) {
    ENTER();
    if (const long status = fake().numbers["fill"]) return (int)status;
    if (!on_device(to, bytes)) return INVALID_VALUE;
    return submit(stream, {[=](const std::string&) { return memset(to, value, bytes), SUCCESS; }});
}
