// The seam of kernels/score/cuda/device.cuh for a host compiler; see machine.h. Same names, same meaning.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

#define CIR_KERNEL(name, Arguments, threads, blocks)                                                         \
    static void name##_body(const Arguments& args);                                                          \
    static void name##_entry(const void* args) { name##_body(*static_cast<const Arguments*>(args)); }        \
    static machine::Kernel name##_kernel(#name, sizeof(Arguments), static_cast<int>(threads), name##_entry); \
    static void name##_body(const Arguments& args)

#define CIR_DEVICE inline
#define CIR_DEVICE_ONCE inline

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__  // as GCC names it
#endif
#endif
#ifdef __SANITIZE_THREAD__
// For accesses that say what they are, and for the machine's own; nothing that returns a structure.
#define CIR_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#define CIR_CHECK(what) machine::what
#else
#define CIR_UNWATCHED
#define CIR_CHECK(what)
#endif

namespace device {

struct alignas(16) Vector16 {
    uint32_t word[4];
};
struct alignas(8) Vector8 {
    uint32_t word[2];
};

CIR_DEVICE int thread() { return machine::current.thread; }
CIR_DEVICE int threads() { return machine::current.threads; }
CIR_DEVICE int lane() { return machine::current.thread % 32; }
CIR_DEVICE int warp() { return machine::current.thread / 32; }
CIR_DEVICE uint32_t block_x() { return machine::current.block_x; }
CIR_DEVICE uint32_t block_y() { return machine::current.block_y; }
CIR_DEVICE uint32_t grid_x() { return machine::current.grid_x; }
CIR_DEVICE unsigned char* shared() { return machine::current.shared; }

CIR_DEVICE void barrier(int line = __builtin_LINE()) { machine::meet_block(line, false); }
CIR_DEVICE bool barrier_or(bool mine, int line = __builtin_LINE()) { return machine::meet_block(line, mine); }
CIR_DEVICE void fence() { CIR_CHECK(pass_fence()); }

template <class V>
struct Exchange {
    V value, result;
    int source;
};
template <class V>
void exchange(void** lanes) {
    for (int i = 0; i < 32; ++i) {
        auto& to = *static_cast<Exchange<V>*>(lanes[i]);
        to.result = static_cast<Exchange<V>*>(lanes[to.source])->value;
    }
}
template <class V>
V from_lane(V value, int source, int line = __builtin_LINE()) {
    Exchange<V> mine{value, value, source & 31};
    machine::meet_warp(line, &mine, exchange<V>);
    return mine.result;
}
template <class V>
V from_lane_xor(V value, int mask, int line = __builtin_LINE()) {
    return from_lane(value, lane() ^ mask, line);
}
template <class V>
V from_lane_below(V value, int distance, int line = __builtin_LINE()) {
    return from_lane(value, lane() >= distance ? lane() - distance : lane(), line);
}
struct Vote {
    bool mine;
    uint32_t result;
};
CIR_DEVICE void count_votes(void** lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(static_cast<Vote*>(lanes[i])->mine) << i;
    for (int i = 0; i < 32; ++i) static_cast<Vote*>(lanes[i])->result = votes;
}
CIR_DEVICE uint32_t ballot(bool mine, int line = __builtin_LINE()) {
    Vote vote{mine, 0};
    machine::meet_warp(line, &vote, count_votes);
    return vote.result;
}

CIR_UNWATCHED CIR_DEVICE uint32_t add(uint32_t* where, uint32_t amount) {
    CIR_CHECK(access_atomically(where, sizeof *where));
    const uint32_t before = *where;
    *where = before + amount;
    return before;
}
CIR_UNWATCHED CIR_DEVICE void raise(uint32_t* where, uint32_t value) {
    CIR_CHECK(access_atomically(where, sizeof *where));
    *where = *where < value ? value : *where;
}
CIR_UNWATCHED CIR_DEVICE void raise(uint64_t* where, uint64_t value) {
    CIR_CHECK(access_atomically(where, sizeof *where));
    *where = *where < value ? value : *where;
}
CIR_UNWATCHED CIR_DEVICE uint64_t load_fresh(const uint64_t* where) {
    CIR_CHECK(read_past_the_first_cache(where, sizeof *where));
    return *where;
}
CIR_UNWATCHED CIR_DEVICE uint32_t load_fresh(const uint32_t* where) {
    CIR_CHECK(read_past_the_first_cache(where, sizeof *where));
    return *where;
}
CIR_DEVICE Vector16 load16(const void* where) {
    if (reinterpret_cast<uintptr_t>(where) % 16 != 0) __builtin_trap();  // a GPU refuses as well
    CIR_CHECK(read_what_no_one_writes(where, 16));
    return *static_cast<const Vector16*>(where);
}
CIR_DEVICE Vector16 load16_and_ahead(const void* where) { return load16(where); }
CIR_DEVICE void ask_for(const void* where) {
    CIR_CHECK(read_what_no_one_writes(where, 1));
    (void)where;
}
CIR_DEVICE float load(const float* where) {
    CIR_CHECK(read_what_no_one_writes(where, sizeof *where));
    return *where;
}
CIR_DEVICE uint8_t load(const uint8_t* where) {
    CIR_CHECK(read_what_no_one_writes(where, sizeof *where));
    return *where;
}
CIR_DEVICE uint16_t load(const uint16_t* where) {
    CIR_CHECK(read_what_no_one_writes(where, sizeof *where));
    return *where;
}

CIR_DEVICE double product(double a, double b) { return a * b; }
CIR_DEVICE double sum(double a, double b) { return a + b; }

constexpr bool kConvertsSlowly = true;
CIR_DEVICE double widened(float v) { return v; }
CIR_DEVICE bool is_ordinary(float v) { return v == 0 || std::isnormal(v); }
CIR_DEVICE double widened_ordinary(float v) {
    uint32_t word;
    std::memcpy(&word, &v, 4);
    const uint32_t magnitude = word & 0x7fffffffu, high = (magnitude >> 3) + (magnitude == 0 ? 0 : 0x38000000u);
    const uint64_t wide = static_cast<uint64_t>((word & 0x80000000u) | high) << 32 | word << 29;
    double out;
    std::memcpy(&out, &wide, 8);
    return out;
}

template <class V>
CIR_DEVICE uint32_t less_one_below(uint32_t count, V v, V least) {
    return count - (v < least);
}

CIR_DEVICE int leading_zeros(uint64_t v) { return v == 0 ? 64 : __builtin_clzll(v); }
CIR_DEVICE int trailing_zeros(uint32_t v) { return v == 0 ? -1 : __builtin_ctz(v); }
CIR_DEVICE uint32_t bits(float v) {
    uint32_t word;
    std::memcpy(&word, &v, 4);
    return word;
}
CIR_DEVICE float from_bits(uint32_t v) {
    float value;
    std::memcpy(&value, &v, 4);
    return value;
}
CIR_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = (static_cast<uint64_t>(b) << 32) | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return out;
}
CIR_DEVICE float reciprocal_root(float v) { return 1.0f / std::sqrt(v); }
CIR_DEVICE float scaled(float v, int exponent) { return std::ldexp(v, exponent); }
CIR_DEVICE int exponent_of(float v) { return std::ilogb(v); }

