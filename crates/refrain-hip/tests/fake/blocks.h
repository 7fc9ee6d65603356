// Threads of a block as fibres that take turns; they meet at barriers and shuffles.
#pragma once
#include "fake.h"

#if defined(__x86_64__)
// Saves what a call must preserve, and goes on where the other fibre saved it.
extern "C" void fake_switch(void** from, void* to);
asm(R"(
.text
.hidden fake_switch
.globl fake_switch
.type fake_switch, @function
fake_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fake_switch, .-fake_switch
)");
struct Fibre {
    void* stack_pointer = nullptr;
    void prepare(char* stack, size_t bytes, void (*entry)()) {
        void** top = (void**)(((uintptr_t)stack + bytes) & ~(uintptr_t)63);
        *--top = nullptr; // where `entry` would return to: it never does; keeps the stack aligned as after a call
        *--top = (void*)entry;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        stack_pointer = top;
    }
    static void change(Fibre& from, Fibre& to) { fake_switch(&from.stack_pointer, to.stack_pointer); }
};
#else
#include <ucontext.h>
struct Fibre {
    ucontext_t context;
    void prepare(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    static void change(Fibre& from, Fibre& to) { swapcontext(&from.context, &to.context); }
};
#endif

// Threads that meet: a wave or the block.
struct Meeting {
    u32 members = 0, arrived = 0, count = 0;
};

struct Block {
    static constexpr size_t STACK = 128 << 10;
    KxSim* sim = nullptr;
    const KxSimKernel* kernel = nullptr;
    const void* arguments = nullptr;
    u32 threads = 0, current = 0, alive = 0;
    Fibre main, fibres[1024];
    bool done[1024];
    Meeting all, waves[1024 / KX_WAVE];
    u32 values[2][1024];
    std::unique_ptr<char[]> stacks{new char[1024 * STACK]}; // not touched before it is used
};
static Block block_state;

static void next_thread() {
    Block& b = block_state;
    Fibre& from = b.fibres[b.current];
    if (b.alive == 0) return Fibre::change(from, b.main);
    do b.current = (b.current + 1) % b.threads;
    while (b.done[b.current]);
    b.sim->tid = b.current;
    if (&b.fibres[b.current] != &from) Fibre::change(from, b.fibres[b.current]);
}
static void meet(Meeting& meeting) {
    const u32 count = meeting.count;
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.count++;
        return;
    }
    while (meeting.count == count) next_thread();
}
static void leave(Meeting& meeting) {
    if (--meeting.members > 0 && meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.count++;
    }
}
static void thread_entry() {
    Block& b = block_state;
    b.kernel->run(b.arguments);
    b.done[b.current] = true;
    b.alive--;
    leave(b.all);
    leave(b.waves[b.current / KX_WAVE]);
    next_thread();
    abort();
}

static void sim_sync(void*) { meet(block_state.all); }
static void sim_sync_wave(void*) { meet(block_state.waves[block_state.current / KX_WAVE]); }
static u32 sim_shuffle(void*, u32 value, u32 lane) {
    Block& b = block_state;
    const u32 wave = b.current / KX_WAVE;
    // Nobody can be two meetings ahead, so two sets of values are enough.
    u32* values = b.values[b.waves[wave].count & 1];
    values[b.current] = value;
    meet(b.waves[wave]);
    return values[wave * KX_WAVE + lane % KX_WAVE];
}
static void sim_copy(void*, void* shared, const void* global) {
    if (global) memcpy(shared, global, 16);
    else memset(shared, 0, 16);
}
static void sim_nothing(void*) {}
static void sim_wait(void*, u32) {}

int run_block(const Function& function, const u32 block[3], const u32 blocks[3], void* dynamic_shared, const void* arguments) {
    Block& b = block_state;
    const KxSimImage& image = *function.module->sim;
    b.sim = image.state;
    *b.sim = KxSim{};
    for (int axis = 0; axis < 3; axis++) b.sim->block[axis] = block[axis], b.sim->blocks[axis] = blocks[axis];
    b.sim->dynamic_shared = dynamic_shared;
    b.sim->sync = sim_sync, b.sim->sync_wave = sim_sync_wave, b.sim->shuffle = sim_shuffle;
    b.sim->copy_async = sim_copy, b.sim->copy_commit = sim_nothing, b.sim->copy_wait = sim_wait;
    memset(image.shared_begin, 0xcd, image.shared_end - image.shared_begin);
    b.kernel = function.kernel, b.arguments = arguments;
    b.threads = b.alive = function.kernel->threads, b.current = 0;
    b.all = {b.threads, 0, 0};
    for (u32 thread = 0; thread < b.threads; thread++) {
        b.done[thread] = false;
        b.fibres[thread].prepare(&b.stacks[thread * Block::STACK], Block::STACK, thread_entry);
        if (thread % KX_WAVE == 0) b.waves[thread / KX_WAVE] = {std::min<u32>(KX_WAVE, b.threads - thread), 0, 0};
    }
    Fibre::change(b.main, b.fibres[0]);
    return SUCCESS;
}
