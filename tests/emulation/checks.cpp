// What compute-sanitizer's memcheck, initcheck and racecheck would say, said here, and what blocks owe each other.
//
// The checked build compiles the kernels with -fsanitize=thread, which calls a function before every access to memory,
// and these are those functions in place of the sanitizer's own. An access must lie inside an allocation to the byte;
// memory that is read must have been written; and no two threads may touch the same byte of shared memory between two
// barriers if one of them writes; of GPU memory, what another thread of the block has written is touched behind a barrier
// only. Shuffles order no memory, so they count for nothing here. What another block writes in
// the same launch must be read past the first-level cache, and only after that block has ordered it: a fence by whoever
// wrote, a barrier unless the same thread goes on, and an atomic by which others can know; or the barrier first, and
// then a fence by whoever does the atomic. The plain build has no calls.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "include/machine.h"

namespace machine {
namespace {

constexpr int kMany = -1;

struct Byte {
    uint64_t written = 0, read = 0;  // the interval between barriers, counted over all blocks and launches
    int writer = 0, reader = 0;      // a thread, or kMany
    bool atomically = false;         // how it was written
};

bool watching = false;
uint64_t intervals = 1;  // so far

constexpr int kMostThreads = 1024;
struct Block {
    uint32_t number;
    uint64_t first, interval;  // between barriers
    uintptr_t shared_start, shared_end, pages_start, pages_end;
    std::vector<Byte>* bytes;
    uint64_t fenced[kMostThreads] = {};   // by thread: the interval of its last fence
    uint64_t ordered[kMostThreads] = {};  // by thread: its writes up to this interval can be known of by others
};
std::vector<std::unique_ptr<Block>> blocks;  // of this launch, as they come
uint32_t block_number = kHost.block, first_of_launch = 2;
Block* now = nullptr;                              // the block that runs
std::vector<Block*> slots;                         // those on the GPU
std::vector<std::unique_ptr<std::vector<Byte>>> bytes_of_slot;

enum class Kind { read, write, atomic, fresh, constant };

struct Found {
    uintptr_t page = 0;
    Extent* extent = nullptr;
};
Found known[256];

Extent* extent_at(uintptr_t address) {
    const uintptr_t page = address >> 12;
    Found& found = known[page % 256];
    if (found.page != page || found.extent == nullptr) found = {page, extent_of(address)};
    return found.extent;
}

std::string text(uintptr_t at, size_t size, const char* does, uintptr_t start) {
    return std::string(does) + " " + std::to_string(size) + " bytes at " +
           std::to_string(static_cast<long>(at - start)) + " of ";
}

void check_shared(uintptr_t at, size_t size, Kind kind) {
    const bool atomic = kind == Kind::atomic, writes = atomic || kind == Kind::write;
    if (at < now->shared_start || at + size > now->shared_end) {
        stop("an access outside of memory: it " + text(at, size, writes ? "writes" : "reads", now->shared_start) +
             std::to_string(now->shared_end - now->shared_start) + " of shared memory");
        return;
    }
    std::vector<Byte>& bytes = *now->bytes;
    const uint64_t interval = now->interval;
    const int me = current.thread;
    for (size_t i = at - now->shared_start; i < at + size - now->shared_start; ++i) {
        Byte& byte = bytes[i];
        const bool fresh = byte.written == interval;
        const bool both_atomic = atomic && byte.atomically;
        if ((!writes || atomic) && byte.written < now->first) {
            stop("shared memory that nothing wrote: byte " + std::to_string(i) + " is read");
            return;
        }
        if (fresh && byte.writer != me && !both_atomic) {
            stop("a race: byte " + std::to_string(i) + " of shared memory is " + (writes ? "written" : "read") +
                 ", and thread " + std::to_string(byte.writer) + " writes it with no barrier between");
            return;
        }
        if (writes && !atomic && byte.read == interval && byte.reader != me) {
            stop("a race: byte " + std::to_string(i) + " of shared memory is written, and " +
                 (byte.reader == kMany ? "other threads read" : "thread " + std::to_string(byte.reader) + " reads") +
                 " it with no barrier between");
            return;
        }
        if (writes && atomic && byte.read == interval && byte.reader != me) {
            stop("a race: byte " + std::to_string(i) + " of shared memory is counted up, and another thread reads it");
            return;
        }
        if (writes) {
            byte.atomically = atomic && (!fresh || byte.atomically);
            byte.writer = me;
            byte.written = interval;
        } else {
            byte.reader = byte.read == interval && byte.reader != me ? kMany : me;
            byte.read = interval;
        }
    }
}

bool of_another_block(const Origin& origin) {
    return origin.block >= first_of_launch && origin.block != now->number;
}
bool ordered(const Origin& origin) {
    return blocks[origin.block - first_of_launch]->ordered[origin.thread] >= origin.interval;
}

// What is wrong with touching a byte of GPU memory, or null.
const char* complaint(const Origin& origin, Kind kind) {
    if (kind != Kind::write && origin.block == 0) return "memory that nothing wrote";
    if (kind == Kind::constant && origin.block >= first_of_launch) return "read-only data that this launch writes";
    if (origin.block == now->number && origin.interval == now->interval && origin.thread != current.thread) {
        return "a race: another thread of the block writes it, with no barrier between";
    }
    if (!of_another_block(origin)) return nullptr;
    if (kind == Kind::read) return "what another block writes, read as if it could not change";
    if (kind != Kind::atomic && !ordered(origin)) {
        return "what another block writes, with no fence, barrier and atomic between";
    }
    return nullptr;
}

// An atomic by which other blocks can know of what was fenced before it.
void order_writes() {
    Block& block = *now;
    const int me = current.thread;
    // A fence also covers what others wrote before a barrier that the fencing thread has passed.
    const uint64_t passed = block.fenced[me] == 0 ? 0 : block.fenced[me] - 1;
    for (int t = 0; t < current.threads; ++t) {
        const uint64_t own = block.fenced[t] < block.interval || t == me ? block.fenced[t] : 0;
        block.ordered[t] = std::max({block.ordered[t], own, passed});
    }
}

void check(const void* where, size_t size, Kind kind) {
    if (!watching) return;
    const bool writes = kind == Kind::write || kind == Kind::atomic;
    const auto at = reinterpret_cast<uintptr_t>(where);
    if (at >= stack_start && at < stack_end) return;
    if (at >= now->pages_start && at < now->pages_end) {
        check_shared(at, size, kind);
        return;
    }
    Extent* extent = extent_at(at);
    if (extent == nullptr) return;  // of the host
    if (at < extent->start || at + size > extent->start + extent->bytes) {
        stop("an access outside of memory: it " + text(at, size, writes ? "writes" : "reads", extent->start) +
             "an allocation of " + std::to_string(extent->bytes));
        return;
    }
    Origin* origins = extent->origins.data() + (at - extent->start);
    for (size_t i = 0; i < size; ++i) {
        const char* wrong = complaint(origins[i], kind);
        if (wrong != nullptr) {
            stop(std::string(wrong) + ": it " + text(at, size, writes ? "writes" : "reads", extent->start) + "an allocation of " +
                 std::to_string(extent->bytes));
            return;
        }
    }
    if (kind == Kind::write) std::fill_n(origins, size, Origin{now->interval, now->number, current.thread});
    if (kind == Kind::atomic) {
        std::fill_n(origins, size, Origin{0, now->number, 0});
        order_writes();
    }
}

}  // namespace

void watch_block(int slot, const unsigned char* shared, size_t size, const unsigned char* pages, size_t page_bytes) {
    if (slots.size() <= static_cast<size_t>(slot)) {
        slots.resize(slot + 1);
        bytes_of_slot.resize(slot + 1);
    }
    auto& bytes = bytes_of_slot[slot];
    if (bytes == nullptr) bytes = std::make_unique<std::vector<Byte>>();
    if (bytes->size() < size) bytes->resize(size);
    blocks.push_back(std::make_unique<Block>());
    now = slots[slot] = blocks.back().get();
    now->number = ++block_number;
    now->first = now->interval = ++intervals;
    now->shared_start = reinterpret_cast<uintptr_t>(shared);
    now->shared_end = now->shared_start + size;
    now->pages_start = reinterpret_cast<uintptr_t>(pages);
    now->pages_end = now->pages_start + page_bytes;
    now->bytes = bytes.get();
    watching = true;
}
void switch_to_block(int slot) {
    if (watching) now = slots[slot];
}
void begin_launch() {
    first_of_launch = block_number + 1;
    blocks.clear();
}
void pass_barrier() {
    if (watching) now->interval = ++intervals;
}
void unwatch() { watching = false; }
void forget_extents() { std::fill(std::begin(known), std::end(known), Found{}); }
void access_atomically(const void* where, size_t size) { check(where, size, Kind::atomic); }
void read_past_the_first_cache(const void* where, size_t size) { check(where, size, Kind::fresh); }
void read_what_no_one_writes(const void* where, size_t size) { check(where, size, Kind::constant); }
void pass_fence() {
    if (watching) now->fenced[current.thread] = now->interval;
}

}  // namespace machine

