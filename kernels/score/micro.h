// The kernels, written once over a small set of vector operations `S` that each instruction set defines. Included
// by those files only, each compiled with its own flags; everything is in an unnamed namespace, so that no copy
// compiled for a newer machine is ever linked in place of an older one.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

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
        far = reinterpret_cast<const char*>(row[0]) + (dense ? kFarBytes : 0);
    }

    // Called once for each W values of every row, in order.
    template <int W>
    void prefetch(int d) {
        constexpr int kBytes = R * W * static_cast<int>(sizeof(T));
        if (kBytes >= 64 || d * R * static_cast<int>(sizeof(T)) % 64 == 0) {
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

// Sums over d of n * t and w * t^2 for S::kRows rows and P terms.
template <class S, class T, int P, bool kWeighted>
inline void row_sums(TileRows<T, S::kRows> at, const float* n, const float* w, int dimension, int padded,
                     float* n_sums, float* w_sums, int stride) {
    constexpr int R = S::kRows, W = S::kWidth;
    using V = typename S::V;
    V an[P][R], aw[P][R];
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        CIR_UNROLL for (int r = 0; r < R; ++r) {
            an[p][r] = S::zero();
            if (kWeighted) aw[p][r] = S::zero();
        }
    }
    const int whole = dimension - dimension % W;
    auto step = [&](int d, auto load) {
        V t[R], t2[R];
        CIR_UNROLL for (int r = 0; r < R; ++r) {
            t[r] = load(at.row[r] + d);
            if (kWeighted) t2[r] = S::mul(t[r], t[r]);
        }
        CIR_UNROLL for (int p = 0; p < P; ++p) {
            const V nv = S::load(n + p * padded + d);
            CIR_UNROLL for (int r = 0; r < R; ++r) an[p][r] = S::fma(nv, t[r], an[p][r]);
            if (kWeighted) {
                const V wv = S::load(w + p * padded + d);
                CIR_UNROLL for (int r = 0; r < R; ++r) aw[p][r] = S::fma(wv, t2[r], aw[p][r]);
            }
        }
    };
    for (int d = 0; d < whole; d += W) {
        at.template prefetch<W>(d);
        step(d, [](const T* p) { return S::load(p); });
    }
    if (whole < dimension) {
        step(whole, [&](const T* p) { return S::load_part(p, dimension - whole); });
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        S::sum_rows(an[p], n_sums + p * stride);
        if (kWeighted) S::sum_rows(aw[p], w_sums + p * stride);
    }
}

// NaN where the caller has to look closer.
inline float weighted_term(float n_sum, float w_sum, float factor) {
    const float term = factor * (n_sum / std::sqrt(w_sum));
    const bool sound = w_sum >= kSquaredNormMin && w_sum <= kSquaredNormMax &&
                       std::fabs(term) <= std::numeric_limits<float>::max();
    return sound ? term : std::numeric_limits<float>::quiet_NaN();
}

inline float plain_term(float n_sum, float factor) {
    const float term = factor * n_sum;
    return std::fabs(term) <= std::numeric_limits<float>::max() ? term : std::numeric_limits<float>::quiet_NaN();
}

constexpr int kGroup = 64;  // rows whose sums are kept before the division

template <class S, class T, int P, bool kWeighted>
void row_terms(const T* base, const float* scales, const int32_t* index, int count, const RowTerms& terms, int pair,
               float* out, int stride) {
    constexpr int R = S::kRows;
    static_assert(kGroup % R == 0, "a group is whole tiles of rows");
    const float* n = terms.n + static_cast<ptrdiff_t>(pair) * terms.padded;
    const float* w = kWeighted ? terms.w + static_cast<ptrdiff_t>(pair) * terms.padded : nullptr;
    const ptrdiff_t length = terms.dimension;
    alignas(64) float n_sums[P * kGroup], w_sums[P * kGroup];
    for (int start = 0; start < count; start += kGroup) {
        const int size = count - start < kGroup ? count - start : kGroup;
        for (int i = 0; i < size; i += R) {
            const TileRows<T, R> at(base, length, index, count, start + i);
            row_sums<S, T, P, kWeighted>(at, n, w, terms.dimension, terms.padded, n_sums + i, w_sums + i, kGroup);
        }
        for (int p = 0; p < P; ++p) {
            const float factor = terms.factor[pair + p];
            float* to = out + static_cast<ptrdiff_t>(pair + p) * stride + start;
            if (kWeighted) {
                for (int i = 0; i < size; ++i) {
                    to[i] = weighted_term(n_sums[p * kGroup + i], w_sums[p * kGroup + i], factor);
                }
            } else if (scales) {
                for (int i = 0; i < size; ++i) {
                    to[i] = plain_term(n_sums[p * kGroup + i], factor * scales[index[start + i]]);
                }
            } else {
                for (int i = 0; i < size; ++i) to[i] = plain_term(n_sums[p * kGroup + i], factor);
            }
        }
    }
}

template <class S, class T>
void rows(const void* base, const float* scales, const int32_t* index, int count, const RowTerms& terms, float* out,
          int stride) {
    const T* values = static_cast<const T*>(base);
    for (int pair = 0; pair < terms.pairs; pair += 2) {
        const bool two = pair + 1 < terms.pairs;
        if (terms.w) {
            (two ? row_terms<S, T, 2, true> : row_terms<S, T, 1, true>)(values, scales, index, count, terms, pair,
                                                                        out, stride);
        } else {
            (two ? row_terms<S, T, 2, false> : row_terms<S, T, 1, false>)(values, scales, index, count, terms, pair,
                                                                          out, stride);
        }
    }
}

template <class S, class T>
void pack(const void* base, const float* scales, const int32_t* index, int count, int dimension, float* values,
          float* squares) {
    constexpr int W = S::kWidth, kTile = S::kTileVectors * W;
    using V = typename S::V;
    for (int first = 0; first < kTile; first += W) {
        const T* row[W];
        V scale[W];
        for (int r = 0; r < W; ++r) {
            const int at = first + r < count ? first + r : count - 1;
            row[r] = static_cast<const T*>(base) + static_cast<ptrdiff_t>(dimension) * index[at];
            if (scales) scale[r] = S::set1(scales[index[at]]);
        }
        for (int d = 0; d < dimension; d += W) {
            const int size = dimension - d < W ? dimension - d : W;
            V v[W];
            if (size == W) {
                CIR_UNROLL for (int r = 0; r < W; ++r) v[r] = S::load(row[r] + d);
            } else {
                CIR_UNROLL for (int r = 0; r < W; ++r) v[r] = S::load_part(row[r] + d, size);
            }
            if (scales) {
                CIR_UNROLL for (int r = 0; r < W; ++r) v[r] = S::mul(v[r], scale[r]);
            }
            S::transpose(v);
            float* to = values + static_cast<ptrdiff_t>(d) * kTile + first;
            for (int i = 0; i < size; ++i) S::store(to + i * kTile, v[i]);
            if (squares) {
                float* squared = squares + static_cast<ptrdiff_t>(d) * kTile + first;
                for (int i = 0; i < size; ++i) S::store(squared + i * kTile, S::mul(v[i], v[i]));
            }
        }
    }
}

// kTileVectors * P accumulators a sum stay in registers over the whole dimension; a term is one broadcast from memory.
template <class S, int P, bool kWeighted>
void tile_terms(const float* values, const float* squares, const TileTerms& terms, float* out) {
    constexpr int W = S::kWidth, M = S::kTileVectors, kTile = M * W;
    using V = typename S::V;
    V an[P][M], aw[P][M];
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        CIR_UNROLL for (int m = 0; m < M; ++m) {
            an[p][m] = S::zero();
            if (kWeighted) aw[p][m] = S::zero();
        }
    }
    const float* term = terms.packed;
    for (int d = 0; d < terms.dimension; ++d) {
        V t[M], t2[M];
        CIR_UNROLL for (int m = 0; m < M; ++m) {
            t[m] = S::load(values + m * W);
            if (kWeighted) t2[m] = S::load(squares + m * W);
        }
        CIR_UNROLL for (int p = 0; p < P; ++p) {
            const V n = S::set1(term[kWeighted ? 2 * p : p]);
            CIR_UNROLL for (int m = 0; m < M; ++m) an[p][m] = S::fma(n, t[m], an[p][m]);
            if (kWeighted) {
                const V w = S::set1(term[2 * p + 1]);
                CIR_UNROLL for (int m = 0; m < M; ++m) aw[p][m] = S::fma(w, t2[m], aw[p][m]);
            }
        }
        values += kTile;
        if (kWeighted) squares += kTile;
        term += kWeighted ? 2 * P : P;
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        alignas(64) float n_sums[kTile], w_sums[kTile];
        CIR_UNROLL for (int m = 0; m < M; ++m) {
            S::store(n_sums + m * W, an[p][m]);
            if (kWeighted) S::store(w_sums + m * W, aw[p][m]);
        }
        const float factor = terms.factor[p];
        for (int i = 0; i < kTile; ++i) {
            out[p * kTile + i] =
                kWeighted ? weighted_term(n_sums[i], w_sums[i], factor) : plain_term(n_sums[i], factor);
        }
    }
}

