// A HIP library whose device is the CPU, for tests of what calls HIP. It has HIP's functions and HIP's rules, runs kernels
// that were compiled by kx_sim.h, and can be made hostile by knobs (fake_set). One copy of the library is one machine.
#pragma once
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define KX_SIM 1
#define KX_WAVE 64
#include "kx.h"

#define API extern "C" __attribute__((visibility("default")))

// Numbers of hipError_t.
enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_CONFIGURATION = 9,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILURE = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    GRAPH_UPDATE_FAILURE = 910,
};

// What tests set, with the machine's defaults, and what they read.
struct Numbers {
    std::map<std::string, long> values = {
        {"devices", 1},           // how many there are
        {"init", SUCCESS},        // what hipInit answers
        {"machine", 0x2f},        // EF_AMDGPU_MACH of the device: gfx906
        {"numbering", 5},         // HIP whose attributes it has: 4 or 5; others are unknown
        {"arch_attribute", 0},    // 1: the attribute with the architecture's name exists
        {"arch_known", 1},        // 0: nothing tells the architecture
        {"memory", 64 << 20},     // bytes
        {"fail_allocation", 0},   // N: the Nth allocation from now on fails
        {"lost_after", -1},       // N: after N more launches every call fails
        {"set_device", SUCCESS},  // what hipSetDevice answers for a device that there is
        {"fill", SUCCESS},        // what filling memory answers
        {"late_arguments", 0},    // 1: recorded launches keep pointers to their arguments
        {"drop_node", 0},         // N: the Nth node of a capture is not recorded
        {"stale_captures", 0},    // 1: another capture of a stream gives what its first one gave
        {"spoil_silently", 0},    // 1: a call that a capture does not permit works, and the graph comes out empty
        {"refuse_update", 0},     // 1: graphs can't be updated, and are changed by the attempt
    };
    long& operator[](const char* name) { return values[name]; }
};

struct Module {
    const void* image; // never copied
    uint64_t hash;
    void* library;
    const KxSimImage* sim;
};
struct Function {
    Module* module;
    std::string name;
    const KxSimKernel* kernel;
};

// A piece of work. `late` is the array that the launch was given, where it is to be read again.
struct Node {
    std::function<int(const std::string& arguments)> run;
    std::string arguments;
    void** late = nullptr;
};
struct Event;
struct Graph {
    std::vector<Node> nodes;
    std::set<Event*> events;
    std::thread::id thread;
    bool spoilt = false;
    long seen = 0;
};
struct Stream {
    std::deque<Node> queue; // nothing runs before somebody waits
    Graph* capture = nullptr;
    bool origin = false;
    std::vector<Node> first; // what its first capture recorded
    int failure = SUCCESS;
};
struct Event {
    Stream* stream = nullptr;
    long recorded = 0, passed = 0; // how often
    double milliseconds = 0;
    bool pending() const { return passed < recorded; }
};

struct Fake {
    std::recursive_mutex lock;
    Numbers numbers;
    std::map<char*, size_t> memory;
    std::map<uint64_t, std::string> registered;
    std::set<Stream*> streams;
    std::set<Event*> events;
    long used = 0;
    double clock = 0;
    bool lost = false;
};
Fake& fake();

// Every call begins with this.
#define ENTER() \
    std::lock_guard<std::recursive_mutex> guard(fake().lock); \
    if (fake().lost) return fake().numbers["calls_when_lost"]++, LAUNCH_FAILURE

// Runs one block of a kernel.
int run_block(const Function& function, const u32 block[3], const u32 blocks[3], void* dynamic_shared, const void* arguments);
// Runs the work of a stream, all of it or one piece.
int drain(Stream* stream);
void step(Stream* stream);
// Gives a stream work, or records it.
int submit(Stream* stream, Node node);
// The capture of this thread.
Graph* capture_here();
