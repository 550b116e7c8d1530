#include "include/machine.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace machine {

Context current;

namespace {

constexpr int kMostThreads = 1024;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kPage = 4096;

// ---- memory: every allocation ends at a page that must not be touched ----

struct Allocation : Extent {
    unsigned char* pages;
    size_t page_bytes;
};
std::map<uintptr_t, Allocation> allocations;
unsigned char filling = 0xff;

unsigned char* guarded(size_t bytes, Allocation& made) {
    const size_t inside = (bytes + kPage - 1) / kPage * kPage + (bytes == 0 ? kPage : 0);
    made.page_bytes = inside + 2 * kPage;
    made.bytes = bytes;
    made.pages = static_cast<unsigned char*>(
        mmap(nullptr, made.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (made.pages == MAP_FAILED) std::abort();
    mprotect(made.pages + kPage, inside, PROT_READ | PROT_WRITE);
    unsigned char* at = made.pages + kPage + inside - (bytes + 15) / 16 * 16;  // vectors want 16-byte addresses
    std::memset(made.pages + kPage, filling, inside);
    made.start = reinterpret_cast<uintptr_t>(at);
    return at;
}

// ---- fibres ----

enum class State { ready, at_warp, at_block, done };
struct Fibre {
#ifdef __x86_64__
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    State state;
    int line;
    bool said;
    void* brought;
};
struct Warp {
    int arrived;
};

Fibre fibres[kMostThreads];
Warp warps[kMostThreads / 32];
unsigned char* stacks = nullptr;
int running = 0, waiting_block = 0;
unsigned schedule = 0;
const Kernel* kernel = nullptr;
const void* kernel_arguments = nullptr;
std::string failure;

[[noreturn]] void finish_fibre();
void start_fibre() {
    kernel->body(kernel_arguments);
    finish_fibre();
}

#ifdef __x86_64__
extern "C" void machine_switch(void** save, void* load);
asm(R"(
.text
.globl machine_switch
.hidden machine_switch
machine_switch:
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
)");
void* scheduler;
void make_fibre(int i) {
    auto** top = reinterpret_cast<void**>(stacks + (i + 1) * kStackBytes);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(start_fibre);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    fibres[i].stack_pointer = top;
}
void resume(int i) { machine_switch(&scheduler, fibres[i].stack_pointer); }
void leave(int i) { machine_switch(&fibres[i].stack_pointer, scheduler); }
void hand_over(int from, int to) { machine_switch(&fibres[from].stack_pointer, fibres[to].stack_pointer); }
#else
ucontext_t scheduler;
void make_fibre(int i) {
    getcontext(&fibres[i].context);
    fibres[i].context.uc_stack.ss_sp = stacks + i * kStackBytes;
    fibres[i].context.uc_stack.ss_size = kStackBytes;
    makecontext(&fibres[i].context, start_fibre, 0);
}
void resume(int i) { swapcontext(&scheduler, &fibres[i].context); }
void leave(int i) { swapcontext(&fibres[i].context, &scheduler); }
void hand_over(int from, int to) { swapcontext(&fibres[from].context, &fibres[to].context); }
#endif

void finish_fibre() {
    fibres[running].state = State::done;
    leave(running);
    std::abort();
}

void fail(std::string what) {
    if (failure.empty()) failure = std::move(what);
}
std::string place() {
    return "in block (" + std::to_string(current.block_x) + ", " + std::to_string(current.block_y) + "), thread " +
           std::to_string(current.thread);
}
std::string where(int thread) { return "thread " + std::to_string(thread) + " (line " + std::to_string(fibres[thread].line) + ")"; }

// ---- faults ----

sigjmp_buf fault_return;
volatile sig_atomic_t inside_kernel = 0;
void* fault_address;
int fault_signal;
void on_fault(int signal, siginfo_t* info, void*) {
    if (!inside_kernel) {
        std::signal(signal, SIG_DFL);
        raise(signal);
        return;
    }
    fault_address = info->si_addr;
    fault_signal = signal;
    siglongjmp(fault_return, 1);
}

std::string describe_fault() {
    char text[400];
    const auto address = reinterpret_cast<uintptr_t>(fault_address);
    std::string near = "no allocation near it";
    for (const auto& [start, made] : allocations) {
        if (address + 64 * kPage >= start && address < start + made.bytes + 64 * kPage) {
            std::snprintf(text, sizeof text, "%+ld bytes from the start of an allocation of %zu bytes", static_cast<long>(address - start),
                          made.bytes);
            near = text;
        }
    }
    const bool outside = fault_signal == SIGSEGV || fault_signal == SIGBUS;
    return (outside ? "an access outside of memory " : "a misaligned access or a trap ") + place() + ": " + near;
}

// ---- one block ----

void run_block(std::mt19937& dice) {
    const int n = kernel->threads;
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = schedule == 1 ? n - 1 - i : i;
    for (auto& w : warps) w.arrived = 0;
    waiting_block = 0;
    for (int i = 0; i < n; ++i) {
        make_fibre(i);
        fibres[i].state = State::ready;
        fibres[i].line = 0;
    }
    while (true) {
        if (schedule >= 2) {
            // Whole warps in random order, and lanes within them.
            for (int i = n - 1; i > 0; --i) std::swap(order[i], order[dice() % (i + 1)]);
        }
        bool moved = false;
        int done = 0;
        for (const int i : order) {
            // Under schedule 0 and 1 a warp runs as far as it can before the next one starts.
            while (fibres[i].state == State::ready) {
                moved = true;
                running = i;
                current.thread = i;
                resume(i);
                if (!failure.empty()) return;
                if (schedule >= 2) break;
            }
            done += fibres[i].state == State::done;
        }
        if (moved) continue;
        if (done == n) return;
        if (waiting_block == n) {
            for (int i = 1; i < n; ++i) {
                if (fibres[i].line != fibres[0].line) {
                    fail("a block waits at different barriers: " + where(0) + ", " + where(i));
                    return;
                }
            }
            waiting_block = 0;
            pass_barrier();
            for (int i = 0; i < n; ++i) fibres[i].state = State::ready;
            continue;
        }
        int left = -1, other = -1;
        for (int i = 0; i < n; ++i) {
            if (fibres[i].state == State::at_warp || fibres[i].state == State::at_block) left = left < 0 ? i : left;
            if (left >= 0 && fibres[i].state != fibres[left].state) other = i;
        }
        fail("threads wait for others that never come: " + where(left) + " waits for its " +
             (fibres[left].state == State::at_warp ? "warp" : "block") +
             (other >= 0 ? ", " + where(other) + (fibres[other].state == State::done ? " has returned" : " waits elsewhere") : ""));
        return;
    }
}

// The fault handler jumps back to here; nothing of this frame is used after that.
[[gnu::noinline]] void run_block_or_fault(std::mt19937& dice) {
    if (sigsetjmp(fault_return, 1) == 0) {
        inside_kernel = 1;
        run_block(dice);
    } else {
        fail(describe_fault());
    }
    inside_kernel = 0;
}

}  // namespace

uintptr_t stack_start = 0, stack_end = 0;

Extent* extent_of(uintptr_t address) {
    auto next = allocations.upper_bound(address);
    if (next != allocations.end() && address >= reinterpret_cast<uintptr_t>(next->second.pages)) return &next->second;
    if (next == allocations.begin()) return nullptr;
    Allocation& before = std::prev(next)->second;
    return address < reinterpret_cast<uintptr_t>(before.pages) + before.page_bytes ? &before : nullptr;
}

void stop(std::string what) {
    fail(what + "; " + place() + ", after line " + std::to_string(fibres[running].line));
    leave(running);
}

void meet_warp(int line, void* brought, void (*combine)(void** lanes)) {
    const int me = running, first = me / 32 * 32;
    Warp& warp = warps[me / 32];
    fibres[me].brought = brought;
    fibres[me].line = line;
    if (++warp.arrived < 32) {
        fibres[me].state = State::at_warp;
        // Straight to the next lane where the schedule does not say otherwise: most switches are these.
        for (int i = 1; i < 32 && schedule < 2; ++i) {
            const int next = first + (schedule == 0 ? me - first + i : me - first + 32 - i) % 32;
            if (fibres[next].state == State::ready) {
                running = current.thread = next;
                hand_over(me, next);
                return;
            }
        }
        leave(me);
        return;
    }
    void* lanes[32];
    for (int i = 0; i < 32; ++i) {
        if (fibres[first + i].line != line) {
            fail("a warp meets at different lines: " + where(me) + ", " + where(first + i));
            leave(me);
        }
        lanes[i] = fibres[first + i].brought;
    }
    combine(lanes);
    warp.arrived = 0;
    for (int i = 0; i < 32; ++i) fibres[first + i].state = State::ready;
}

bool meet_block(int line, bool mine) {
    // Two flags by turns: a fast thread may be at the next barrier before a slow one has read this one's.
    static bool said[2];
    static unsigned turn;
    const int me = running;
    if (waiting_block == 0) {
        turn ^= 1;
        said[turn] = false;
    }
    const unsigned my_turn = turn;
    said[my_turn] |= mine;
    fibres[me].line = line;
    fibres[me].state = State::at_block;
    ++waiting_block;
    leave(me);
    return said[my_turn];
}

static Kernel* kernels = nullptr;
Kernel::Kernel(const char* name, size_t argument_bytes, int threads, Body body)
    : name(name), argument_bytes(argument_bytes), threads(threads), body(body), next(kernels) {
    kernels = this;
}

}  // namespace machine

using namespace machine;

extern "C" {

void* machine_allocate(size_t bytes) {
    Allocation made;
    unsigned char* at = guarded(bytes, made);
#ifdef CIR_CHECKED
    made.origins.assign(bytes, Origin{});
#endif
    allocations[made.start] = std::move(made);
    forget_extents();
    return at;
}

void machine_free(void* at) {
    const auto found = allocations.find(reinterpret_cast<uintptr_t>(at));
    if (found == allocations.end()) std::abort();
    munmap(found->second.pages, found->second.page_bytes);
    allocations.erase(found);
    forget_extents();
}

void machine_fill_fresh_memory_with(unsigned char value) { filling = value; }

// The host has written these bytes.
void machine_written(void* at, size_t bytes) {
    Extent* extent = extent_of(reinterpret_cast<uintptr_t>(at));
    if (extent == nullptr || extent->origins.empty()) return;
    std::fill_n(extent->origins.begin() + static_cast<long>(reinterpret_cast<uintptr_t>(at) - extent->start), bytes, kHost);
}

// Runs a kernel; "" or what went wrong. Schedules: 0 threads in order, 1 in reverse, from 2 on at random by that seed.
const char* machine_launch(const char* name, unsigned grid_x, unsigned grid_y, size_t shared_bytes, const void* arguments,
                           size_t argument_bytes, unsigned wanted_schedule) {
    static std::mutex one_at_a_time;
    static std::string answer;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    failure.clear();
    schedule = wanted_schedule;
    kernel = kernels;
    while (kernel != nullptr && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
    if (kernel == nullptr) return "there is no such kernel";
    if (kernel->argument_bytes != argument_bytes) return "the argument structure has another size";
    if (stacks == nullptr) {
        stacks = static_cast<unsigned char*>(mmap(nullptr, kMostThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        stack_start = reinterpret_cast<uintptr_t>(stacks);
        stack_end = stack_start + kMostThreads * kStackBytes;
    }
    static unsigned char signal_stack[64 << 10];
    stack_t alternative{}, before{};
    alternative.ss_sp = signal_stack;
    alternative.ss_size = sizeof signal_stack;
    sigaltstack(&alternative, &before);
    struct sigaction action{}, old[3];
    const int signals[3] = {SIGSEGV, SIGBUS, SIGILL};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, &old[i]);

    kernel_arguments = arguments;
    std::mt19937 dice(schedule);
    Allocation shared;
    unsigned char* memory = guarded(shared_bytes, shared);
    std::vector<unsigned> blocks(static_cast<size_t>(grid_x) * grid_y);
    for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = schedule == 1 ? static_cast<unsigned>(blocks.size()) - 1 - i : i;
    if (schedule >= 2) {
        for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[dice() % i]);
    }
    begin_launch();
    for (const unsigned block : blocks) {
        std::memset(shared.pages + kPage, filling, shared.page_bytes - 2 * kPage);
        current = {0, kernel->threads, block % grid_x, block / grid_x, grid_x, memory};
        watch_block(memory, shared_bytes, shared.pages, shared.page_bytes);
        run_block_or_fault(dice);
        unwatch();
        if (!failure.empty()) break;
    }
    munmap(shared.pages, shared.page_bytes);
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&before, nullptr);
    answer = failure.empty() ? "" : std::string(name) + ": " + failure;
    return answer.c_str();
}

}
