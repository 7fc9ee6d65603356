// Code objects and kernels. A code object is an ELF file for AMD's machine; what runs is a shared object that was compiled
// from the same source by kx_sim.h: it stands behind the header (as `hiprtcCompileProgram` makes it), or was registered for
// the code object's contents.
#pragma once
#include "fake.h"

static const char MARK[16] = "refrain-fake-co";
constexpr size_t HEADER = 64;

static bool spoils_capture(int& status);

static uint64_t hash_of(const void* bytes, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char*)bytes)[i]) * 0x100000001b3u;
    return hash;
}
template <class T> static T field(const void* image, size_t offset) {
    T value;
    memcpy(&value, (const char*)image + offset, sizeof value);
    return value;
}
static bool is_marked(const void* image) { return memcmp((const char*)image + HEADER, MARK, sizeof MARK) == 0; }
static size_t payload_bytes(const void* image) { return field<uint64_t>(image, HEADER + sizeof MARK); }
static size_t elf_bytes(const void* image) {
    if (is_marked(image)) return HEADER + sizeof MARK + 8 + payload_bytes(image);
    // Up to the end of the section table, which comes last.
    return field<uint64_t>(image, 40) + (size_t)field<uint16_t>(image, 58) * field<uint16_t>(image, 60);
}

API void fake_register(const void* image, const char* shared_object) {
    std::lock_guard<std::recursive_mutex> guard(fake().lock);
    fake().registered[hash_of(image, elf_bytes(image))] = shared_object;
}

API int hipModuleLoadData(Module** module, const void* image) {
    ENTER();
    if (int status; spoils_capture(status)) return status;
    if (memcmp(image, "\177ELF\2\1", 6) != 0 || field<uint16_t>(image, 18) != 224) return INVALID_IMAGE;
    if ((field<uint32_t>(image, 48) & 0xff) != (uint32_t)fake().numbers["machine"]) return NO_BINARY_FOR_GPU;
    const uint64_t hash = hash_of(image, elf_bytes(image));
    std::string path = fake().registered[hash];
    char file[] = "/tmp/refrain-fake-hip-XXXXXX";
    if (is_marked(image)) {
        const int descriptor = mkstemp(file);
        const char* payload = (const char*)image + HEADER + sizeof MARK + 8;
        if (write(descriptor, payload, payload_bytes(image)) != (ssize_t)payload_bytes(image)) return INVALID_IMAGE;
        close(descriptor);
        path = file;
    }
    void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "fake HIP: no code for the CPU: %s\n", path.empty() ? "not registered" : dlerror());
    if (path == file) unlink(file);
    if (!library) return INVALID_IMAGE;
    const auto* sim = (const KxSimImage*)dlsym(library, "kx_sim_image");
    if (!sim || sim->version != KX_SIM_VERSION || sim->wave != KX_WAVE) return dlclose(library), INVALID_IMAGE;
    *module = new Module{image, hash, library, sim};
    fake().numbers["modules"]++;
    return SUCCESS;
}
API int hipModuleUnload(Module* module) {
    ENTER();
    dlclose(module->library);
    delete module;
    fake().numbers["modules"]--;
    return SUCCESS;
}
API int hipModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER();
    // HIP reads code objects where they were given to it, and when it likes.
    if (hash_of(module->image, elf_bytes(module->image)) != module->hash) return INVALID_IMAGE;
    const auto* kernel = (const KxSimKernel*)dlsym(module->library, (std::string("kx_sim_kernel_") + name).c_str());
    if (!kernel) return NOT_FOUND;
    *function = new Function{module, name, kernel};
    return SUCCESS;
}
API int hipFuncGetAttribute(int* value, int attribute, Function* function) {
    ENTER();
    const KxSimImage& sim = *function->module->sim;
    switch (attribute) {
        case 1: return *value = (int)(sim.shared_end - sim.shared_begin - 16), SUCCESS;
        case 3: return *value = 0, SUCCESS;
        case 4: return *value = 42, SUCCESS;
        default: return INVALID_VALUE;
    }
}

static int run_kernel(const Function& function, u32 x, u32 y, u32 z, u32 shared, const std::string& arguments) {
    const u32 blocks[3] = {x, y, z};
    fake().clock += 0.25; // milliseconds
    for (u32 i = 0; i < x * y * z; i++) {
        const u32 block[3] = {i % x, i / x % y, i / x / y};
        std::unique_ptr<char, void (*)(void*)> dynamic((char*)aligned_alloc(128, (shared + 128) / 128 * 128), free);
        memset(dynamic.get(), 0xcd, (shared + 128) / 128 * 128);
        if (int status = run_block(function, block, blocks, dynamic.get(), arguments.data())) return status;
    }
    return SUCCESS;
}

API int hipModuleLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                              unsigned threads_z, unsigned shared, Stream* stream, void** parameters, void** extra) {
    ENTER();
    if (parameters || !extra) return INVALID_VALUE;
    if (extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4] != (void*)3) return INVALID_VALUE;
    const size_t bytes = *(const size_t*)extra[3];
    if ((uintptr_t)extra[1] % 64 || bytes != function->kernel->arguments) return INVALID_VALUE;
    if (x * y * z == 0 || threads != function->kernel->threads || threads_y * threads_z != 1) return INVALID_CONFIGURATION;
    long& countdown = fake().numbers["lost_after"];
    if (countdown >= 0 && --countdown < 0) return fake().lost = true, LAUNCH_FAILURE;
    fake().numbers["launches"]++;
    Node node{[=](const std::string& arguments) { return run_kernel(*function, x, y, z, shared, arguments); }};
    // Read to the end of a line, as compiled code does.
    node.arguments = std::string((const char*)extra[1], (bytes + 63) / 64 * 64).substr(0, bytes);
    if (stream->capture && fake().numbers["late_arguments"]) node.arguments.clear(), node.late = extra;
    return submit(stream, std::move(node));
}
