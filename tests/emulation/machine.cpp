// The emulated machine: memory, fibres, blocks. Long because each of the three stands on the state of the others.
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

constexpr int kMostFibres = 8192;
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

enum class State { ready, at_warp, at_block, at_count, done };
struct Fibre {
#ifdef __x86_64__
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    State state;
    int line;
    void* brought;
    const uint32_t* count;  // what it waits for, and
    uint32_t wanted;        // from which value on it goes on
};
struct Warp {
    int arrived;
};
// A block that is on the GPU; its fibres are consecutive.
struct Block {
    Context context;
    Allocation shared;
    int first, slot;
    int waiting = 0;
    // Two flags by turns: a fast thread may be at the next barrier before a slow one has read this one's.
    bool said[2] = {};
    unsigned turn = 0;
    bool done = false;
};

Fibre fibres[kMostFibres];
Warp warps[kMostFibres / 32];
unsigned char* stacks = nullptr;
int running = 0;  // a fibre
Block* block = nullptr;  // its block
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
// Of a fibre of this block.
std::string where(int fibre) {
    return "thread " + std::to_string(fibre - block->first) + " (line " + std::to_string(fibres[fibre].line) + ")";
}

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
    uintptr_t least = 64 * kPage;  // beyond, it has nothing to do with the allocation
    for (const auto& [start, made] : allocations) {
        const uintptr_t end = start + made.bytes, off = address < start ? start - address : address < end ? 0 : address - end + 1;
        if (off < least) {
            least = off;
            std::snprintf(text, sizeof text, "%+ld bytes from the start of an allocation of %zu bytes", static_cast<long>(address - start),
                          made.bytes);
            near = text;
        }
    }
    const bool outside = fault_signal == SIGSEGV || fault_signal == SIGBUS;
    return (outside ? "an access outside of memory " : "a misaligned access or a trap ") + place() + ": " + near;
}

// ---- blocks ----

// One pass over the threads of a block, each as far as it comes; whether anything moved.
bool advance(Block& current_block, std::mt19937& dice) {
    block = &current_block;
    const int n = kernel->threads, first = block->first;
    current = block->context;
    switch_to_block(block->slot);
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = first + (schedule == 1 ? n - 1 - i : i);
    if (schedule >= 2) {
        for (int i = n - 1; i > 0; --i) std::swap(order[i], order[dice() % (i + 1)]);
    }
    bool moved = false;
    int done = 0, counting = 0;
    for (const int i : order) {
        Fibre& fibre = fibres[i];
        if (fibre.state == State::at_count && *fibre.count >= fibre.wanted) fibre.state = State::ready;
        // Under schedule 0 and 1 a warp runs as far as it can before the next one starts.
        while (fibre.state == State::ready) {
            moved = true;
            running = i;
            current.thread = i - first;
            resume(i);
            if (!failure.empty()) return false;
            if (schedule >= 2) break;
        }
        done += fibre.state == State::done;
        counting += fibre.state == State::at_count;
    }
    block->done = done == n;
    if (moved || block->done || counting > 0) return moved;
    if (block->waiting == n) {
        for (int i = first; i < first + n; ++i) {
            if (fibres[i].line != fibres[first].line) {
                fail("a block waits at different barriers: " + where(first) + ", " + where(i));
                return false;
            }
        }
        block->waiting = 0;
        pass_barrier();
        for (int i = first; i < first + n; ++i) fibres[i].state = State::ready;
        return true;
    }
    int left = -1, other = -1;
    for (int i = first; i < first + n; ++i) {
        if (fibres[i].state == State::at_warp || fibres[i].state == State::at_block) left = left < 0 ? i : left;
        if (left >= 0 && fibres[i].state != fibres[left].state) other = i;
    }
    fail("threads wait for others that never come: " + where(left) + " waits for its " +
         (fibres[left].state == State::at_warp ? "warp" : "block") +
         (other >= 0 ? ", " + where(other) + (fibres[other].state == State::done ? " has returned" : " waits elsewhere") : ""));
    return false;
}

// The blocks that are on the GPU together, by turns until all are done. Under schedule 0 and 1 a block runs as far as
// it can before the next one starts; from 2 on they take turns at random.
void run_resident(std::vector<Block>& resident, std::mt19937& dice) {
    std::vector<size_t> order(resident.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    while (true) {
        if (schedule >= 2) {
            for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[dice() % i]);
        }
        bool moved = false, left = false;
        for (const size_t i : order) {
            while (!resident[i].done && advance(resident[i], dice)) {
                moved = true;
                if (schedule >= 2) break;
            }
            if (!failure.empty()) return;
            left |= !resident[i].done;
        }
        if (!left) return;
        if (moved) continue;
        for (Block& b : resident) {
            for (int i = b.first; i < b.first + kernel->threads; ++i) {
                if (b.done || fibres[i].state != State::at_count) continue;
                block = &b;
                fail("blocks wait for others that never come: block (" + std::to_string(b.context.block_x) + ", " +
                     std::to_string(b.context.block_y) + "), " + where(i) + " waits for a count of " +
                     std::to_string(fibres[i].wanted) + " that stands at " + std::to_string(*fibres[i].count));
                return;
            }
        }
    }
}

