// Both passes over `Sums`, 16 running sums of bytes times a weight, which each instruction set brings along.
#pragma once

#include "resample.h"

namespace cir {
namespace {

void along_rows(const uint8_t* woven, const int32_t* first, const int32_t* weights, size_t taps, size_t count,
                uint8_t* const* out) {
    for (size_t i = 0; i < count; ++i, weights += taps) {
        const uint8_t* from = woven + 16 * static_cast<size_t>(first[i]);
        Sums sums;
        for (size_t t = 0; t < taps; ++t) sums.add(from + 16 * t, weights[t]);
        sums.store_apart(out, 4 * i);
    }
}

void down_columns(const uint8_t* const* rows, const int32_t* weights, size_t taps, size_t bytes, uint8_t* out) {
    for (size_t i = 0; i < bytes; i += 16) {
        Sums sums;
        for (size_t t = 0; t < taps; ++t) sums.add(rows[t] + i, weights[t]);
        sums.store(out + i);
    }
}

}  // namespace
}  // namespace cir
