// What one instruction set provides: plain functions on prepared terms. They allocate nothing, own no threads and
// know nothing of blocks, masks or top-k.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cir {

enum RowType { kFloat32 = 0, kFloat16 = 1, kInt8 = 2 };
constexpr int kRowTypes = 3;

// Terms are padded with zeros to a multiple of this many values, which every vector width divides.
constexpr int kPad = 64;

// A term of a query, scaled by powers of two so that neither sum leaves float32's range for rows of ordinary size:
//     term = factor * (n . t) / sqrt(w . t^2)        or, without weights,        factor * scale_t * (n . t)
// A squared norm outside these limits, or a term beyond the last, makes the result NaN, and the caller computes the row's
// exact score at once (exact.h).
constexpr float kSquaredNormMin = 1e-28f;
constexpr float kSquaredNormMax = 1e+30f;
constexpr float kLargestTerm = 3e+38f;

// Without weights a kernel also says how long a row is, because that is how far rounding reaches: sqrt(t^2 + this), where
// this is more than squares lose below float32's range.
constexpr float kSmallestReach2 = 0x1p-126f;

// J terms of one query for `Kernels::rows`.
struct RowTerms {
    const float* n;       // [pairs][padded]
    const float* w;       // [pairs][padded], or null for plain dot products
    const float* factor;  // [pairs]
    int pairs;
    int dimension;
    int padded;
};

// Up to `Kernels::max_pairs` terms, of one or several queries, for `Kernels::tile`.
struct TileTerms {
    const float* packed;  // weighted: [dimension][pairs] as n, w, n, w ...; plain: [dimension][pairs]
    const float* factor;  // [pairs]
    int pairs;
    int dimension;
    bool weighted;
};

// J terms of one query in integers for `Kernels::bounds`; see integer_terms.h for where the constants come from. With
// T_j = n_j . q + margin_j a row's true score is at most
//     sum_j factor_j * T_j / sqrt(w_j . q^2 -+ doubt_j)     or, without weights,     sum_j factor_j * scale * T_j
// where -+ is minus for T_j >= 0.
struct BoundTerms {
    const int16_t* n;  // [pairs][padded]
    const int16_t* w;  // [pairs][padded], or null
    const float* factor;
    const float* margin;
    const float* doubt;
    const float* squared_norm_min;  // below it the bound does not hold, and the result is NaN
    int pairs;
    int dimension;
    int padded;
};

// A tile of rows in bytes for `Screen::bounds`. With y a row in units of its largest value / 127 and c = 127^2 / 255,
// q is y and p is y^2 / c, each rounded to a whole number; screen_terms.h says what follows from that.
struct ByteRows {
    uint8_t* values;      // [padded / 4][tile_rows][4]: q, and `Screen::bias` more
    uint8_t* by_row;      // [tile_rows][padded]: the same, each row in the order of `place_in_row`
    uint8_t* squares;     // the same of p; null without weights
    float* value_norm;    // [tile_rows]: |q|, as all of these rounded up
    float* value_error;   // |y - q|; NaN where nothing below holds
    float* square_norm;   // |p|
    float* square_error;  // |y^2 / c - p|
    float* unit;          // of y
    int padded;
};

// Of four values of n' the multiples of 128.
struct Peak {
    int32_t group;  // of four values
    int32_t bytes;
};

// Up to `Screen::max_pairs` terms in bytes. With N = n' . q + value_norm |q| + value_error |y - q| and
// D = square_norm |p| + square_error |y^2 / c - p|, the term of a row is at most
//     factor * N / sqrt(w' . p -+ D)     or, without weights,     factor * unit * N         (minus where N >= 0)
struct ByteTerms {
    const int32_t* packed;  // [padded / term_bytes][pairs][n' in one or two digits, w' if weighted][term_bytes / 4], four bytes each
    const int32_t* shift;   // [pairs][digits]: `Screen::bias` times the sum of the digit, and of the peaks
    const Peak* peaks;      // [first_peak[p] .. first_peak[p + 1]) belong to the first digit of pair p, 128 times
    const int32_t* first_peak;
    const float *factor, *value_norm, *value_error, *square_norm, *square_error;  // [pairs]
    int pairs;
    int padded;
    int digits;  // n' = first, or 128 * first + second
    bool weighted;
};

// Of one query's terms what n' in one digit leaves: a bound is closer by
//     factor * (less * |q| - bytes . q / kDigit)  times the inverse root that it was made with, or without weights the unit.
struct SecondDigits {
    const int8_t* bytes;   // [pairs][padded], in the order of `place_in_row`
    const int32_t* shift;  // [pairs]: `Screen::bias` times their sum
    const float *less, *factor;
    int pairs;
    int padded;
};

// What an instruction set that multiplies bytes adds: bounds of the scores of many rows for many queries.
struct Screen {
    int tile_rows;  // at most 64
    int width;      // lanes of 32 bits
    int bias;
    int term_bytes;       // of a term that lie together: as many as one product takes
    int max_pairs[2][2];  // [digits - 1][weighted]