void begin_block(Block& made, int slot, unsigned number, unsigned grid_x, size_t shared_bytes) {
    const int n = kernel->threads;
    unsigned char* memory = guarded(shared_bytes, made.shared);
    made.slot = slot;
    made.first = slot * n;
    made.context = {0, n, number % grid_x, number / grid_x, grid_x, memory};
    for (int i = made.first; i < made.first + n; ++i) {
        make_fibre(i);
        fibres[i].state = State::ready;
        fibres[i].line = 0;
        warps[i / 32].arrived = 0;
    }
    watch_block(slot, memory, shared_bytes, made.shared.pages, made.shared.page_bytes);
}

// The fault handler jumps back to here; nothing of this frame is used after that.
[[gnu::noinline]] void run_or_fault(std::vector<Block>& resident, std::mt19937& dice) {
    if (sigsetjmp(fault_return, 1) == 0) {
        inside_kernel = 1;
        run_resident(resident, dice);
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
                running = next;
                current.thread = next - block->first;
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
    const int me = running;
    Block& here = *block;
    if (here.waiting == 0) {
        here.turn ^= 1;
        here.said[here.turn] = false;
    }
    const unsigned my_turn = here.turn;
    here.said[my_turn] |= mine;
    fibres[me].line = line;
    fibres[me].state = State::at_block;
    ++here.waiting;
    leave(me);
    return here.said[my_turn];
}

void wait_for_count(int line, const uint32_t* count, uint32_t wanted) {
    if (*count >= wanted) return;
    const int me = running;
    fibres[me].line = line;
    fibres[me].count = count;
    fibres[me].wanted = wanted;
    fibres[me].state = State::at_count;
    leave(me);
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

// The name of a kernel by number; null beyond the last.
const char* machine_kernel(int index) {
    const Kernel* at = kernels;
    for (; at != nullptr && index > 0; --index) at = at->next;
    return at == nullptr ? nullptr : at->name;
}

// What a kernel takes; false if there is none of that name.
bool machine_describe(const char* name, size_t* argument_bytes, int* threads) {
    for (const Kernel* at = kernels; at != nullptr; at = at->next) {
        if (std::strcmp(at->name, name) != 0) continue;
        *argument_bytes = at->argument_bytes;
        *threads = at->threads;
        return true;
    }
    return false;
}

// Runs a kernel; "" or what went wrong. Schedules: 0 threads in order, 1 in reverse, from 2 on at random by that seed.
// `together`: all blocks are on the GPU at once, as a cooperative launch has them; else one after the other.
const char* machine_launch(const char* name, unsigned grid_x, unsigned grid_y, size_t shared_bytes, const void* arguments,
                           size_t argument_bytes, unsigned wanted_schedule, bool together) {
    static std::mutex one_at_a_time;
    static std::string answer;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    failure.clear();
    schedule = wanted_schedule;
    kernel = kernels;
    while (kernel != nullptr && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
    if (kernel == nullptr) return "there is no such kernel";
    if (kernel->argument_bytes != argument_bytes) return "the argument structure has another size";
    const size_t grid = static_cast<size_t>(grid_x) * grid_y, at_once = together ? grid : 1;
    if (at_once * kernel->threads > kMostFibres) return "more blocks at once than this machine has room for";
    if (stacks == nullptr) {
        stacks = static_cast<unsigned char*>(mmap(nullptr, kMostFibres * kStackBytes, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) std::abort();
        stack_start = reinterpret_cast<uintptr_t>(stacks);
        stack_end = stack_start + kMostFibres * kStackBytes;
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
    std::vector<unsigned> order(grid);
    for (unsigned i = 0; i < grid; ++i) order[i] = schedule == 1 ? static_cast<unsigned>(grid) - 1 - i : i;
    if (schedule >= 2) {
        for (size_t i = grid; i > 1; --i) std::swap(order[i - 1], order[dice() % i]);
    }
    begin_launch();
    for (size_t done = 0; done < grid && failure.empty(); done += at_once) {
        std::vector<Block> resident(at_once);
        for (size_t i = 0; i < at_once; ++i) begin_block(resident[i], static_cast<int>(i), order[done + i], grid_x, shared_bytes);
        run_or_fault(resident, dice);
        unwatch();
        for (Block& b : resident) munmap(b.shared.pages, b.shared.page_bytes);
    }
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&before, nullptr);
    answer = failure.empty() ? "" : std::string(name) + ": " + failure;
    return answer.c_str();
}

}
