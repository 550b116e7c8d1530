// The two passes over `Sums`, 16 running sums of bytes times weights, which each instruction set brings along.
#pragma once

#include "resample.h"

namespace cir {
namespace {

void along_row(const uint8_t* row, const int32_t* first, const int32_t* weights, size_t groups, size_t count,
               uint8_t* out) {
    for (size_t i = 0; i < count; ++i) {
        const uint8_t* from = row + 4 * static_cast<size_t>(first[i]);
        Sums sums(0);
        for (size_t g = 0; g < groups; ++g, weights += 16) sums.add(from + 16 * g, weights);
        sums.store_pixel(out + 4 * i);
    }
}

void down_columns(const uint8_t* const* rows, const int32_t* weights, size_t taps, size_t bytes, uint8_t* out) {
    for (size_t i = 0; i < bytes; i += 16) {
        Sums sums(kHalf);
        for (size_t t = 0; t < taps; ++t) sums.add(rows[t] + i, weights[t]);
        sums.store_bytes(out + i);
    }
}

}  // namespace
}  // namespace cir