template <class S, int P, bool kWeighted>
void tile_dispatch(const float* values, const float* squares, const TileTerms& terms, float* out) {
    if (terms.pairs == P) {
        tile_terms<S, P, kWeighted>(values, squares, terms, out);
    } else if constexpr (P > 1) {
        tile_dispatch<S, P - 1, kWeighted>(values, squares, terms, out);
    }
}

template <class S>
void tile(const float* values, const float* squares, const TileTerms& terms, float* out) {
    if (terms.weighted) {
        tile_dispatch<S, S::kMaxPairsWeighted, true>(values, squares, terms, out);
    } else {
        tile_dispatch<S, S::kMaxPairsPlain, false>(values, squares, terms, out);
    }
}

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
                    bound = factor * scales[index[start + i]] * (num[i] + margin);
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

inline bool sum_above(const float* terms, int pairs, int stride, int count, float threshold, float* sums) {
    int found = 0;
    for (int i = 0; i < count; ++i) {
        float sum = terms[i];
        for (int p = 1; p < pairs; ++p) sum += terms[static_cast<ptrdiff_t>(p) * stride + i];
        sums[i] = sum;
        found |= !(sum <= threshold);
    }
    return found != 0;
}

template <class S, class T>
void widen(const void* values, int count, float* out) {
    const T* from = static_cast<const T*>(values);
    int i = 0;
    for (; i + S::kWidth <= count; i += S::kWidth) S::store(out + i, S::load(from + i));
    if (i < count) {
        float rest[S::kWidth];
        S::store(rest, S::load_part(from + i, count - i));
        std::memcpy(out + i, rest, static_cast<size_t>(count - i) * sizeof(float));
    }
}

