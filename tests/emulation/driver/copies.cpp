// Copies and fills.
//
// What the host passes to an asynchronous copy is read at once where it is pageable memory, and only when the copy runs
// where it is page-locked; a copy into pageable memory is done when the call returns. Blocking copies go through the
// legacy stream.
#include <cstring>
#include <memory>

#include "state.h"

namespace driver {
namespace {

std::string described(const char* what, size_t bytes) { return std::string(what) + " of " + std::to_string(bytes) + " bytes"; }

// Both ends must still be there when it runs.
Status move(uintptr_t to, uintptr_t from, size_t bytes, Context* context) {
    if (!reachable(to, bytes, context) || !reachable(from, bytes, context)) return kIllegalAddress;
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    note_written(to, bytes);
    return kSuccess;
}

bool locked(uintptr_t start, size_t bytes) {
    const Memory* found = memory_at(start, bytes);
    return found != nullptr && found->kind != Kind::device;
}

Status between(Stream* stream, uintptr_t to, uintptr_t from, size_t bytes, Context* context) {
    const auto act = [=] { return move(to, from, bytes, context); };
    return enqueue(stream, described("a copy", bytes), act, {{to, bytes}, {from, bytes}});
}

// A graph would read or write pageable memory whenever it is launched, long after it may be gone.
Status refuse_in_capture(Stream* stream) {
    if (stream->capture == nullptr) return kSuccess;
    invalidate(*stream->capture, "a copy of pageable memory");
    return kCaptureUnsupported;
}

Status to_device(Stream* stream, Address to, const void* from, size_t bytes, Context* context) {
    const auto source = reinterpret_cast<uintptr_t>(from);
    if (!reachable(to, bytes, context)) return kInvalidValue;
    if (bytes == 0) return kSuccess;
    if (locked(source, bytes)) return between(stream, to, source, bytes, context);
    const Status status = refuse_in_capture(stream);
    if (status != kSuccess) return status;
    if (memory_at(source, 1) != nullptr) return kInvalidValue;  // part of it is not what the rest is
    const auto* first = static_cast<const unsigned char*>(from);
    const auto staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    const auto act = [=]() -> Status {
        if (!reachable(to, bytes, context)) return kIllegalAddress;
        std::memcpy(reinterpret_cast<void*>(to), staged->data(), bytes);
        note_written(to, bytes);
        return kSuccess;
    };
    return enqueue(stream, described("a copy to the GPU", bytes), act, {{to, bytes}});
}

Status to_host(Stream* stream, void* to, Address from, size_t bytes, Context* context) {
    const auto target = reinterpret_cast<uintptr_t>(to);
    if (!reachable(from, bytes, context)) return kInvalidValue;
    if (bytes == 0) return kSuccess;
    if (locked(target, bytes)) return between(stream, target, from, bytes, context);
    const Status status = refuse_in_capture(stream);
    if (status != kSuccess) return status;
    if (memory_at(target, 1) != nullptr) return kInvalidValue;
    const auto act = [=]() -> Status {
        if (!reachable(from, bytes, context)) return kIllegalAddress;
        std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
        return kSuccess;
    };
    const Status answer = enqueue(stream, described("a copy to the host", bytes), act, {{from, bytes}});
    return answer != kSuccess ? answer : wait_for(stream->last, context);
}

Status fill(Stream* stream, Address to, uint32_t value, size_t width, size_t count, Context* context) {
    const size_t bytes = width * count;
    if (to % width != 0 || !reachable(to, bytes, context)) return kInvalidValue;
    if (bytes == 0) return kSuccess;
    const auto act = [=]() -> Status {
        if (!reachable(to, bytes, context)) return kIllegalAddress;
        auto* at = reinterpret_cast<unsigned char*>(to);
        for (size_t i = 0; i < count; ++i) std::memcpy(at + i * width, &value, width);
        note_written(to, bytes);
        return kSuccess;
    };
    return enqueue(stream, described("a fill", bytes), act, {{to, bytes}});
}

Status on_stream(const char* name, void* handle, const std::function<Status(Stream*, Context*)>& act) {
    return in_context(name, [&](Context* context) {
        Stream* stream = stream_of(handle, context);
        return stream == nullptr ? kInvalidHandle : act(stream, context);
    });
}
Status blocking(const char* name, const std::function<Status(Stream*, Context*)>& act) {
    return in_context(name, [&](Context* context) {
        Stream* stream = legacy_of(context);
        Status status = unsafe_call(name);
        if (status == kSuccess) status = act(stream, context);
        return status != kSuccess ? status : wait_for(stream->last, context);
    });
}

}  // namespace
}  // namespace driver

using namespace driver;

CIR_API Status cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    return on_stream("cuMemcpyHtoDAsync", stream, [&](Stream* s, Context* c) { return to_device(s, to, from, bytes, c); });
}
CIR_API Status cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    return on_stream("cuMemcpyDtoHAsync", stream, [&](Stream* s, Context* c) { return to_host(s, to, from, bytes, c); });
}
CIR_API Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    return on_stream("cuMemcpyDtoDAsync", stream, [&](Stream* s, Context* c) -> Status {
        if (!reachable(to, bytes, c) || !reachable(from, bytes, c)) return kInvalidValue;
        return bytes == 0 ? kSuccess : between(s, to, from, bytes, c);
    });
}
CIR_API Status cuMemsetD8Async(Address to, unsigned char value, size_t count, void* stream) {
    return on_stream("cuMemsetD8Async", stream, [&](Stream* s, Context* c) { return fill(s, to, value, 1, count, c); });
}
CIR_API Status cuMemsetD16Async(Address to, unsigned short value, size_t count, void* stream) {
    return on_stream("cuMemsetD16Async", stream, [&](Stream* s, Context* c) { return fill(s, to, value, 2, count, c); });
}
CIR_API Status cuMemsetD32Async(Address to, unsigned value, size_t count, void* stream) {
    return on_stream("cuMemsetD32Async", stream, [&](Stream* s, Context* c) { return fill(s, to, value, 4, count, c); });
}

CIR_API Status cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    return blocking("cuMemcpyHtoD", [&](Stream* s, Context* c) { return to_device(s, to, from, bytes, c); });
}
CIR_API Status cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    return blocking("cuMemcpyDtoH", [&](Stream* s, Context* c) { return to_host(s, to, from, bytes, c); });
}
CIR_API Status cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    return blocking("cuMemcpyDtoD", [&](Stream* s, Context* c) -> Status {
        if (!reachable(to, bytes, c) || !reachable(from, bytes, c)) return kInvalidValue;
        return bytes == 0 ? kSuccess : between(s, to, from, bytes, c);
    });
}
CIR_API Status cuMemsetD8_v2(Address to, unsigned char value, size_t count) {
    return blocking("cuMemsetD8", [&](Stream* s, Context* c) { return fill(s, to, value, 1, count, c); });
}
CIR_API Status cuMemsetD16_v2(Address to, unsigned short value, size_t count) {
    return blocking("cuMemsetD16", [&](Stream* s, Context* c) { return fill(s, to, value, 2, count, c); });
}
CIR_API Status cuMemsetD32_v2(Address to, unsigned value, size_t count) {
    return blocking("cuMemsetD32", [&](Stream* s, Context* c) { return fill(s, to, value, 4, count, c); });
}
