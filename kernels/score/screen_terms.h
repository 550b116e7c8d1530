// Query terms in bytes, and the upper bounds that they give for rows that are turned into bytes as they are read.
//
// A row is t = unit * y with max |y_i| = 127; q and p are y and y^2 / c rounded to whole numbers, c = 127^2 / 255, so that
// both fit a byte. n = d_n (n' + g) and w = d_w (w' + h) with whole n', w' and the rest g, h. Attention has peaks, which would
// leave little of a byte to the other values: so d_n is made for all values but a few, which have a second byte, worth 128
// times as much. All of it is exact:
//
//   n . y   = d_n (n' . q + g . q) + n . (y - q)
//   w . y^2 = c d_w (w' . p + h . p + (w / d_w) . (y^2 / c - p))
//
// By Cauchy-Schwarz the second and third product of each line are at most the product of the norms of their factors, all
// of which are known: those of terms when a query is prepared, those of rows when they are turned into bytes. So
//
//   N = n' . q  +  |g| |q|  +  |n / d_n| |y - q|          D = |h| |p|  +  |w / d_w| |y^2 / c - p|
//
//   n . t / sqrt(w . t^2)  <=  d_n / sqrt(c d_w)  *  N / sqrt(w' . p -+ D)         minus where N >= 0
//   n . t                  <=  d_n unit N
//
// Nothing is first order, and nothing is assumed of the rows. Where w' . p <= 2 D, or a row's values are too large or too
// small, there is no bound and the row passes.
//
// Where only an int8 copy of the rows is read, it is the copy's q and scale that are packed: t = scale (q + e), unit = scale,
// since max |q_i| is 127, and y = q + e. Packing finds no error in whole numbers, so |e| is added to |y - q|; and, with
// y^2 - q^2 = e o (2 q + e),  max |e_i| (2 |q| + |e|) / c  to |y^2 / c - p|.
//
// Rounding in float32 (m is the dimension, at most 65536; u = 2^-24). Norms of rows are sums of positive numbers, whose root
// is off by less than 2^-11 of itself, and are rounded up by 2^-10; those of terms are computed in double. y^2 / c is off by
// 5 u of itself: two for y, one for 1 / c and each product. |p| is at least 255, so |y^2 / c| <= |p| + sqrt(m) / 2 < 1.51 |p|,
// and 8 u |w / d_w| |p| are added to D's first factor. Integers are exact; N is off by at most 5 u (|n' . q| + N - n' . q),
// the denominator, which is at least half of w' . p, by 2^-21 of itself, and the inverse of its root by 2^-13. Now
// |n' . q| d_n <= |n . y| + d_n (N - n' . q), and |n . t| / sqrt(w . t^2) <= |n / sqrt(w)| =: M; the root of the denominator
// used is within sqrt(3) of the right one. So all together it is less than
//   2^-12 M          which is the slack of the bound, together with the rounding of the exact score and of bits that n lost
//   2^-11 of (N - n' . q), by which these factors are enlarged.
// Without weights |n' . q| <= |n'| |q| <= (|n / d_n| + |g|) |q|, and it is 12 u of that: so 16 u |n / d_n| are added to |g|.
// A bound by one digit may be brought closer later, for one row: n = d_n (n' + second / 128 + g') with whole second, so N falls
// by (|g| - |g'|) |q| - second . q / 128, and the bound by that times the factor and the inverse root that it was made with.
// Both digits at once are n' in units of d_n / 128. If N was not below 0 and is now, then the root was that of too small a
// number, but the term is at most 0; if it was below 0, the root is right, and if it is no longer, the term is below 0 all
// the same. What |g| was enlarged by is not taken back: 2^-11 |g| |q| pays for the rounding of both parts of the difference,
// and their sum loses u of the first bound, which is less than 2 M and what it was enlarged by.
//
// The bounds of J terms are added one after the other, which costs a term at most J u of its bound; however many they are,
// J u |n / d_n| more, 2 J u M of slack with weights, and 2 J u of (N - n' . q) pay for that.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "terms.h"

namespace cir {

class ScreenTerms {
public:
    ScreenTerms(const PreparedTerms& terms, const Screen& screen);

    // Terms in one digit or two, up to `Screen::max_pairs` each, in the order of queries, then terms.
    const std::vector<ByteTerms>& groups(int digits) const { return forms_[digits - 1].groups; }
    // A row's exact score is at most its bound and this.
    float slack(size_t query) const { return slack_[query]; }

    SecondDigits second(size_t query) const;

    // Makes the margins, in the order of ByteTerms, smaller than they have to be: for tests.
    void keep_of_margins(const double* shares);

private:
    struct Whole {
        double unit, size, rest;
    };
    // Numerators in one digit or two: what `ByteTerms` points to.
    struct Form {
        LineVector<int32_t> packed{};
        std::vector<int32_t> shift{};
        std::vector<float> factor{}, value_norm{}, value_error{};
        std::vector<ByteTerms> groups{};
    };

    Whole whole_numbers(const float* x, int padded, double unit);
    void take_peaks(int padded);
    void pair(const RowTerms& of, int j, double size, double lost, size_t at);
    void pack(int digits);

    const Screen* screen_;
    size_t of_query_, padded_, pairs_;
    bool weighted_;
    std::vector<double> whole_, rest_;                // of the term that is looked at
    std::vector<int8_t> first_, second_, weights_;  // [pairs][padded], before they are packed
    Form forms_[2];
    std::vector<Peak> peaks_;
    std::vector<int32_t> first_peak_;  // [pairs + 1]
    std::vector<float> square_norm_, square_error_, slack_;
    // The second digit for one row: in its order, what its sums are shifted by, and by how much |g| falls.
    LineVector<int8_t> by_row_;  // [pairs][padded]
    std::vector<int32_t> by_row_shift_;
    std::vector<float> less_;
};

// What a copy lost, for the rows of a tile that was packed from it.
void add_lost(const Copy& copy, const ByteRows& rows, int count);

// Room for one tile of rows in bytes.
class ByteTile {
public:
    ByteTile(const Screen& screen, int padded, bool weighted)
        : tile_(static_cast<size_t>(screen.tile_rows)), padded_(padded), norms_(5 * tile_) {
        const size_t bytes = tile_ * static_cast<size_t>(padded);
        values_.resize(bytes);
        by_row_.resize(bytes);
        if (weighted) squares_.resize(bytes);
    }

    ByteRows rows() {
        float* norms = norms_.data();
        return {values_.data(), by_row_.data(),    squares_.empty() ? nullptr : squares_.data(),
                norms,          norms + tile_,     norms + 2 * tile_,
                norms + 3 * tile_, norms + 4 * tile_, padded_};
    }

private:
    size_t tile_;
    int padded_;
    LineVector<uint8_t> values_, by_row_, squares_;
    LineVector<float> norms_;
};

}  // namespace cir