// The names that compilers call. Kernels have no virtual functions and use no std::atomic, so the rest is not needed.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// Clang's names for what its optimiser makes of loops.
void* __tsan_memset(void* to, int value, size_t size) {
    machine::check(to, size, machine::Kind::write);
    return std::memset(to, value, size);
}
void* __tsan_memcpy(void* to, const void* from, size_t size) {
    machine::check(from, size, machine::Kind::read);
    machine::check(to, size, machine::Kind::write);
    return std::memcpy(to, from, size);
}
void __tsan_read_range(void* at, size_t size) { machine::check(at, size, machine::Kind::read); }
void __tsan_write_range(void* at, size_t size) { machine::check(at, size, machine::Kind::write); }

#define CIR_ACCESS(size)                                                            \
    void __tsan_read##size(void* at) { machine::check(at, size, machine::Kind::read); }            \
    void __tsan_write##size(void* at) { machine::check(at, size, machine::Kind::write); }            \
    void __tsan_unaligned_read##size(void* at) { machine::check(at, size, machine::Kind::read); }  \
    void __tsan_unaligned_write##size(void* at) { machine::check(at, size, machine::Kind::write); }
CIR_ACCESS(1)
CIR_ACCESS(2)
CIR_ACCESS(4)
CIR_ACCESS(8)
CIR_ACCESS(16)
}
