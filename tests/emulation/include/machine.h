// A small CUDA machine on the CPU: blocks one after the other, or all together where they wait for each other, threads
// as fibres, warps and barriers in between.
//
// It checks what a GPU would not report by itself: accesses outside an allocation or beyond the shared memory asked
// for (guard pages), barriers and warp operations that not all threads reach together, and, by running a kernel under
// several schedules and fillings of fresh memory, results that depend on a race or on memory that nothing wrote. The
// checked build looks at every access besides; see checks.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace machine {

struct Context {
    int thread, threads;
    uint32_t block_x, block_y, grid_x;
    unsigned char* shared;
};
extern Context current;  // of the running fibre

// Waits for the other 31 lanes at the same line; the last one to arrive calls `combine` with what each lane brought.
void meet_warp(int line, void* brought, void (*combine)(void** lanes));
// Waits for all threads of the block at the same line; true if any thread said so.
bool meet_block(int line, bool mine);
// Waits, while other blocks run, for a count that they raise.
void wait_for_count(int line, const uint32_t* count, uint32_t wanted);

// ---- for checks.cpp ----

// Who wrote a byte last.
struct Origin {
    uint64_t interval;  // between barriers, counted over all blocks; 0: ordered before whoever reads it
    uint32_t block;     // counted over all launches; 0: nobody
    int32_t thread;
};
constexpr Origin kHost{0, 1, 0};
struct Extent {
    uintptr_t start;
    size_t bytes;
    std::vector<Origin> origins;  // of each byte, in the checked build
};
// The allocation whose pages hold an address, guards included; null for memory of the host.
Extent* extent_of(uintptr_t address);
extern uintptr_t stack_start, stack_end;  // of the fibres
// Ends the launch with a fault of the running thread.
void stop(std::string what);

// A block begins in a slot, with its shared memory; the pages that hold that are nobody else's.
void watch_block(int slot, const unsigned char* shared, size_t size, const unsigned char* pages, size_t page_bytes);
void switch_to_block(int slot);
void pass_barrier();
void unwatch();
void forget_extents();
void begin_launch();
// How a kernel reaches memory otherwise than by plain reads and writes.
void access_atomically(const void* where, size_t size);
void read_past_the_first_cache(const void* where, size_t size);
void read_what_no_one_writes(const void* where, size_t size);
void pass_fence();

using Body = void (*)(const void* arguments);
struct Kernel {
    Kernel(const char* name, size_t argument_bytes, int threads, Body body);
    const char* name;
    size_t argument_bytes;
    int threads;
    Body body;
    Kernel* next;
};

}  // namespace machine
