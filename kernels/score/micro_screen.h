// Upper bounds from products of bytes, written once over the vector operations of micro.h and these:
//     Bytes    a vector of 4 * kWidth bytes or kWidth integers of 32 bits, which V may be cast to
//     dot      adds the products of four bytes of a row and of a term to each integer; `dot_squares` of unsigned bytes
//     totals   the sums of the integers of each of four
//     add_128  adds 128 times the other integers
// Included by files of one instruction set only, as micro.h is.
#pragma once

#include <cmath>
#include <limits>

#include "micro_rows.h"

namespace cir {
namespace {

// Rows whose largest value is beyond these have no bound.
constexpr float kLeastPeak = 0x1p-60f, kMostPeak = 0x1p+60f;
// Sums of positive float32 values, their root and the like are off by less.
constexpr float kNormUp = 1 + 0x1p-10f;

// The largest |value|; any number where one is NaN.
template <class S, class T>
inline float peak_of(const T* row, int dimension) {
    constexpr int W = S::kWidth;
    typename S::V most[2] = {S::zero(), S::zero()};
    int d = 0;
    for (; d + 2 * W <= dimension; d += 2 * W) {
        most[0] = S::max(most[0], S::abs(S::load(row + d)));
        most[1] = S::max(most[1], S::abs(S::load(row + d + W)));
    }
    for (; d < dimension; d += W) {
        const int size = dimension - d;
        most[0] = S::max(most[0], S::abs(size >= W ? S::load(row + d) : S::load_part(row + d, size)));
    }
    float lanes[W], peak = 0;
    S::store(lanes, S::max(most[0], most[1]));
    for (float lane : lanes) peak = lane > peak ? lane : peak;
    return peak;
}

// kWidth rows into column `first` of the tile.
template <class S, class T, bool kSquares>
inline void pack_bytes_of(const T* const* row, const float* inverse, int dimension, int first, int tile,
                          const ByteRows& out) {
    constexpr int W = S::kWidth, kStep = 4 * W, kSums = kSquares ? 4 : 2;
    using V = typename S::V;
    using B = typename S::Bytes;
    const V per_square = S::set1(static_cast<float>(kMostSquare) / (kMostByte * kMostByte));
    V sums[4][W];
    for (int s = 0; s < kSums; ++s) {
        for (int r = 0; r < W; ++r) sums[s][r] = S::zero();
    }
    for (int d = 0; d < dimension; d += kStep) {
        V values[W], squares[W];
        const int left = dimension - d;
        for (int r = 0; r < W; ++r) {
            const V up = S::set1(inverse[r]);
            V q2 = sums[0][r], e2 = sums[1][r], p2 = S::zero(), f2 = S::zero();
            if (kSquares) {
                p2 = sums[2][r];
                f2 = sums[3][r];
            }
            B q[4], p[4];
            const T* from = row[r] + d;
            CIR_UNROLL for (int v = 0; v < 4; ++v) {
                const int size = left - v * W;
                const V t = size >= W ? S::load(from + v * W) : size > 0 ? S::load_part(from + v * W, size) : S::zero();
                const V y = S::mul(t, up);
                q[v] = S::to_int(y);
                const V whole = S::from_int(q[v]);
                const V e = S::fms(t, up, whole);
                q2 = S::fma(whole, whole, q2);
                e2 = S::fma(e, e, e2);
                if (!kSquares) continue;
                const V squared = S::mul(y, S::mul(y, per_square));
                p[v] = S::to_int(squared);
                const V whole_square = S::from_int(p[v]);
                const V f = S::sub(squared, whole_square);
                p2 = S::fma(whole_square, whole_square, p2);
                f2 = S::fma(f, f, f2);
            }
            values[r] = S::narrow(q);
            S::store(reinterpret_cast<float*>(out.by_row + static_cast<ptrdiff_t>(first + r) * out.padded + d), values[r]);
            sums[0][r] = q2;
            sums[1][r] = e2;
            if (!kSquares) continue;
            squares[r] = S::narrow_unsigned(p);
            sums[2][r] = p2;
            sums[3][r] = f2;
        }
        // Narrowing leaves the four values of column 4 l + v at group (W / 4) v + l.
        const auto store = [&](V* from, uint8_t* to) {
            S::transpose(from);
            to += (static_cast<ptrdiff_t>(d) * tile + 4 * first);
            for (int k = 0; k < W; ++k) {
                const int group = W / 4 * (k % 4) + k / 4;
                S::store(reinterpret_cast<float*>(to + static_cast<ptrdiff_t>(group) * tile * 4), from[k]);
            }
        };
        store(values, out.values);
        if (kSquares) store(squares, out.squares);
    }
    float* norms[4] = {out.value_norm, out.value_error, out.square_norm, out.square_error};
    for (int s = 0; s < kSums; ++s) {
        S::transpose(sums[s]);
        V sum = sums[s][0];
        for (int r = 1; r < W; ++r) sum = S::add(sum, sums[s][r]);
        float squared[W];
        S::store(squared, sum);
        for (int r = 0; r < W; ++r) norms[s][first + r] = std::sqrt(squared[r]) * kNormUp;
    }
}

template <class S, class T>
void pack_bytes(const void* base, const float* scales, const int32_t* index, int count, int dimension,
                const ByteRows& out) {
    constexpr int W = S::kWidth, kTile = S::kByteVectors * W;
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    for (int first = 0; first < kTile; first += W) {
        const T* row[W];
        float inverse[W];
        for (int r = 0; r < W; ++r) {
            const int at = first + r < count ? first + r : count - 1;
            row[r] = static_cast<const T*>(base) + static_cast<ptrdiff_t>(dimension) * index[at];
            const float peak = peak_of<S>(row[r], dimension);
            inverse[r] = peak >= kLeastPeak && peak <= kMostPeak ? kMostByte / peak : kNaN;
            const float scale = scales ? scales[index[at]] : 1.0f;
            out.unit[first + r] = scale >= kLeastPeak && scale <= kMostPeak ? scale / inverse[r] : kNaN;
            if (!(out.unit[first + r] > 0)) inverse[r] = kNaN;
        }
        (out.squares ? pack_bytes_of<S, T, true> : pack_bytes_of<S, T, false>)(row, inverse, dimension, first, kTile, out);
    }
}

// The bounds of term p for the rows of a tile, from its products with them: n' in kDigits digits and, weighted, w'.
template <class S, int kDigits, bool kWeighted, int kColumns = kDigits + (kWeighted ? 1 : 0)>
inline void bound_of_sums(const ByteRows& rows, const ByteTerms& terms, int p, typename S::Bytes (&sum)[S::kByteVectors][kColumns],
                          float* out, float* inverse_roots) {
    constexpr int W = S::kWidth, M = S::kByteVectors, kTile = M * W;
    using V = typename S::V;
    using B = typename S::Bytes;
    const V factor = S::set1(terms.factor[p]);
    const V of_norm = S::set1(terms.value_norm[p]), of_error = S::set1(terms.value_error[p]);
    B high[M];
    CIR_UNROLL for (int m = 0; m < M; ++m) high[m] = S::no_bytes();
    for (const Peak *peak = terms.peaks + terms.first_peak[p], *end = terms.peaks + terms.first_peak[p + 1]; peak < end; ++peak) {
        const B x = S::set_bytes(peak->bytes);
        const uint8_t* q = rows.values + static_cast<ptrdiff_t>(peak->group) * kTile * 4;
        CIR_UNROLL for (int m = 0; m < M; ++m) high[m] = S::dot(high[m], S::load_bytes(q + m * W * 4), x);
    }
    CIR_UNROLL for (int m = 0; m < M; ++m) {
        sum[m][0] = S::add_128(sum[m][0], high[m]);
        V top = S::from_int(S::subtract(sum[m][0], S::set_bytes(terms.shift[p * kDigits])));
        if (kDigits == 2) {
            const V second = S::from_int(S::subtract(sum[m][kDigits - 1], S::set_bytes(terms.shift[p * kDigits + 1])));
            top = S::fma(top, S::set1(kDigit), second);
        }
        top = S::fma(of_norm, S::load(rows.value_norm + m * W), top);
        top = S::fma(of_error, S::load(rows.value_error + m * W), top);
        V bound = S::mul(factor, top), enough = S::zero(), doubled = S::zero();
        if (kWeighted) {
            const V norm = S::from_int(sum[m][kColumns - 1]);
            V doubt = S::mul(S::set1(terms.square_norm[p]), S::load(rows.square_norm + m * W));
            doubt = S::fma(S::set1(terms.square_error[p]), S::load(rows.square_error + m * W), doubt);
            const V inverse_root = S::inverse_root(S::sub(norm, S::with_sign(doubt, top)));
            bound = S::mul(bound, inverse_root);
            if (inverse_roots) S::store(inverse_roots + p * kTile + m * W, inverse_root);
            enough = norm;
            doubled = S::add(doubt, doubt);
        } else {
            bound = S::mul(bound, S::load(rows.unit + m * W));
            enough = S::set1(kLargestTerm);
            doubled = S::abs(bound);
        }
        S::store(out + p * kTile + m * W, S::if_greater(enough, doubled, bound));
    }
}

template <class S, int P, int kDigits, bool kWeighted>
void byte_bounds(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots) {
    constexpr int W = S::kWidth, M = S::kByteVectors, kTile = M * W, kColumns = kDigits + (kWeighted ? 1 : 0);
    using B = typename S::Bytes;
    B sum[P][M][kColumns];
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        CIR_UNROLL for (int m = 0; m < M; ++m) {
            CIR_UNROLL for (int c = 0; c < kColumns; ++c) sum[p][m][c] = S::no_bytes();
        }
    }
    const uint8_t *values = rows.values, *squares = rows.squares;
    const int32_t* term = terms.packed;
    for (int g = 0; g < terms.padded / 4; ++g) {
        B q[M], p2[M];
        CIR_UNROLL for (int m = 0; m < M; ++m) {
            q[m] = S::load_bytes(values + m * W * 4);
            if (kWeighted) p2[m] = S::load_bytes(squares + m * W * 4);
        }
        CIR_UNROLL for (int p = 0; p < P; ++p) {
            CIR_UNROLL for (int c = 0; c < kColumns; ++c) {
                const B x = S::set_bytes(term[p * kColumns + c]);
                CIR_UNROLL for (int m = 0; m < M; ++m) {
                    B& to = sum[p][m][c];
                    to = c < kDigits ? S::dot(to, q[m], x) : S::dot_squares(to, p2[m], x);
                }
            }
        }
        values += kTile * 4;
        if (kWeighted) squares += kTile * 4;
        term += P * kColumns;
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) bound_of_sums<S, kDigits, kWeighted>(rows, terms, p, sum[p], out, inverse_roots);
}

template <class S, int P, int kDigits, bool kWeighted>
void byte_bounds_of(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots) {
    if (terms.pairs == P) {
        byte_bounds<S, P, kDigits, kWeighted>(rows, terms, out, inverse_roots);
    } else if constexpr (P > 1) {
        byte_bounds_of<S, P - 1, kDigits, kWeighted>(rows, terms, out, inverse_roots);
    }
}

template <class S>
constexpr int byte_pairs(int digits, bool weighted) {
    return S::kByteSums / S::kByteVectors / (digits + (weighted ? 1 : 0));
}

template <class S>
void screen_bounds(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots) {
    if (terms.digits == 1) {
        (terms.weighted ? byte_bounds_of<S, byte_pairs<S>(1, true), 1, true>
                        : byte_bounds_of<S, byte_pairs<S>(1, false), 1, false>)(rows, terms, out, inverse_roots);
    } else {
        (terms.weighted ? byte_bounds_of<S, byte_pairs<S>(2, true), 2, true>
                        : byte_bounds_of<S, byte_pairs<S>(2, false), 2, false>)(rows, terms, out, inverse_roots);
    }
}

// The sums of four rows' bytes times those of P terms: out[4 p + row].
template <class S, int P>
inline void byte_sums(const uint8_t* const* row, const int8_t* terms, int padded, int32_t* out) {
    constexpr int kStep = 4 * S::kWidth, kRows = 4;
    static_assert(kPad % kStep == 0, "there is no remainder");
    typename S::Bytes sum[P][kRows];
    CIR_UNROLL for (int p = 0; p < P; ++p) {
        CIR_UNROLL for (int r = 0; r < kRows; ++r) sum[p][r] = S::no_bytes();
    }
    for (int d = 0; d < padded; d += kStep) {
        typename S::Bytes x[P];
        CIR_UNROLL for (int p = 0; p < P; ++p) {
            x[p] = S::load_bytes(reinterpret_cast<const uint8_t*>(terms + static_cast<ptrdiff_t>(p) * padded + d));
        }
        CIR_UNROLL for (int r = 0; r < kRows; ++r) {
            const typename S::Bytes q = S::load_bytes(row[r] + d);
            CIR_UNROLL for (int p = 0; p < P; ++p) sum[p][r] = S::dot(sum[p][r], q, x[p]);
        }
    }
    CIR_UNROLL for (int p = 0; p < P; ++p) S::totals(sum[p], out + kRows * p);
}

template <class S>
void screen_closer(const ByteRows& rows, const SecondDigits& second, const uint8_t* which, int count, const float* bounds,
                   const float* inverse_roots, float* out) {
    constexpr int kTile = S::kByteVectors * S::kWidth, kRows = 4;
    for (int start = 0; start < count; start += kRows) {
        const int here = count - start < kRows ? count - start : kRows;
        const uint8_t* row[kRows];
        for (int r = 0; r < kRows; ++r) {
            row[r] = rows.by_row + static_cast<ptrdiff_t>(which[start + (r < here ? r : here - 1)]) * second.padded;
        }
        int32_t sums[2 * kRows];
        for (int j = 0; j < second.pairs; ++j) {
            if (j % 2 == 0) {
                const int8_t* terms = second.bytes + static_cast<ptrdiff_t>(j) * second.padded;
                (j + 1 < second.pairs ? byte_sums<S, 2> : byte_sums<S, 1>)(row, terms, second.padded, sums);
            }
            for (int r = 0; r < here; ++r) {
                const int i = which[start + r];
                const float low = static_cast<float>(sums[j % 2 * kRows + r] - second.shift[j]) * (1.0f / kDigit);
                const float more = second.factor[j] * (low - second.less[j] * rows.value_norm[i]);
                const float first = bounds[j * kTile + i];
                float bound = first + more * (inverse_roots ? inverse_roots[j * kTile + i] : rows.unit[i]);
                // The root is that of the smallest number that it may be, which is right for bounds from 0 on.
                if (inverse_roots && first >= 0 && bound < 0) bound = 0;
                out[start + r] = j == 0 ? bound : out[start + r] + bound;
            }
        }
    }
}

template <class S>
uint64_t screen_above(const float* bounds, int pairs, float threshold) {
    constexpr int W = S::kWidth, M = S::kByteVectors, kTile = M * W;
    // Finite bounds may pass float32's range on the way to a sum within it: up, which passes, or down.
    const typename S::V limit = S::set1(threshold), lowest = S::set1(-std::numeric_limits<float>::max());
    uint64_t found = 0;
    CIR_UNROLL for (int m = 0; m < M; ++m) {
        typename S::V sum = S::load(bounds + m * W);
        for (int p = 1; p < pairs; ++p) sum = S::add(sum, S::load(bounds + p * kTile + m * W));
        found |= (S::not_at_most(sum, limit) | S::not_at_most(lowest, sum)) << (m * W);
    }
    return found;
}

// With products of its own, each of `term_bytes` of a term.
template <class S>
constexpr Screen screen_with(int term_bytes, const int (&most)[2][2],
                             void (*bounds)(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots)) {
    return Screen{S::kByteVectors * S::kWidth,
                  S::kWidth,
                  S::kBias,
                  term_bytes,
                  {{most[0][0], most[0][1]}, {most[1][0], most[1][1]}},
                  {pack_bytes<S, float>, pack_bytes<S, typename S::Half>, pack_bytes<S, int8_t>},
                  bounds,
                  screen_closer<S>,
                  screen_above<S>};
}

template <class S>
constexpr Screen screen_of() {
    constexpr int most[2][2] = {{byte_pairs<S>(1, false), byte_pairs<S>(1, true)},
                                {byte_pairs<S>(2, false), byte_pairs<S>(2, true)}};
    return screen_with<S>(4, most, screen_bounds<S>);
}

}  // namespace
}  // namespace cir
