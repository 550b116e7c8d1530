// The seam between the kernels and the machine: everything that is CUDA and not C++ is named here.
//
// nvcc finds this file. The test suite compiles the same kernels with a host compiler and another <device.cuh>
// in front of the include path, which runs blocks as fibres and checks what a GPU would not report.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

// One argument structure a kernel, passed by value; `threads` and `blocks` bound the registers it may use.
#define CIR_KERNEL(name, Arguments, threads, blocks)                                        \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments args)

#define CIR_DEVICE __device__ __forceinline__
// Long and seldom: one copy, so that the hot path stays in the instruction cache and in its registers.
#define CIR_DEVICE_ONCE __device__ __noinline__

namespace device {

struct alignas(16) Vector16 {
    uint32_t word[4];
};

struct alignas(8) Vector8 {
    uint32_t word[2];
};

CIR_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
CIR_DEVICE int threads() { return static_cast<int>(blockDim.x); }
CIR_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31u); }
CIR_DEVICE int warp() { return static_cast<int>(threadIdx.x >> 5); }
CIR_DEVICE uint32_t block_x() { return blockIdx.x; }
CIR_DEVICE uint32_t block_y() { return blockIdx.y; }
CIR_DEVICE uint32_t grid_x() { return gridDim.x; }

// All shared memory is dynamic: the launcher asks for exactly what a launch needs.
CIR_DEVICE unsigned char* shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

CIR_DEVICE void barrier() { __syncthreads(); }
CIR_DEVICE bool barrier_or(bool mine) { return __syncthreads_or(mine) != 0; }
CIR_DEVICE void fence() { __threadfence(); }

template <class V>
CIR_DEVICE V from_lane(V value, int source) {
    return __shfl_sync(0xffffffffu, value, source);
}
template <class V>
CIR_DEVICE V from_lane_xor(V value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V>
CIR_DEVICE V from_lane_below(V value, int distance) {
    return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(distance));
}
CIR_DEVICE uint32_t ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }

CIR_DEVICE uint32_t add(uint32_t* where, uint32_t amount) { return atomicAdd(where, amount); }
CIR_DEVICE void raise(uint32_t* where, uint32_t value) { atomicMax(where, value); }
CIR_DEVICE void raise(uint64_t* where, uint64_t value) {
    atomicMax(reinterpret_cast<unsigned long long*>(where), static_cast<unsigned long long>(value));
}

// What other blocks write during this launch is read past the first-level cache.
CIR_DEVICE uint64_t load_fresh(const uint64_t* where) {
    return __ldcg(reinterpret_cast<const unsigned long long*>(where));
}
CIR_DEVICE uint32_t load_fresh(const uint32_t* where) { return __ldcg(where); }

