// Rows as the kernels of micro.h and micro_bounds.h walk over them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

#define CIR_UNROLL _Pragma("GCC unroll 16")

namespace cir {
namespace {

// Rows lie one after the other, but a tile reads several at once, a pattern that no hardware prefetcher follows well.
// So memory is asked for in its own order into the second-level cache, some way ahead, and the next tile's values in
// the order of use into the first: together they read at the speed of a plain sum (README.md).
constexpr int kFarBytes = 24 << 10;

// The rows of a tile and where to prefetch from; `count` rows are chosen by `index`, which repeats its last.
template <class T, int R>
struct TileRows {
    const T *row[R], *next[R];
    const char* far;

    TileRows(const T* base, ptrdiff_t length, const int32_t* index, int count, int first) {
        for (int r = 0; r < R; ++r) {
            const int at = first + r, ahead = first + R + r;
            row[r] = base + length * index[at < count ? at : count - 1];
            next[r] = base + length * index[ahead < count ? ahead : count - 1];
        }
        const bool dense = index[count - 1] - index[0] == count - 1;
        far = dense ? reinterpret_cast<const char*>(row[0]) + kFarBytes : nullptr;
    }

    // Called once for each W values of every row, in order.
    template <int W>
    void prefetch(int d) {
        constexpr int kBytes = R * W * static_cast<int>(sizeof(T));
        if (far && (kBytes >= 64 || d * R * static_cast<int>(sizeof(T)) % 64 == 0)) {
            CIR_UNROLL for (int line = 0; line < (kBytes > 64 ? kBytes / 64 : 1); ++line) {
                __builtin_prefetch(far, 0, 2);
                far += 64;
            }
        }
        if (W * sizeof(T) >= 64 || d * sizeof(T) % 64 == 0) {
            CIR_UNROLL for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + d);
        }
    }
};

constexpr int kGroup = 64;  // rows whose sums are kept before the division

}  // namespace
}  // namespace cir
