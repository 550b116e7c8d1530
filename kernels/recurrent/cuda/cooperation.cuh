// What blocks that wait for one another need beyond kernels/score/cuda/device.cuh, and what a recurrent layer computes
// with. Like that file, this one is found by nvcc alone: the test suite puts another <cooperation.cuh> before it.
#pragma once

#include <device.cuh>

namespace device {

// What this thread has written, and what others wrote before a barrier that it has passed, comes before whatever it
// does next, for every thread of the GPU that can know of that.
CIR_DEVICE void release() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Waits until a count that other blocks raise has reached a value; what they released before, they have written. False
// after about ten seconds: those blocks are not on the GPU, or have died, and nobody shall wait for ever.
CIR_DEVICE bool wait_for(const uint32_t* count, uint32_t wanted) {
    constexpr uint32_t kPatience = 1u << 24;
#pragma unroll 1
    for (uint32_t polls = 0; polls < kPatience; ++polls) {
        uint32_t seen;
        asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
        if (seen >= wanted) return true;
    }
    return false;
}

// Past the first-level cache, which does not see what other blocks write.
CIR_DEVICE float load_fresh(const float* where) { return __ldcg(where); }
CIR_DEVICE int32_t load(const int32_t* where) { return __ldg(where); }
CIR_DEVICE Vector16 load16_shared(const void* where) { return *static_cast<const Vector16*>(where); }

CIR_DEVICE float exponential(float v) { return expf(v); }
CIR_DEVICE float hyperbolic_tangent(float v) { return tanhf(v); }

}  // namespace device
