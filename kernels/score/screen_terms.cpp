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
constexpr int kMostWhole = kMostByte * kDigit;

// A value is a peak beyond so many root mean squares, or more, so that one in kPeakEvery is: a sixty-fourth of the products
// of n' more. Their sums times 128 have to fit into 32 bits.
constexpr double kPeak = 2;
constexpr int kPeakEvery = 64, kMostPeaks = 8;
// No value is beyond sqrt(m) root mean squares, so a peak is at most kDigit times the largest other value, and fits a byte.
static_assert(kMostScreened <= kPeak * kPeak * kDigit * kDigit, "a byte holds the largest peak");

constexpr int kLanes = 8;
static_assert(kPad % kLanes == 0, "there is no remainder");

double sum_of(const double* lanes) { return std::accumulate(lanes, lanes + kLanes, 0.0); }

int count_above(const float* x, int size, float limit) {
    int count = 0;
    for (int i = 0; i < size; ++i) count += std::fabs(x[i]) > limit;
    return count;
}

// The largest value that is no peak.
double without_peaks(const float* x, int size) {
    const double most = static_cast<double>(largest(x, size));
    double squares[kLanes] = {};
    for (int d = 0; d < size; d += kLanes) {
        for (int i = 0; i < kLanes; ++i) squares[i] += static_cast<double>(x[d + i]) * static_cast<double>(x[d + i]);
    }
    const int peaks = std::min(size / kPeakEvery, kMostPeaks);
    double limit = kPeak * std::sqrt(sum_of(squares) / size);
    while (limit < most && count_above(x, size, static_cast<float>(limit)) > peaks) limit *= 1.25;
    return limit < most ? limit : most;
}

// To the nearest whole number, for |x| < 2^51, in two additions that a compiler vectorises.
inline double whole_of(double x) {
    constexpr double kShift = 0x1.8p52;
    return (x + kShift) - kShift;
}

}  // namespace

void add_lost(const Copy& copy, const ByteRows& rows, int count) {
    const float norm = static_cast<float>(copy.error_norm * kEnlarged);
    const float largest_square = static_cast<float>(copy.error_max * kPerSquare * kEnlarged);
    for (int r = 0; r < count; ++r) {
        if (rows.squares) rows.square_error[r] += largest_square * (2 * rows.value_norm[r] + norm);
        rows.value_error[r] += norm;
    }
}

ScreenTerms::ScreenTerms(const PreparedTerms& terms, const Screen& screen)
    : screen_(&screen), of_query_(static_cast<size_t>(terms.query(0).pairs)), padded_(static_cast<size_t>(terms.query(0).padded)),
      pairs_(static_cast<size_t>(terms.count()) * of_query_), weighted_(terms.query(0).w != nullptr) {
    whole_.resize(padded_);
    rest_.resize(padded_);
    first_.resize(pairs_ * padded_);
    second_.resize(pairs_ * padded_);
    if (weighted_) weights_.resize(pairs_ * padded_);
    by_row_.resize(pairs_ * padded_);
    by_row_shift_.resize(pairs_);
    square_norm_.resize(pairs_);
    square_error_.resize(pairs_);
    less_.resize(pairs_);
    slack_.resize(static_cast<size_t>(terms.count()));
    for (size_t digits : {1, 2}) {
        Form& form = forms_[digits - 1];
        form.shift.resize(pairs_ * digits);
        form.factor.resize(pairs_);
        form.value_norm.resize(pairs_);
        form.value_error.resize(pairs_);
    }
    for (size_t q = 0; q < slack_.size(); ++q) {
        const RowTerms of = terms.query(static_cast<int64_t>(q));
        double slack = of.pairs * kSmallest;
        for (int j = 0; j < of.pairs; ++j) {
            const double size = terms.size(static_cast<int64_t>(q), j), lost = terms.lost(static_cast<int64_t>(q), j);
            pair(of, j, size, lost, q * of_query_ + static_cast<size_t>(j));
            if (weighted_) slack += size * (kRounding + 2 * of.pairs * kUnit) + 2 * lost;
        }
        slack_[q] = static_cast<float>(slack * kUp) + std::numeric_limits<float>::min();
    }
    first_peak_.push_back(static_cast<int32_t>(peaks_.size()));
    for (int digits : {1, 2}) pack(digits);
    whole_ = rest_ = {};
    first_ = second_ = weights_ = {};
}

