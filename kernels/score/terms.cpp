#include "terms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace cir {

int padded_dimension(int dimension) { return (dimension + kPad - 1) / kPad * kPad; }

namespace {

float largest(const float* x, int size) {
    float most = 0;
    for (int i = 0; i < size; ++i) most = std::max(most, std::fabs(x[i]));
    return most;
}

// x * 2^-exponent, with the exponent even where `even`.
int normalise(const float* x, int size, bool even, float* out) {
    const float most = largest(x, size);
    int exponent = most > 0 ? std::ilogb(most) : 0;
    if (even && exponent % 2 != 0) --exponent;
    for (int i = 0; i < size; ++i) out[i] = std::ldexp(x[i], -exponent);
    return exponent;
}

float half_value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value;
    if (exponent == 31) {
        value = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    } else if (exponent == 0) {
        value = std::ldexp(static_cast<float>(fraction), -24);
    } else {
        value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    }
    return bits & 0x8000 ? -value : value;
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
    if (weighted_) w_.assign(total * length, 0);
    for (size_t pair = 0; pair < total; ++pair) {
        const size_t from = (static_cast<size_t>(first) * static_cast<size_t>(pairs_) + pair) *
                            static_cast<size_t>(dimension_);
        int exponent = normalise(query.numerators + from, dimension_, false, &n_[pair * length]);
        if (weighted_) {
            float* w = &w_[pair * length];
            if (largest(query.weights + from, dimension_) > 0) {
                exponent -= normalise(query.weights + from, dimension_, true, w) / 2;
            } else {
                // No norm, hence 0 for every row that is finite: n = 0 over any other norm says so.
                std::fill(&n_[pair * length], &n_[pair * length] + dimension_, 0.0f);
                std::fill(w, w + dimension_, 1.0f);
                exponent = 0;
            }
        }
        factor_[pair] = std::ldexp(1.0f, exponent);
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

double careful_term(const void* row, RowType type, float scale, const float* n, const float* w, int dimension) {
    double product = 0, squared = 0;
    bool finite = true;
    for (int i = 0; i < dimension; ++i) {
        double t;
        if (type == kFloat32) {
            t = static_cast<const float*>(row)[i];
        } else if (type == kFloat16) {
            t = half_value(static_cast<const uint16_t*>(row)[i]);
        } else {
            // Rounded to float32, as a row that is taken from the gallery.
            t = static_cast<float>(static_cast<const int8_t*>(row)[i]) * scale;
        }
        finite = finite && std::isfinite(t);
        product += n[i] * t;
        if (w) squared += w[i] * (t * t);
    }
    if (!finite) return std::numeric_limits<double>::quiet_NaN();
    if (!w) return product;
    return squared > 0 ? product / std::sqrt(squared) : 0;
}

}  // namespace cir