// 16 bytes that no one writes during this launch.
CIR_DEVICE Vector16 load16(const void* where) {
    const uint4 v = __ldg(static_cast<const uint4*>(where));
    return {{v.x, v.y, v.z, v.w}};
}
// The same where what follows will be wanted soon: memory is asked for more of it at once, as much as that GPU can be.
CIR_DEVICE Vector16 load16_and_ahead(const void* where) {
    Vector16 v;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("ld.global.nc.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3]) : "l"(where));
#else
    asm("ld.global.nc.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3]) : "l"(where));
#endif
    return v;
}
CIR_DEVICE float load(const float* where) { return __ldg(where); }
CIR_DEVICE uint8_t load(const uint8_t* where) { return __ldg(where); }
CIR_DEVICE uint16_t load(const uint16_t* where) { return __ldg(where); }

// Begins to bring the 32 bytes that hold this one; nothing waits for them.
CIR_DEVICE void ask_for(const void* where) { asm volatile("prefetch.global.L1 [%0];" ::"l"(where)); }

// One rounding each, never two made one: exact scores are the same bits everywhere.
CIR_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
CIR_DEVICE double sum(double a, double b) { return __dadd_rn(a, b); }

// A float32 as float64. The unit for conversions goes at the rate of float64: fast on a data centre's GPU, two a clock
// on most others. There, what is no ordinary value apart, integers do it in nine instructions.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800  // what sm_80, sm_90 and sm_100 are compiled from
constexpr bool kConvertsSlowly = false;
#else
constexpr bool kConvertsSlowly = true;
#endif
CIR_DEVICE double widened(float v) { return static_cast<double>(v); }
CIR_DEVICE bool is_ordinary(float v) {  // 0, or finite and not denormal
    const uint32_t magnitude = __float_as_uint(v) & 0x7fffffffu;
    return magnitude == 0 || magnitude - 0x00800000u < 0x7f000000u;
}
CIR_DEVICE double widened_ordinary(float v) {
    const uint32_t word = __float_as_uint(v), magnitude = word & 0x7fffffffu;
    const uint32_t high = (magnitude >> 3) + (magnitude == 0 ? 0 : 0x38000000u);
    return __hiloint2double(static_cast<int>((word & 0x80000000u) | high), static_cast<int>(word << 29));
}

// count - (v < least): two instructions by the borrow, or three, where a comparison and a sum that follows it are three and four.
CIR_DEVICE uint32_t less_one_below(uint32_t count, uint32_t v, uint32_t least) {
    asm("{\n\t.reg .u32 t;\n\tsub.cc.u32 t, %1, %2;\n\tsubc.u32 %0, %0, 0;\n\t}" : "+r"(count) : "r"(v), "r"(least));
    return count;
}
CIR_DEVICE uint32_t less_one_below(uint32_t count, uint64_t v, uint64_t least) {
    asm("{\n\t.reg .u64 t;\n\tsub.cc.u64 t, %1, %2;\n\tsubc.u32 %0, %0, 0;\n\t}" : "+r"(count) : "l"(v), "l"(least));
    return count;
}

CIR_DEVICE int leading_zeros(uint64_t v) { return __clzll(static_cast<long long>(v)); }
CIR_DEVICE int trailing_zeros(uint32_t v) { return __ffs(static_cast<int>(v)) - 1; }
CIR_DEVICE uint32_t bits(float v) { return __float_as_uint(v); }
CIR_DEVICE float from_bits(uint32_t v) { return __uint_as_float(v); }
CIR_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
CIR_DEVICE float reciprocal_root(float v) { return rsqrtf(v); }
// v * 2^exponent
CIR_DEVICE float scaled(float v, int exponent) { return ldexpf(v, exponent); }
// floor(log2(v)) of a positive v
CIR_DEVICE int exponent_of(float v) { return ilogbf(v); }

// Two float16 values in one 32-bit word, the first in the low half.
// By address, which costs no instruction: of halves that are shifted together the compiler does not see that they
// are the word, and takes two instructions a pair, an eighth to a quarter of the hot loops.
CIR_DEVICE __half2 as_half2(uint32_t v) { return *reinterpret_cast<const __half2*>(&v); }
CIR_DEVICE uint32_t as_word(__half2 v) { return *reinterpret_cast<const uint32_t*>(&v); }
CIR_DEVICE uint32_t half2_from(float low, float high) { return as_word(__floats2half2_rn(low, high)); }
CIR_DEVICE float half2_low(uint32_t v) { return __low2float(as_half2(v)); }
CIR_DEVICE float half2_high(uint32_t v) { return __high2float(as_half2(v)); }
CIR_DEVICE uint32_t half2_multiply(uint32_t a, uint32_t b) { return as_word(__hmul2_rn(as_half2(a), as_half2(b))); }
CIR_DEVICE uint32_t half2_subtract(uint32_t a, uint32_t b) { return as_word(__hsub2_rn(as_half2(a), as_half2(b))); }

// c (16 x 8) += a (16 x 16) b (16 x 8), float16 in, float32 accumulated. With g = lane / 4 and t = lane % 4:
// a[0], a[2] hold columns 2t, 2t+1 and 2t+8, 2t+9 of row g, a[1], a[3] those of row g + 8; b[0], b[1] hold rows
// 2t, 2t+1 and 2t+8, 2t+9 of column g; c[0], c[1] are columns 2t, 2t+1 of row g and c[2], c[3] of row g + 8.
CIR_DEVICE void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

}  // namespace device