void ScreenTerms::pack(int digits) {
    Form& form = forms_[digits - 1];
    const size_t columns = static_cast<size_t>(digits) + (weighted_ ? 1 : 0);
    const int8_t* column[3] = {first_.data(), digits == 2 ? second_.data() : weights_.data(), weights_.data()};
    form.packed.resize(pairs_ * columns * padded_ / 4);
    const size_t most = static_cast<size_t>(screen_->max_pairs[digits - 1][weighted_]);
    const size_t groups = (pairs_ + most - 1) / most, together = static_cast<size_t>(screen_->term_bytes);
    for (size_t g = 0; g < groups; ++g) {
        const size_t start = pairs_ * g / groups, end = pairs_ * (g + 1) / groups;
        int32_t* to = &form.packed[start * columns * padded_ / 4];
        form.groups.push_back({to, &form.shift[start * static_cast<size_t>(digits)], peaks_.data(), &first_peak_[start],
                               &form.factor[start], &form.value_norm[start], &form.value_error[start], &square_norm_[start],
                               &square_error_[start], static_cast<int>(end - start), static_cast<int>(padded_), digits,
                               weighted_});
        for (size_t d = 0; d < padded_; d += together) {
            for (size_t p = start; p < end; ++p) {
                for (size_t c = 0; c < columns; ++c) {
                    const int8_t* from = column[c] + p * padded_ + d;
                    for (size_t i = 0; i < together; i += sizeof *to) std::memcpy(to++, from + i, sizeof *to);
                }
            }
        }
    }
}

SecondDigits ScreenTerms::second(size_t query) const {
    const size_t at = query * of_query_;
    return {&by_row_[at * padded_],  &by_row_shift_[at],          &less_[at],
            &forms_[0].factor[at], static_cast<int>(of_query_), static_cast<int>(padded_)};
}

void ScreenTerms::keep_of_margins(const double* shares) {
    for (std::vector<float>* margins : {&forms_[0].value_norm, &forms_[0].value_error, &square_norm_, &square_error_}) {
        for (float& margin : *margins) margin = static_cast<float>(margin * *shares);
        ++shares;
    }
    shares -= 4;
    for (std::vector<float>* margins : {&forms_[1].value_norm, &forms_[1].value_error}) {
        for (float& margin : *margins) margin = static_cast<float>(margin * *shares);
        ++shares;
    }
}

// x / unit as whole numbers into `whole_`, and what that leaves into `rest_`; the norms of x / unit and of the rest.
ScreenTerms::Whole ScreenTerms::whole_numbers(const float* x, int padded, double unit) {
    if (!(unit > 0)) unit = 1;
    const double per_unit = 1 / unit;
    double size2[kLanes] = {}, rest2[kLanes] = {};
    for (int d = 0; d < padded; d += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const double exact = static_cast<double>(x[d + i]) * per_unit, whole = whole_of(exact), rest = exact - whole;
            whole_[static_cast<size_t>(d + i)] = whole;
            rest_[static_cast<size_t>(d + i)] = rest;
            size2[i] += exact * exact;
            rest2[i] += rest * rest;
        }
    }
    return {unit, std::sqrt(sum_of(size2)), std::sqrt(sum_of(rest2))};
}

// What two digits do not hold of `whole_`, into `peaks_`.
void ScreenTerms::take_peaks(int padded) {
    constexpr double kHigh = kDigit * kDigit;
    for (int d = 0; d < padded; d += 4) {
        double* whole = &whole_[static_cast<size_t>(d)];
        int8_t high[4] = {0, 0, 0, 0};
        bool any = false;
        for (int i = 0; i < 4; ++i) {
            if (!(std::fabs(whole[i]) > kMostWhole)) continue;
            high[i] = static_cast<int8_t>(whole_of(whole[i] / kHigh));
            whole[i] -= kHigh * high[i];
            any = true;
        }
        if (!any) continue;
        peaks_.push_back({d / 4, 0});
        std::memcpy(&peaks_.back().bytes, high, sizeof high);
    }
}

