// The kernels, written once over a small set of vector operations `S` that each instruction set defines. Included
// by those files only, each compiled with its own flags; everything is in an unnamed namespace, so that no copy
// compiled for a newer machine is ever linked in place of an older one.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "micro_bounds.h"
#include "micro_rows.h"

namespace cir {
namespace {

// Sums over d of n * t and w * t^2 for S::kRows rows and P terms; without weights one sum of t^2.
template <class S, class T, int P, bool kWeighted>
inline void row_sums(TileRows<T, S::kRows> at, const float* n, const float* w, int dimension, int padded,
                     float* n_sums, float* w_sums, int stride) {
    constexpr int R = S::kRows, W = S::kWidth, kSquares = kWeighted ? P : 1;
    using V = typename S::V;
    V an[P][R], aw[kSquares][R];
    CIR_UNROLL for (int r = 0; r < R; ++r) {
        CIR_UNROLL for (int p = 0; p < P; ++p) an[p][r] = S::zero();
        CIR_UNROLL for (int p = 0; p < kSquares; ++p) aw[p][r] = S::zero();
    }
    const int whole = dimension - dimension % W;
    auto step = [&](int d, auto load) {
        V t[R], t2[R];
        CIR_UNROLL for (int r = 0; r < R; ++r) {
            t[r] = load(at.row[r] + d);
            if (kWeighted) t2[r] = S::mul(t[r], t[r]);
            else aw[0][r] = S::fma(t[r], t[r], aw[0][r]);
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
    CIR_UNROLL for (int p = 0; p < P; ++p) S::sum_rows(an[p], n_sums + p * stride);
    CIR_UNROLL for (int p = 0; p < kSquares; ++p) S::sum_rows(aw[p], w_sums + p * stride);
}

// NaN where the caller has to look closer.
inline float weighted_term(float n_sum, float w_sum, float factor) {
    const float term = factor * (n_sum / std::sqrt(w_sum));
    const bool sound = w_sum >= kSquaredNormMin && w_sum <= kSquaredNormMax && std::fabs(term) <= kLargestTerm;
    return sound ? term : std::numeric_limits<float>::quiet_NaN();
}

inline float plain_term(float n_sum, float factor) {
    const float term = factor * n_sum;
    return std::fabs(term) <= kLargestTerm ? term : std::numeric_limits<float>::quiet_NaN();
}

inline float reach_of(float squared) { return std::sqrt(squared + kSmallestReach2); }

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
        if (!kWeighted) {
            float* reach = out + static_cast<ptrdiff_t>(terms.pairs) * stride + start;
            for (int i = 0; i < size; ++i) {
                reach[i] = reach_of(w_sums[i]) * (scales ? std::fabs(scales[index[start + i]]) : 1.0f);
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
          float* squares, float* reach) {
    constexpr int W = S::kWidth, kTile = S::kTileVectors * W;
    using V = typename S::V;
    for (int first = 0; first < kTile; first += W) {
        const T* row[W];
        V scale[W], squared_norms = S::zero();
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
            } else {
                for (int i = 0; i < size; ++i) squared_norms = S::fma(v[i], v[i], squared_norms);
            }
        }
        if (!squares) {
            S::store(reach + first, squared_norms);
            for (int i = first; i < first + W; ++i) reach[i] = reach_of(reach[i]);
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

inline bool sum_above(const float* terms, int pairs, int stride, int count, const float* reach, float per_reach,
                      float threshold, float* sums) {
    int found = 0;
    for (int i = 0; i < count; ++i) {
        float sum = terms[i];
        for (int p = 1; p < pairs; ++p) sum += terms[static_cast<ptrdiff_t>(p) * stride + i];
        // Finite terms may pass float32's range on the way to a sum within it.
        sum = std::fabs(sum) <= std::numeric_limits<float>::max() ? sum : std::numeric_limits<float>::quiet_NaN();
        sums[i] = sum;
        if (!reach) found |= !(sum <= threshold);
    }
    if (reach) {
        for (int i = 0; i < count; ++i) found |= !(sums[i] + per_reach * reach[i] <= threshold);
    }
    return found != 0;
}

// The largest of n > 0 values, NaN if one is not finite.
inline float largest_of(const float* x, int n) {
    constexpr int W = 16;
    if (n < W) {
        float most = x[0], poison = x[0] - x[0];
        for (int i = 1; i < n; ++i) {
            most = x[i] > most ? x[i] : most;
            poison += x[i] - x[i];
        }
        return most + poison;
    }
    float most[W], poison[W];
    const auto take = [&](const float* from) {
        for (int l = 0; l < W; ++l) {
            most[l] = from[l] > most[l] ? from[l] : most[l];
            poison[l] += from[l] - from[l];
        }
    };
    for (int l = 0; l < W; ++l) {
        most[l] = x[l];
        poison[l] = x[l] - x[l];
    }
    int i = W;
    for (; i + W <= n; i += W) take(x + i);
    if (i < n) take(x + n - W);  // some for the second time
    for (int half = W / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            most[l] = most[l + half] > most[l] ? most[l + half] : most[l];
            poison[l] += poison[l + half];
        }
    }
    return most[0] + poison[0];
}

inline void fold(const float* terms, int pairs, int stride, int count, int group, int phase, float* out, int out_stride) {
    for (int p = 0; p < pairs; ++p, terms += stride, out += out_stride) {
        int item = 0, left = group - phase;
        for (int at = 0; at < count; ++item, left = group) {
            const int size = left < count - at ? left : count - at;
            float most = largest_of(terms + at, size);
            if (at == 0 && phase > 0) {
                const float before = out[0];
                most = (before > most ? before : most) + ((before - before) + (most - most));
            }
            out[item] = most;
            at += size;
        }
    }
}

template <class S, int P, bool kWeighted>
void exact_sums(const float* row, const double* n, const double* w, int dimension, double* out) {
    constexpr int W = 8;
    using D = typename S::D;
    D an[P], aw[P];
    CIR_UNROLL for (int p = 0; p < P; ++p) an[p] = aw[p] = S::dzero();
    const auto step = [&](const float* t_at, const double* n_at, const double* w_at, ptrdiff_t next) {
        const D t = S::dload(t_at);
        CIR_UNROLL for (int p = 0; p < P; ++p) an[p] = S::dadd(an[p], S::dmul(S::dload(n_at + p * next), t));
        if (!kWeighted) return;
        const D t2 = S::dmul(t, t);
        CIR_UNROLL for (int p = 0; p < P; ++p) aw[p] = S::dadd(aw[p], S::dmul(S::dload(w_at + p * next), t2));
    };
    const int whole = dimension - dimension % W, rest = dimension - whole;
    for (int d = 0; d < whole; d += W) step(row + d, n + d, w + (kWeighted ? d : 0), dimension);
    if (rest) {
        // Zeros in place of what is not there: a sum that began at +0 does not change by adding +0.
        float t_tail[W] = {};
        double n_tail[P * W] = {}, w_tail[P * W] = {};
        const size_t bytes = static_cast<size_t>(rest) * sizeof(double);
        std::memcpy(t_tail, row + whole, bytes / 2);
        for (int p = 0; p < P; ++p) {
            const ptrdiff_t from = static_cast<ptrdiff_t>(p) * dimension + whole;
            std::memcpy(n_tail + p * W, n + from, bytes);
            if (kWeighted) std::memcpy(w_tail + p * W, w + from, bytes);
        }
        step(t_tail, n_tail, w_tail, W);
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        out[2 * p] = S::dsum(an[p]);
        if (kWeighted) out[2 * p + 1] = S::dsum(aw[p]);
    }
}

template <class S>
void exact(const float* row, const double* n, const double* w, int dimension, int pairs, double* out) {
    if (w) {
        (pairs == 2 ? exact_sums<S, 2, true> : exact_sums<S, 1, true>)(row, n, w, dimension, out);
    } else {
        (pairs == 2 ? exact_sums<S, 2, false> : exact_sums<S, 1, false>)(row, n, n, dimension, out);
    }
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
                   fold,
                   exact<S>,
                   {widen<S, float>, widen<S, typename S::Half>, widen<S, int8_t>},
                   sum_words<S>};
}

}  // namespace
}  // namespace cir