CIR_DEVICE float half_value(uint32_t word) {
    const auto narrow = static_cast<uint16_t>(word);
    _Float16 half;
    std::memcpy(&half, &narrow, 2);
    return static_cast<float>(half);
}
CIR_DEVICE uint32_t half_word(float v) {
    const auto half = static_cast<_Float16>(v);
    uint16_t word;
    std::memcpy(&word, &half, 2);
    return word;
}
CIR_DEVICE uint32_t half2_from(float low, float high) { return half_word(low) | (half_word(high) << 16); }
CIR_DEVICE float half2_low(uint32_t v) { return half_value(v & 0xffffu); }
CIR_DEVICE float half2_high(uint32_t v) { return half_value(v >> 16); }
// float32 holds products and differences of float16 exactly enough that rounding twice rounds once.
CIR_DEVICE uint32_t half2_multiply(uint32_t a, uint32_t b) {
    return half2_from(half2_low(a) * half2_low(b), half2_high(a) * half2_high(b));
}
CIR_DEVICE uint32_t half2_subtract(uint32_t a, uint32_t b) {
    return half2_from(half2_low(a) - half2_low(b), half2_high(a) - half2_high(b));
}

struct Tiles {
    float* c;
    const uint32_t *a, *b;
};
CIR_UNWATCHED CIR_DEVICE void multiply_lanes(void** lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto& from = *static_cast<Tiles*>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
            a[row][column] = half2_low(from.a[i]);
            a[row][column + 1] = half2_high(from.a[i]);
        }
        for (int i = 0; i < 2; ++i) {
            b[2 * t + 8 * i][g] = half2_low(from.b[i]);
            b[2 * t + 8 * i + 1][g] = half2_high(from.b[i]);
        }
    }
    float c[16][8] = {};
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* to = static_cast<Tiles*>(lanes[lane])->c;
        for (int i = 0; i < 4; ++i) to[i] += c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
}
CIR_DEVICE void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line = __builtin_LINE()) {
    Tiles tiles{c, a, b};
    machine::meet_warp(line, &tiles, multiply_lanes);
}

}  // namespace device

using std::fabs;
using std::rint;
using std::sqrt;