template <class S>
uint64_t sum_words(const void* bytes, size_t size) {
    constexpr int kSums = 8;
    using I = typename S::I;
    constexpr size_t kStep = kSums * sizeof(typename S::Words);
    I sum[kSums];
    for (I& each : sum) each = S::izero();
    const char* at = static_cast<const char*>(bytes);
    size_t left = size;
    const auto add = [&sum](const char* from) {
        CIR_UNROLL for (size_t i = 0; i < kSums; ++i) {
            sum[i] = S::add_words(sum[i], from + i * sizeof(typename S::Words));
        }
    };
    for (; left >= kStep; left -= kStep, at += kStep) {
        CIR_UNROLL for (size_t line = 0; line < kStep; line += 64) __builtin_prefetch(at + 4096 + line);
        add(at);
    }
    char rest[kStep] = {};
    std::memcpy(rest, at, left);
    add(rest);
    uint64_t total = 0;
    for (const I& each : sum) {
        const typename S::Words words = S::words(each);
        uint32_t lanes[sizeof words / 4];
        std::memcpy(lanes, &words, sizeof words);
        for (uint32_t lane : lanes) total += lane;
    }
    return total;
}

template <class S>
constexpr Kernels kernels_of(const char* name) {
    return Kernels{name,
                   S::kTileVectors * S::kWidth,
                   S::kMaxPairsWeighted,
                   S::kMaxPairsPlain,
                   S::kIntegerLanes,
                   {rows<S, float>, rows<S, typename S::Half>, rows<S, int8_t>},
                   {pack<S, float>, pack<S, typename S::Half>, pack<S, int8_t>},
                   tile<S>,
                   bounds<S>,
                   sum_above,
                   {widen<S, float>, widen<S, typename S::Half>, widen<S, int8_t>},
                   sum_words<S>};
}

}  // namespace
}  // namespace cir
