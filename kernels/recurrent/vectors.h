// Vectors of CIR_LANES floats, in the form that GCC and Clang have for every instruction set, and the two functions of a gate.
// Included by one source for each instruction set, which says how many lanes and registers it has. Such a source uses nothing of
// the standard library that could be compiled into a function of its own: the linker keeps one copy for all sources, and it might be
// one that other machines cannot run.
#pragma once

#include <cstdint>
#include <cstring>

namespace cir {
namespace {

constexpr int kLanes = CIR_LANES;

typedef float V __attribute__((vector_size(4 * CIR_LANES)));
typedef int32_t I __attribute__((vector_size(4 * CIR_LANES)));

inline V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

inline V every(float x) { return x - V{}; }

// e^x within 2 units in the last place; below -87 it is e^-87 and above 88 e^88. The polynomial is that of Cephes (expf).
inline V exponential(V x) {
    const V low = every(-87.f), high = every(88.f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const V shift = every(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, in the last bits
    const V turned = x * 1.44269504088896341f + shift;
    const V whole = turned - shift;
    x -= whole * 0.693359375f;
    x += whole * 2.12194440e-4f;
    V p = every(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * (x * x) + (x + 1.f);
    I bits;
    std::memcpy(&bits, &turned, sizeof bits);
    bits = (bits - 0x4b400000 + 127) << 23;
    V power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

inline V logistic(V x) { return 1.f / (1.f + exponential(-x)); }

// Relative to the result where that is small: states may be small throughout before they are made unit length. The
// polynomial is that of Cephes (tanhf).
inline V hyperbolic_tangent(V x) {
    const V size = x < 0.f ? -x : x;
    const V far = 1.f - 2.f / (exponential(size + size) + 1.f);
    const V square = x * x;
    V p = every(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const V near = p * square * x + x;
    return size < 0.625f ? near : (x < 0.f ? -far : far);
}

}  // namespace
}  // namespace cir