void ScreenTerms::pair(const RowTerms& of, int j, double size, double lost, size_t at) {
    const size_t padded = padded_;
    const float* n = of.n + static_cast<size_t>(j) * padded;
    const float* w = of.w ? of.w + static_cast<size_t>(j) * padded : nullptr;
    // In units of the second digit.
    const Whole numerator = whole_numbers(n, of.padded, without_peaks(n, of.padded) / kMostWhole);
    first_peak_.push_back(static_cast<int32_t>(peaks_.size()));
    take_peaks(of.padded);
    int32_t sums[2] = {0, 0};
    double left2[kLanes] = {};  // by the first digit
    int8_t *first = &first_[at * padded], *second = &second_[at * padded];
    for (size_t d = 0; d < padded; d += kLanes) {
        for (size_t i = 0; i < kLanes; ++i) {
            const double high = whole_of(whole_[d + i] * (1.0 / kDigit)), low = whole_[d + i] - kDigit * high;
            first[d + i] = static_cast<int8_t>(static_cast<int>(high));
            second[d + i] = static_cast<int8_t>(static_cast<int>(low));
            sums[0] += static_cast<int>(high);
            sums[1] += static_cast<int>(low);
            left2[i] += (low + rest_[d + i]) * (low + rest_[d + i]);
        }
    }
    for (size_t p = static_cast<size_t>(first_peak_[at]); p < peaks_.size(); ++p) {
        int8_t high[4];
        std::memcpy(high, &peaks_[p].bytes, sizeof high);
        sums[0] += kDigit * (high[0] + high[1] + high[2] + high[3]);
    }
    for (size_t d = 0; d < padded; d += 4) {
        const int place = place_in_row(static_cast<int>(d), screen_->width);
        std::memcpy(&by_row_[at * padded + static_cast<size_t>(place)], second + d, 4);
    }
    const double left = std::sqrt(sum_of(left2)) / kDigit;
    const Whole in_digits[2] = {{numerator.unit * kDigit, numerator.size / kDigit, left}, numerator};
    less_[at] = static_cast<float>((left - numerator.rest / kDigit) / kUp);
    by_row_shift_[at] = screen_->bias * sums[1];
    forms_[0].shift[at] = forms_[1].shift[2 * at] = screen_->bias * sums[0];
    forms_[1].shift[2 * at + 1] = screen_->bias * sums[1];

    double per_weight = 1;
    if (w) {
        const Whole weight = whole_numbers(w, of.padded, static_cast<double>(largest(w, of.padded)) / kMostByte);
        for (size_t d = 0; d < padded; ++d) weights_[at * padded + d] = static_cast<int8_t>(static_cast<int>(whole_[d]));
        square_error_[at] = static_cast<float>(weight.size * kUp);
        square_norm_[at] = static_cast<float>((weight.rest + 0x1p-21 * weight.size) * kUp);
        per_weight = std::sqrt(kPerSquare / weight.unit);
    }
    const double enlarged = (kEnlarged + 2 * of.pairs * kUnit) * kUp;
    for (size_t i = 0; i < 2; ++i) {
        const double factor = static_cast<double>(of.factor[j]) * in_digits[i].unit * per_weight;
        double of_norm = in_digits[i].rest, of_error = in_digits[i].size;
        if (!w) {
            of_norm += (16 + of.pairs) * kUnit * in_digits[i].size + lost / factor;
            of_error += lost / factor;
        }
        const bool usable = std::isfinite(size) && factor >= 0x1p-60 && factor <= 0x1p+60;
        forms_[i].factor[at] = usable ? static_cast<float>(factor) : std::numeric_limits<float>::quiet_NaN();
        forms_[i].value_norm[at] = static_cast<float>(of_norm * enlarged);
        forms_[i].value_error[at] = static_cast<float>(of_error * enlarged);
    }
}

}  // namespace cir
