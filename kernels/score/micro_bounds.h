// Upper bounds of the scores of int8 rows in integers, as micro.h writes the rest.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "micro_rows.h"

namespace cir {
namespace {

// Sums over d of n * q and w * q^2 in 32-bit integers, S::kRows rows and P terms.
template <class S, int P, bool kWeighted>
inline void integer_sums(TileRows<int8_t, S::kRows> at, const int16_t* n, const int16_t* w, int dimension,
                         int padded, float* n_sums, float* w_sums, int stride) {
    constexpr int R = S::kRows, W = S::kIntegerWidth;
    using I = typename S::I;
    using V = typename S::V;
    I an[P][R], aw[P][R];
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        CIR_UNROLL for (int r = 0; r < R; ++r) {
            an[p][r] = S::izero();
            if (kWeighted) aw[p][r] = S::izero();
        }
    }
    auto step = [&](int d, const int8_t* const* values, int offset) {
        I t[R], t2[R];
        CIR_UNROLL for (int r = 0; r < R; ++r) {
            t[r] = S::load16(values[r] + offset);
            if (kWeighted) t2[r] = S::square16(t[r]);
        }
        CIR_UNROLL for (int p = 0; p < P; ++p) {
            const I nv = S::iload(n + p * padded + d);
            CIR_UNROLL for (int r = 0; r < R; ++r) an[p][r] = S::madd(an[p][r], t[r], nv);
            if (kWeighted) {
                const I wv = S::iload(w + p * padded + d);
                CIR_UNROLL for (int r = 0; r < R; ++r) aw[p][r] = S::madd(aw[p][r], t2[r], wv);
            }
        }
    };
    const int whole = dimension - dimension % W;
    for (int d = 0; d < whole; d += W) {
        at.template prefetch<W>(d);
        step(d, at.row, d);
    }
    if (whole < dimension) {
        int8_t tail[R][W] = {};
        const int8_t* padded_rows[R];
        for (int r = 0; r < R; ++r) {
            std::memcpy(tail[r], at.row[r] + whole, static_cast<size_t>(dimension - whole));
            padded_rows[r] = tail[r];
        }
        step(whole, padded_rows, 0);
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        V sums[R];
        CIR_UNROLL for (int r = 0; r < R; ++r) sums[r] = S::to_float(an[p][r]);
        S::sum_rows(sums, n_sums + p * stride);
        if (kWeighted) {
            CIR_UNROLL for (int r = 0; r < R; ++r) sums[r] = S::to_float(aw[p][r]);
            S::sum_rows(sums, w_sums + p * stride);
        }
    }
}

template <class S, int P, bool kWeighted>
void add_bounds(const int8_t* base, const float* scales, const int32_t* index, int count, const BoundTerms& terms,
                int pair, float* out) {
    constexpr int R = S::kRows;
    const int16_t* n = terms.n + static_cast<ptrdiff_t>(pair) * terms.padded;
    const int16_t* w = kWeighted ? terms.w + static_cast<ptrdiff_t>(pair) * terms.padded : nullptr;
    const ptrdiff_t length = terms.dimension;
    alignas(64) float n_sums[P * kGroup], w_sums[P * kGroup];
    for (int start = 0; start < count; start += kGroup) {
        const int size = count - start < kGroup ? count - start : kGroup;
        for (int i = 0; i < size; i += R) {
            const TileRows<int8_t, R> at(base, length, index, count, start + i);
            integer_sums<S, P, kWeighted>(at, n, w, terms.dimension, terms.padded, n_sums + i, w_sums + i, kGroup);
        }
        for (int p = 0; p < P; ++p) {
            const float factor = terms.factor[pair + p], margin = terms.margin[pair + p];
            const float doubt = terms.doubt[pair + p], least = terms.squared_norm_min[pair + p];
            const float* num = n_sums + p * kGroup;
            const float* squared = w_sums + p * kGroup;
            const bool first = pair + p == 0;
            for (int i = 0; i < size; ++i) {
                float bound;
                if (kWeighted) {
                    const float top = num[i] + margin;
                    bound = factor * (top / std::sqrt(squared[i] - std::copysign(doubt, top)));
                    bound = squared[i] >= least ? bound : std::numeric_limits<float>::quiet_NaN();
                } else {
                    // In this order nothing leaves float32's range before the last product (integer_terms.cpp).
                    bound = factor * (num[i] + margin) * scales[index[start + i]];
                }
                out[start + i] = first ? bound : out[start + i] + bound;
            }
        }
    }
}

template <class S>
void bounds(const int8_t* base, const float* scales, const int32_t* index, int count, const BoundTerms& terms,
            float* out) {
    for (int pair = 0; pair < terms.pairs; pair += 2) {
        const bool two = pair + 1 < terms.pairs;
        if (terms.w) {
            (two ? add_bounds<S, 2, true> : add_bounds<S, 1, true>)(base, scales, index, count, terms, pair, out);
        } else {
            (two ? add_bounds<S, 2, false> : add_bounds<S, 1, false>)(base, scales, index, count, terms, pair, out);
        }
    }
}

}  // namespace
}  // namespace cir
