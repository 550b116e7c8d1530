#include "integer_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "terms.h"

namespace cir {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);  // float32 rounds by at most so much of a value
constexpr double kUp = 1 + 1e-6;            // the constants themselves are rounded
constexpr double kSmallest = 0x1p-146;      // more than underflow costs a term and its bound

struct Spread {
    double mean, deviation;  // deviation = | x - mean |
};

template <class F>
Spread spread(int size, const F& value) {
    double sum = 0;
    for (int i = 0; i < size; ++i) sum += value(i);
    const double mean = sum / size;
    double squared = 0;
    for (int i = 0; i < size; ++i) squared += (value(i) - mean) * (value(i) - mean);
    return {mean, std::sqrt(squared)};
}

// sum x_i y_i <= for y >= 0 known by its sum, its deviation and nothing else.
double centred(const Spread& x, double y_sum, double y_deviation) {
    return x.mean * y_sum + x.deviation * y_deviation;
}

void weighted_term(const float* n, const float* w, int size, int n_most, int w_most, const Int8Index::Errors& errors,
                   int pairs, size_t j, size_t padded, IntegerTerms& out) {
    double n_max = 0, w_max = 0, m2 = 0, w_sum = 0;
    for (int i = 0; i < size; ++i) {
        n_max = std::max(n_max, std::fabs(static_cast<double>(n[i])));
        w_max = std::max(w_max, static_cast<double>(w[i]));
        w_sum += w[i];
        if (n[i] != 0) m2 += static_cast<double>(n[i]) * n[i] / w[i];
    }
    int16_t* n_out = &out.n[j * padded];
    int16_t* w_out = &out.w[j * padded];
    if (n_max == 0 || w_max == 0) {
        // The term is 0 for every row.
        std::fill(w_out, w_out + size, int16_t{1});
        out.factor[j] = out.margin[j] = out.doubt[j] = out.least[j] = 0;
        return;
    }
    const double m = std::sqrt(m2), dn = n_max / n_most, dw = w_max / w_most;
    const auto n_error = [&](int i) { return n[i] - n_out[i] * dn; };
    const auto w_error = [&](int i) { return w[i] - w_out[i] * dw; };
    double n_error2 = 0, w_error_max = 0;
    for (int i = 0; i < size; ++i) {
        n_out[i] = static_cast<int16_t>(std::lrint(n[i] / dn));
        w_out[i] = static_cast<int16_t>(std::lrint(w[i] / dw));
        n_error2 += n_error(i) * n_error(i);
        w_error_max = std::max(w_error_max, std::fabs(w_error(i)));
    }
    const Spread w_spread = spread(size, [&](int i) { return static_cast<double>(w[i]); });
    Spread w_error_spread = spread(size, w_error);
    w_error_spread.mean = std::fabs(w_error_spread.mean);
    const double moved2 = std::min({centred(w_spread, errors.error_norm2, errors.error_spread),
                                    w_max * errors.error_norm2, w_sum * errors.error_max * errors.error_max});
    const double d = std::min(centred(w_error_spread, errors.norm2, errors.square_spread), w_error_max * errors.norm2);
    out.factor[j] = static_cast<float>(dn / std::sqrt(dw));
    const double margin = std::sqrt(n_error2 * errors.norm2) + 1.0081 * m * std::sqrt(moved2);
    out.margin[j] = static_cast<float>(margin / dn * (kUp + 2 * pairs * kUnit));
    out.doubt[j] = static_cast<float>(d / dw * kUp);
    out.least[j] = static_cast<float>((16 * moved2 + 2 * d) / dw * kUp);
    out.slack += m * (size / 2 + 128 + 2 * pairs) * kUnit + kSmallest;
    out.usable = out.usable && std::isfinite(m) && std::isnormal(out.factor[j]) && std::isfinite(out.margin[j]) &&
                 std::isfinite(out.doubt[j]) && std::isfinite(out.least[j]);
}

void plain_term(const float* n, int size, int n_most, const Int8Index::Errors& errors, int pairs, size_t j,
                size_t padded, IntegerTerms& out) {
    double n_max = 0, n_error2 = 0, n2 = 0;
    for (int i = 0; i < size; ++i) n_max = std::max(n_max, std::fabs(static_cast<double>(n[i])));
    if (n_max == 0) {
        out.factor[j] = out.margin[j] = 0;
        return;
    }
    const double dn = n_max / n_most;
    for (int i = 0; i < size; ++i) {
        const double rounded = std::rint(n[i] / dn);
        out.n[j * padded + static_cast<size_t>(i)] = static_cast<int16_t>(rounded);
        n_error2 += (n[i] - rounded * dn) * (n[i] - rounded * dn);
        n2 += static_cast<double>(n[i]) * n[i];
    }
    const double rounding = (size / 2 + 128 + pairs) * kUnit * (std::sqrt(errors.norm2) + std::sqrt(errors.error_norm2));
    const double margin =
        std::sqrt(n_error2 * errors.norm2) + std::sqrt(n2) * (std::sqrt(errors.error_norm2) + rounding);
    out.factor[j] = static_cast<float>(dn);
    out.margin[j] = static_cast<float>(margin / dn * (kUp + 2 * pairs * kUnit));
    out.slack += kSmallest;
    // A row's scale is within 1e-30 and 1e30, or it has no bound; then no product leaves float32's range unnoticed.
    out.usable = out.usable && dn >= 0x1p-64 && dn <= 0x1p+64 && std::isfinite(out.margin[j]);
}

}  // namespace

IntegerTerms integer_terms(const Query& query, int64_t q, int dimension, const Int8Index::Errors& errors,
                           const Kernels& kernels) {
    const size_t padded = static_cast<size_t>(padded_dimension(dimension));
    const size_t pairs = static_cast<size_t>(query.terms), length = static_cast<size_t>(dimension);
    IntegerTerms out;
    out.n.assign(pairs * padded, 0);
    if (query.weights) out.w.assign(pairs * padded, 0);
    out.factor.assign(pairs, 0);
    out.margin = out.doubt = out.least = out.factor;
    // No lane of the kernel's 32-bit sums may overflow, whatever the row.
    const int64_t in_lane = static_cast<int64_t>(padded) / kernels.integer_lanes;
    const int64_t most = std::numeric_limits<int32_t>::max();
    const int n_most = static_cast<int>(std::min<int64_t>(32767, most / (128 * in_lane)));
    const int w_most = static_cast<int>(std::min<int64_t>(32767, most / (128 * 128 * in_lane)));
    out.usable = w_most >= 16;
    for (size_t j = 0; j < pairs && out.usable; ++j) {
        const size_t at = (static_cast<size_t>(q) * pairs + j) * length;
        if (query.weights) {
            weighted_term(query.numerators + at, query.weights + at, dimension, n_most, w_most, errors,
                          query.terms, j, padded, out);
        } else {
            plain_term(query.numerators + at, dimension, n_most, errors, query.terms, j, padded, out);
        }
    }
    out.view = {out.n.data(),         query.weights ? out.w.data() : nullptr, out.factor.data(), out.margin.data(),
                out.doubt.data(), out.least.data(), query.terms, dimension, static_cast<int>(padded)};
    return out;
}

}  // namespace cir
