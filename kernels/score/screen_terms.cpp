#include "screen_terms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace cir {
namespace {

constexpr double kUnit = 0x1p-24;      // float32 rounds by at most so much of a value
constexpr double kRounding = 0x1p-12;  // of a term of size 1
constexpr double kEnlarged = 1 + 0x1p-11, kUp = 1 + 1e-6;  // the constants themselves are rounded
constexpr double kPerSquare = static_cast<double>(kMostSquare) / (kMostByte * kMostByte);
constexpr double kSmallest = 0x1p-140;  // more than underflow costs a term and its bound

double largest(const float* x, int size) {
    float most = 0;
    for (int i = 0; i < size; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    return static_cast<double>(most);
}

// To the nearest whole number, for |x| < 2^51, in two additions that a compiler vectorises.
inline double whole_of(double x) {
    constexpr double kShift = 0x1.8p52;
    return (x + kShift) - kShift;
}

}  // namespace

ScreenTerms::ScreenTerms(const PreparedTerms& terms, const Screen& screen, int digits) {
    const size_t queries = static_cast<size_t>(terms.count());
    const RowTerms first = terms.query(0);
    const bool weighted = first.w != nullptr;
    const size_t of_query = static_cast<size_t>(first.pairs), pairs = queries * of_query;
    const size_t padded = static_cast<size_t>(first.padded), columns = static_cast<size_t>(digits) + (weighted ? 1 : 0);
    whole_.resize(padded);
    bytes_.assign(pairs * columns * padded, 0);
    packed_.resize(pairs * columns * padded / 4);
    shift_.assign(pairs * static_cast<size_t>(digits), 0);
    factor_.assign(pairs, 0);
    value_norm_ = value_error_ = square_norm_ = square_error_ = factor_;
    slack_.assign(queries, 0);
    for (size_t q = 0; q < queries; ++q) {
        const RowTerms of = terms.query(static_cast<int64_t>(q));
        double slack = of.pairs * kSmallest;
        for (int j = 0; j < of.pairs; ++j) {
            const double size = terms.size(static_cast<int64_t>(q), j), lost = terms.lost(static_cast<int64_t>(q), j);
            pair(of, j, size, lost, digits, screen.bias, q * of_query + static_cast<size_t>(j));
            if (weighted) slack += size * (kRounding + 2 * of.pairs * kUnit) + 2 * lost;
        }
        slack_[q] = static_cast<float>(slack * kUp) + std::numeric_limits<float>::min();
    }
    const size_t most = static_cast<size_t>(screen.max_pairs[digits - 1][weighted]);
    const size_t groups = (pairs + most - 1) / most;
    for (size_t g = 0; g < groups; ++g) {
        const size_t start = pairs * g / groups, size = pairs * (g + 1) / groups - start;
        int32_t* to = &packed_[start * columns * padded / 4];
        groups_.push_back({to, &shift_[start * static_cast<size_t>(digits)], &factor_[start], &value_norm_[start],
                           &value_error_[start], &square_norm_[start], &square_error_[start], static_cast<int>(size),
                           static_cast<int>(padded), digits, weighted});
        for (size_t d = 0; d < padded; d += 4) {
            for (size_t c = start * columns; c < (start + size) * columns; ++c) {
                std::memcpy(to++, &bytes_[c * padded + d], sizeof *to);
            }
        }
    }
    bytes_ = {};
}

void ScreenTerms::keep_of_margins(const double* shares) {
    for (std::vector<float>* margins : {&value_norm_, &value_error_, &square_norm_, &square_error_}) {
        for (float& margin : *margins) margin = static_cast<float>(margin * *shares);
        ++shares;
    }
}

// x / unit as whole numbers into `whole_`, the largest of them `most`; the norms of x / unit and of what that leaves.
ScreenTerms::Whole ScreenTerms::whole_numbers(const float* x, int padded, int most) {
    constexpr int kLanes = 8;
    static_assert(kPad % kLanes == 0, "there is no remainder");
    const double peak = largest(x, padded), unit = peak > 0 ? peak / most : 1, per_unit = 1 / unit;
    double size2[kLanes] = {}, rest2[kLanes] = {};
    for (int d = 0; d < padded; d += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const double exact = static_cast<double>(x[d + i]) * per_unit, whole = whole_of(exact);
            whole_[static_cast<size_t>(d + i)] = whole;
            size2[i] += exact * exact;
            rest2[i] += (exact - whole) * (exact - whole);
        }
    }
    const auto root = [](const double* lanes) { return std::sqrt(std::accumulate(lanes, lanes + kLanes, 0.0)); };
    return {unit, root(size2), root(rest2)};
}

void ScreenTerms::pair(const RowTerms& of, int j, double size, double lost, int digits, int bias, size_t at) {
    const size_t padded = static_cast<size_t>(of.padded), columns = static_cast<size_t>(digits) + (of.w ? 1 : 0);
    const float* n = of.n + static_cast<size_t>(j) * padded;
    const float* w = of.w ? of.w + static_cast<size_t>(j) * padded : nullptr;
    int8_t* to = &bytes_[at * columns * padded];
    const int most_n = digits == 2 ? kMostByte * kDigit : kMostByte;
    const Whole numerator = whole_numbers(n, of.padded, most_n);
    const double dn = numerator.unit;
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < of.padded; ++i) {
        const double whole = whole_[static_cast<size_t>(i)];
        const double high = digits == 2 ? whole_of(whole * (1.0 / kDigit)) : whole;
        to[i] = static_cast<int8_t>(high);
        sums[0] += to[i];
        if (digits != 2) continue;
        to[padded + static_cast<size_t>(i)] = static_cast<int8_t>(whole - kDigit * high);
        sums[1] += to[padded + static_cast<size_t>(i)];
    }
    for (int d = 0; d < digits; ++d) shift_[at * static_cast<size_t>(digits) + static_cast<size_t>(d)] = bias * sums[d];
    double of_norm = numerator.rest, of_error = numerator.size, factor = static_cast<double>(of.factor[j]) * dn;
    if (w) {
        const Whole weight = whole_numbers(w, of.padded, kMostByte);
        int8_t* w_to = to + static_cast<size_t>(digits) * padded;
        for (int i = 0; i < of.padded; ++i) w_to[i] = static_cast<int8_t>(whole_[static_cast<size_t>(i)]);
        square_error_[at] = static_cast<float>(weight.size * kUp);
        square_norm_[at] = static_cast<float>((weight.rest + 0x1p-21 * weight.size) * kUp);
        factor *= std::sqrt(kPerSquare / weight.unit);
    } else {
        of_norm += (16 + of.pairs) * kUnit * numerator.size + lost / factor;
        of_error += lost / factor;
    }
    const double enlarged = (kEnlarged + 2 * of.pairs * kUnit) * kUp;
    const bool usable = std::isfinite(size) && factor >= 0x1p-60 && factor <= 0x1p+60;
    factor_[at] = usable ? static_cast<float>(factor) : std::numeric_limits<float>::quiet_NaN();
    value_norm_[at] = static_cast<float>(of_norm * enlarged);
    value_error_[at] = static_cast<float>(of_error * enlarged);
}

}  // namespace cir
