// The seam of kernels/recurrent/cuda/cooperation.cuh for a host compiler; see machine.h. Same names, same meaning.
#pragma once

#include <device.cuh>

namespace device {

CIR_DEVICE void release() { CIR_CHECK(pass_fence()); }

CIR_UNWATCHED CIR_DEVICE bool wait_for(const uint32_t* count, uint32_t wanted, int line = __builtin_LINE()) {
    CIR_CHECK(read_past_the_first_cache(count, sizeof *count));
    machine::wait_for_count(line, count, wanted);
    return true;
}

CIR_UNWATCHED CIR_DEVICE float load_fresh(const float* where) {
    CIR_CHECK(read_past_the_first_cache(where, sizeof *where));
    return *where;
}
CIR_DEVICE int32_t load(const int32_t* where) {
    CIR_CHECK(read_what_no_one_writes(where, sizeof *where));
    return *where;
}
CIR_DEVICE Vector16 load16_shared(const void* where) {
    if (reinterpret_cast<uintptr_t>(where) % 16 != 0) __builtin_trap();  // a GPU refuses as well
    return *static_cast<const Vector16*>(where);
}

CIR_DEVICE float exponential(float v) { return std::exp(v); }
CIR_DEVICE float hyperbolic_tangent(float v) { return std::tanh(v); }

}  // namespace device
