// Allocations of the GPU and page-locked memory. Both lie between guard pages of the machine.
#include <cstring>

#include <unistd.h>

#include "state.h"

extern "C" {
void* machine_allocate(size_t bytes);
void machine_free(void* at);
void machine_written(void* at, size_t bytes);
}

namespace driver {

Memory* memory_at(uintptr_t start, size_t bytes) {
    auto next = state().memory.upper_bound(start);
    if (next == state().memory.begin()) return nullptr;
    Memory& found = std::prev(next)->second;
    return start + bytes >= start && start + bytes <= found.start + found.bytes ? &found : nullptr;
}

bool reachable(uintptr_t start, size_t bytes, Context* context) {
    const Memory* found = memory_at(start, bytes);
    return found != nullptr && found->context == context;
}

void note_written(uintptr_t start, size_t bytes) { machine_written(reinterpret_cast<void*>(start), bytes); }

size_t used_bytes() {
    size_t used = 0;
    for (const auto& [start, memory] : state().memory) {
        if (memory.kind == Kind::device || (gpu().integrated && memory.kind == Kind::pinned)) used += memory.bytes;
    }
    return used;
}

static void release(const Memory& memory) {
    if (memory.kind != Kind::registered) machine_free(reinterpret_cast<void*>(memory.start));
}

void forget_memory_of(Context* context) {
    size_t blocks = 0, bytes = 0;
    for (auto it = state().memory.begin(); it != state().memory.end();) {
        if (it->second.context != context) {
            ++it;
            continue;
        }
        ++blocks;
        bytes += it->second.bytes;
        release(it->second);
        it = state().memory.erase(it);
    }
    if (blocks > 0) note_left(std::to_string(blocks) + " blocks of memory, " + std::to_string(bytes) + " bytes");
}

static Status allocate(Context* context, Kind kind, size_t bytes, unsigned flags, uintptr_t* start) {
    if (bytes == 0) return kInvalidValue;
    if (kind == Kind::device || gpu().integrated) {
        if (bytes > gpu().memory || used_bytes() > gpu().memory - bytes) return kOutOfMemory;
    }
    *start = reinterpret_cast<uintptr_t>(machine_allocate(bytes));
    state().memory[*start] = {kind, *start, bytes, context, flags};
    if (kind == Kind::pinned) note_written(*start, bytes);  // by the host, unseen
    return kSuccess;
}

// Nothing may use what is freed: a driver waits for all work here, or does not, and then the work writes anywhere.
static Status free_memory(Kind kind, uintptr_t start, Context* context, Status unknown) {
    const auto found = state().memory.find(start);
    if (found == state().memory.end() || found->second.kind != kind) return unknown;
    if (found->second.context != context) return kInvalidContext;
    const std::string user = user_of(start, found->second.bytes);
    if (!user.empty()) complain("memory is freed that work under way uses: " + user);
    release(found->second);
    state().memory.erase(found);
    return kSuccess;
}

}  // namespace driver

using namespace driver;

CIR_API Status cuMemGetInfo_v2(size_t* free, size_t* total) {
    return in_context("cuMemGetInfo", [&](Context*) {
        *total = gpu().memory;
        *free = gpu().memory - used_bytes();
        return kSuccess;
    });
}

CIR_API Status cuMemAlloc_v2(Address* address, size_t bytes) {
    return in_context("cuMemAlloc", [&](Context* context) {
        const Status status = unsafe_call("cuMemAlloc");
        if (status != kSuccess) return status;
        uintptr_t start = 0;
        const Status answer = allocate(context, Kind::device, bytes, 0, &start);
        if (answer == kSuccess) *address = start;
        return answer;
    });
}
CIR_API Status cuMemFree_v2(Address address) {
    return in_context("cuMemFree", [&](Context* context) {
        if (address == 0) return kSuccess;
        const Status status = unsafe_call("cuMemFree");
        return status != kSuccess ? status : free_memory(Kind::device, address, context, kInvalidValue);
    });
}
CIR_API Status cuMemGetAddressRange_v2(Address* base, size_t* bytes, Address address) {
    return in_context("cuMemGetAddressRange", [&](Context*) {
        const Memory* found = memory_at(address, 1);
        if (found == nullptr) return kNotFound;
        *base = found->start;
        *bytes = found->bytes;
        return kSuccess;
    });
}

CIR_API Status cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    return in_context("cuMemHostAlloc", [&](Context* context) {
        if (flags > 7) return kInvalidValue;
        const Status status = unsafe_call("cuMemHostAlloc");
        if (status != kSuccess) return status;
        uintptr_t start = 0;
        const Status answer = allocate(context, Kind::pinned, bytes, flags, &start);
        if (answer == kSuccess) *memory = reinterpret_cast<void*>(start);
        return answer;
    });
}
CIR_API Status cuMemAllocHost_v2(void** memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }
CIR_API Status cuMemFreeHost(void* memory) {
    return in_context("cuMemFreeHost", [&](Context* context) {
        const Status status = unsafe_call("cuMemFreeHost");
        if (status != kSuccess) return status;
        return free_memory(Kind::pinned, reinterpret_cast<uintptr_t>(memory), context, kInvalidValue);
    });
}
CIR_API Status cuMemHostGetFlags(unsigned* flags, void* memory) {
    return in_context("cuMemHostGetFlags", [&](Context*) {
        const Memory* found = memory_at(reinterpret_cast<uintptr_t>(memory), 1);
        if (found == nullptr || found->kind == Kind::device) return kInvalidValue;
        *flags = found->flags;
        return kSuccess;
    });
}
CIR_API Status cuMemHostGetDevicePointer_v2(Address* address, void* memory, unsigned flags) {
    return in_context("cuMemHostGetDevicePointer", [&](Context*) {
        const auto start = reinterpret_cast<uintptr_t>(memory);
        const Memory* found = memory_at(start, 1);
        if (flags != 0 || found == nullptr || found->kind == Kind::device) return kInvalidValue;
        *address = start;
        return kSuccess;
    });
}

// Whether any page of a range is page-locked already: a driver locks whole pages.
static bool locked(uintptr_t start, size_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = start / page, last = (start + bytes - 1) / page;
    for (const auto& [at, memory] : state().memory) {
        if (memory.kind == Kind::device) continue;
        if (first <= (memory.start + memory.bytes - 1) / page && last >= memory.start / page) return true;
    }
    return false;
}

CIR_API Status cuMemHostRegister_v2(void* memory, size_t bytes, unsigned flags) {
    return in_context("cuMemHostRegister", [&](Context* context) {
        const auto start = reinterpret_cast<uintptr_t>(memory);
        if (memory == nullptr || bytes == 0 || flags > 15) return kInvalidValue;
        if ((flags & kRegisterIoMemory) != 0) return kNotSupported;
        if ((flags & kRegisterReadOnly) != 0 && !gpu().registers_read_only) return kNotSupported;
        const Status status = unsafe_call("cuMemHostRegister");
        if (status != kSuccess) return status;
        if (locked(start, bytes)) return kHostMemoryAlreadyRegistered;
        state().memory[start] = {Kind::registered, start, bytes, context, flags};
        return kSuccess;
    });
}
CIR_API Status cuMemHostUnregister(void* memory) {
    return in_context("cuMemHostUnregister", [&](Context* context) {
        const Status status = unsafe_call("cuMemHostUnregister");
        if (status != kSuccess) return status;
        return free_memory(Kind::registered, reinterpret_cast<uintptr_t>(memory), context, kHostMemoryNotRegistered);
    });
}
