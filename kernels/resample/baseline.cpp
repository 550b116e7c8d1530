// No instruction set by name: what the compiler makes of it.
#include <algorithm>
#include <cstring>

#include "resample.h"

namespace cir {
namespace {

struct Sums {
    int32_t v[16];

    explicit Sums(int32_t start) { std::fill_n(v, 16, start); }

    void add(const uint8_t* from, const int32_t* weights) {
        for (int i = 0; i < 16; ++i) v[i] += from[i] * weights[i];
    }
    void add(const uint8_t* from, int32_t weight) {
        for (int i = 0; i < 16; ++i) v[i] += from[i] * weight;
    }
    static uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFraction, 0, 255)); }
    void store_bytes(uint8_t* out) const {
        for (int i = 0; i < 16; ++i) out[i] = rounded(v[i]);
    }
    void store_pixel(uint8_t* out) const {
        for (int i = 0; i < 4; ++i) out[i] = rounded(v[i] + v[i + 4] + v[i + 8] + v[i + 12] + kHalf);
    }
};

void widen(const uint8_t* rgb, size_t pixels, uint8_t* out) {
    for (size_t i = 0; i < pixels; ++i) std::memcpy(out + 4 * i, rgb + 3 * i, 3);
}

}  // namespace
}  // namespace cir

#include "passes.h"

namespace cir {

const Passes kPassesBaseline = {"baseline", widen, along_row, down_columns};

}  // namespace cir
