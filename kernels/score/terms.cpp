#include "terms.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace cir {

int padded_dimension(int dimension) { return (dimension + kPad - 1) / kPad * kPad; }

// In lanes, here and below, because one value after the other takes the processor's latency for each.
float largest(const float* x, int size) {
    constexpr int kLanes = 16;
    float lanes[kLanes] = {};
    for (int start = 0; start + kLanes <= size; start += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float value = std::fabs(x[start + i]);
            lanes[i] = value > lanes[i] ? value : lanes[i];
        }
    }
    float most = 0;
    for (float lane : lanes) most = std::max(most, lane);
    for (int i = size / kLanes * kLanes; i < size; ++i) most = std::max(most, std::fabs(x[i]));
    return most;
}

namespace {

// x * 2^-exponent, with the exponent even where `even`; and whether no bit was lost.
struct Scaled {
    int exponent;
    bool whole;
};

Scaled normalise(const float* x, int size, bool even, float* out) {
    const float most = largest(x, size);
    int exponent = most > 0 ? std::ilogb(most) : 0;
    if (even && exponent % 2 != 0) --exponent;
    const auto scale = [&](auto down, auto up) {
        int whole = 1;
        for (int i = 0; i < size; ++i) {
            out[i] = static_cast<float>(x[i] * down);
            whole &= out[i] * up == x[i];
        }
        return Scaled{exponent, whole != 0};
    };
    // Powers of two that float32 has: what is lost is lost below its range, as in float64.
    if (std::abs(exponent) <= 126) return scale(std::ldexp(1.0f, -exponent), std::ldexp(1.0f, exponent));
    return scale(std::ldexp(1.0, -exponent), std::ldexp(1.0, exponent));
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// | x / sqrt(w) |, infinite where a weight is 0 and x is not; | x | without weights.
template <class F>
double size_of(int size, const F& x, const float* w) {
    constexpr int kLanes = 8;
    double lanes[kLanes] = {};
    const auto add = [&](int i, int lane) {
        const double square = x(i) * x(i);
        lanes[lane] += square == 0 ? 0 : w ? square / static_cast<double>(w[i]) : square;
    };
    const int whole = size / kLanes * kLanes;
    for (int start = 0; start < whole; start += kLanes) {
        for (int i = 0; i < kLanes; ++i) add(start + i, i);
    }
    for (int i = whole; i < size; ++i) add(i, i - whole);
    double sum = 0;
    for (double lane : lanes) sum += lane;
    return std::sqrt(sum) * (1 + 1e-6);
}

float rounded_up(double x) {
    const float rounded = static_cast<float>(x);
    return static_cast<double>(rounded) >= x ? rounded : std::nextafter(rounded, std::numeric_limits<float>::infinity());
}

}  // namespace

PreparedTerms::PreparedTerms(const Query& query, int64_t first, int64_t count, int dimension)
    : count_(count),
      pairs_(query.terms),
      dimension_(dimension),
      padded_(padded_dimension(dimension)),
      weighted_(query.weights != nullptr) {
    const size_t total = static_cast<size_t>(count_) * static_cast<size_t>(pairs_);
    const size_t length = static_cast<size_t>(padded_);
    n_.assign(total * length, 0);
    factor_.assign(total, 0);
    size_.assign(total, 0);
    lost_.assign(total, 0);
    if (weighted_) w_.assign(total * length, 0);
    for (size_t pair = 0; pair < total; ++pair) {
        const size_t from = (static_cast<size_t>(first) * static_cast<size_t>(pairs_) + pair) *
                            static_cast<size_t>(dimension_);
        const float* n = query.numerators + from;
        const float* w = weighted_ ? query.weights + from : nullptr;
        const Scaled of_n = normalise(n, dimension_, false, &n_[pair * length]);
        int exponent = of_n.exponent;
        size_[pair] = size_of(dimension_, [&](int i) { return static_cast<double>(n[i]); }, w);
        if (!of_n.whole) {
            const float* scaled = &n_[pair * length];
            const double up = std::ldexp(1.0, exponent);
            lost_[pair] = size_of(dimension_, [&](int i) { return n[i] - scaled[i] * up; }, w);
        }
        if (weighted_) {
            float* scaled = &w_[pair * length];
            if (largest(w, dimension_) > 0) {
                const Scaled of_w = normalise(w, dimension_, true, scaled);
                exponent -= of_w.exponent / 2;
                // A row may live where the lost bits were: nothing bounds that.
                if (!of_w.whole) size_[pair] = kInfinity;
            } else {
                // No norm, hence 0 for every row that is finite: n = 0 over any other norm says so.
                std::fill(&n_[pair * length], &n_[pair * length] + dimension_, 0.0f);
                std::fill(scaled, scaled + dimension_, 1.0f);
                exponent = 0;
                size_[pair] = lost_[pair] = 0;
            }
        }
        factor_[pair] = std::ldexp(1.0f, exponent);
        if (!std::isnormal(factor_[pair])) size_[pair] = kInfinity;
    }
}

RowTerms PreparedTerms::query(int64_t i) const {
    const size_t pair = static_cast<size_t>(i) * static_cast<size_t>(pairs_);
    const size_t at = pair * static_cast<size_t>(padded_);
    return {&n_[at], weighted_ ? &w_[at] : nullptr, &factor_[pair], pairs_, dimension_, padded_};
}

PreparedTerms::Tiles PreparedTerms::tiles(const Kernels& kernels) const {
    const size_t total = static_cast<size_t>(count_) * static_cast<size_t>(pairs_);
    const size_t most = static_cast<size_t>(weighted_ ? kernels.max_pairs_weighted : kernels.max_pairs_plain);
    const size_t columns = weighted_ ? 2 : 1, length = static_cast<size_t>(padded_);
    Tiles out;
    out.packed.resize(total * columns * static_cast<size_t>(dimension_));
    // Groups of nearly the same size: the last would otherwise leave most accumulators idle.
    const size_t groups = (total + most - 1) / most;
    size_t written = 0;
    for (size_t g = 0; g < groups; ++g) {
        const size_t start = total * g / groups, size = total * (g + 1) / groups - start;
        float* to = &out.packed[written];
        for (size_t d = 0; d < static_cast<size_t>(dimension_); ++d) {
            for (size_t p = 0; p < size; ++p) {
                out.packed[written++] = n_[(start + p) * length + d];
                if (weighted_) out.packed[written++] = w_[(start + p) * length + d];
            }
        }
        out.groups.push_back({to, &factor_[start], static_cast<int>(size), dimension_, weighted_});
    }
    return out;
}

Rounding PreparedTerms::rounding(int64_t i, bool tiled) const {
    constexpr double kUnit = 0x1p-24;
    // Roundings that a product passes on its way into the sum, and a few for squares, scales and the term itself.
    const double steps = (tiled ? dimension_ : (dimension_ + 3) / 4) + 8;
    const double sum = steps * kUnit / (1 - steps * kUnit);
    const double rest = (pairs_ + 14) * kUnit + dimension_ * 0x1p-47;
    double size = 0, lost = 0;
    for (size_t j = 0; j < static_cast<size_t>(pairs_); ++j) {
        size += size_[static_cast<size_t>(i) * static_cast<size_t>(pairs_) + j];
        lost += lost_[static_cast<size_t>(i) * static_cast<size_t>(pairs_) + j];
    }
    if (weighted_) return {rounded_up(size * (2 * sum + rest) + 2 * lost + pairs_ * 0x1p-146), 0};
    const double per_reach = 1.2 * (size * (sum + rest) + lost);
    return {rounded_up(std::isfinite(size) ? pairs_ * (dimension_ * 0x1p-138) : kInfinity), rounded_up(per_reach)};
}

}  // namespace cir
