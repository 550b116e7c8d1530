// No instruction set by name: what the compiler makes of it.
#include <algorithm>
#include <cstring>

#include "resample.h"

namespace cir {
namespace {

struct Sums {
    int32_t v[16];

    Sums() { std::fill_n(v, 16, kHalf); }

    void add(const uint8_t* from, int32_t weight) {
        for (int i = 0; i < 16; ++i) v[i] += from[i] * weight;
    }
    void store(uint8_t* out) const {
        for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>(std::clamp(v[i] >> kFraction, 0, 255));
    }
    void store_apart(uint8_t* const* out, size_t at) const {
        uint8_t pixels[16];
        store(pixels);
        for (int row = 0; row < kWoven; ++row) std::memcpy(out[row] + at, pixels + 4 * row, 4);
    }
};

template <size_t kBytes>
void weave_pixels(const uint8_t* const* rows, size_t pixels, uint8_t* out) {
    for (size_t i = 0; i < pixels; ++i) {
        for (int row = 0; row < kWoven; ++row) std::memcpy(out + 16 * i + 4 * row, rows[row] + kBytes * i, kBytes);
    }
}

void weave(const uint8_t* const* rows, int pixel_bytes, size_t pixels, uint8_t* out) {
    pixel_bytes == 4 ? weave_pixels<4>(rows, pixels, out) : weave_pixels<3>(rows, pixels, out);
}

}  // namespace
}  // namespace cir

#include "passes.h"

namespace cir {

const Passes kPassesBaseline = {"baseline", weave, along_rows, down_columns};

}  // namespace cir