    // Rows times their scales unless null, as `Kernels::pack` takes them; a scale that is not ordinary makes a NaN.
    void (*pack[kRowTypes])(const void* base, const float* scales, const int32_t* index, int count, int dimension,
                            const ByteRows& out);

    // Upper bounds of the terms into out[pair * tile_rows + i], NaN where there is none; with weights also the inverse
    // of the root that each was divided by, into inverse_roots, unless that is null.
    void (*bounds)(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots);

    // Brings bounds in one digit of some rows of the tile, which[0 .. count), closer for one query: out[i] is the sum of
    // its terms' bounds, NaN where there is none. `bounds` and `inverse_roots`, null without weights, are the query's.
    void (*closer)(const ByteRows& rows, const SecondDigits& second, const uint8_t* which, int count, const float* bounds,
                   const float* inverse_roots, float* out);

    // Bit i: the sum over pairs of bounds[pair * tile_rows + i] is above the threshold or not finite.
    uint64_t (*above)(const float* bounds, int pairs, float threshold);
};

// Where value d of a row is in `ByteRows::by_row`: as narrowing four vectors to one leaves it.
constexpr int place_in_row(int d, int width) {
    const int step = d / (4 * width) * 4 * width, vector = d / width % 4, lane = d % width;
    return step + 16 * (lane / 4) + 4 * vector + lane % 4;
}

// A second digit of n' is worth so many of the first.
constexpr int kDigit = 128;
// The largest q, p and bytes of terms.
constexpr int kMostByte = 127, kMostSquare = 255;
// The largest dimension: beyond, sums of products of bytes leave 32 bits.
constexpr int kMostScreened = 1 << 16;

struct Kernels {
    const char* name;

    // Rows of a packed tile, and the most terms that one call of `tile` takes.
    int tile_rows;
    int max_pairs_weighted;
    int max_pairs_plain;
    // 32-bit lanes over which `bounds` spreads a sum; the integers are chosen so that no lane overflows.
    int integer_lanes;

    // Terms of the rows base[index[i] * dimension ...], i < count, into out[pair * stride + i], and without weights
    // their reach into out[pairs * stride + i]. `scales` (by row number within base) may be null.
    void (*rows[kRowTypes])(const void* base, const float* scales, const int32_t* index, int count,
                            const RowTerms& terms, float* out, int stride);

    // tile_rows rows, times their scales unless null, transposed: values[d * tile_rows + i], and their squares, or
    // where those are null their reach[i]. Fewer rows than that repeat the last.
    void (*pack[kRowTypes])(const void* base, const float* scales, const int32_t* index, int count, int dimension,
                            float* values, float* squares, float* reach);

    // Terms of a packed tile into out[pair * tile_rows + i].
    void (*tile)(const float* values, const float* squares, const TileTerms& terms, float* out);

    // Upper bounds of the scores of int8 rows.
    void (*bounds)(const int8_t* base, const float* scales, const int32_t* index, int count, const BoundTerms& terms,
                   float* out);

    // sums[i] = the sum over pairs of terms[pair * stride + i]; whether any, with per_reach * reach[i] added unless
    // that is null, is above the threshold or NaN.
    bool (*sum_above)(const float* terms, int pairs, int stride, int count, const float* reach, float per_reach,
                      float threshold, float* sums);

    // Maxima over the vectors of an item: of each pair, values terms[pair * stride + i], i < count, belong to items of
    // `group`, the first to the vector `phase` of its item, into out[pair * out_stride + item]. A value that is not
    // finite makes its item NaN. With a phase the first item goes on with what is in `out`.
    void (*fold)(const float* terms, int pairs, int stride, int count, int group, int phase, float* out, int out_stride);

    // The sums of the exact score (exact.h) of one float32 row: out[2 p] over n * t and out[2 p + 1] over w * t^2 for
    // terms p < pairs <= 2, float32 values that lie one after the other in double precision, for to convert them takes as long
    // as to multiply; the latter only with weights. The same bits on every machine:
    // eight accumulators in double precision, value d goes to accumulator d % 8, and they are added as
    // ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
    void (*exact)(const float* row, const double* n, const double* w, int dimension, int pairs, double* out);

    // Values as float32, without scales.
    void (*widen[kRowTypes])(const void* values, int count, float* out);

    // Sum of the bytes as 32-bit words: the read roofline.
    uint64_t (*sum)(const void* bytes, size_t size);

    const Screen* screen = nullptr;
};

// One per file; only those of the target architecture are compiled.
extern const Kernels* const kSerial;
extern const Kernels* const kAvx2;
extern const Kernels* const kAvxVnni;
extern const Kernels* const kAvx512;
extern const Kernels* const kAvx512Vnni;
extern const Kernels* const kAvx512Amx;
extern const Kernels* const kNeon;
extern const Kernels* const kNeonDot;

}  // namespace cir
