// The int8 copy of a gallery, and what it loses.
#include <algorithm>
#include <cmath>
#include <limits>

#include "chunks.h"
#include "parallel.h"

namespace cir {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUnit = 1.0 / (1 << 24);  // float32 rounds by at most so much of a value

void widen_error(double& most, double value) { most = std::max(most, value); }

// | x - mean(x) | from sum x and sum x^2; their difference is rounded in double, hence the last summand.
double deviation(double sum, double squares, int size) {
    return std::sqrt(std::max(squares - sum * sum / size, 0.0) + squares * 1e-9);
}

// Copies one row and measures what the copy loses.
void quantise(const float* row, int dimension, int8_t* out, float* scale, Int8Index::Errors& errors) {
    float most = 0;
    bool finite = true;
    for (int i = 0; i < dimension; ++i) {
        most = std::max(most, std::fabs(row[i]));
        finite = finite && std::isfinite(row[i]);
    }
    if (!finite || most == 0) {
        // Scores 0, or does not rank: the bound of such a row is 0.
        std::fill(out, out + dimension, int8_t{0});
        *scale = 0;
        return;
    }
    double unit = static_cast<double>(most) / 127;
    // Without weights the bound needs the scale in float32; NaN sends the row to the list.
    const bool ordinary = unit > 1e-30 && unit < 1e30;
    if (ordinary) unit = static_cast<float>(unit);
    *scale = ordinary ? static_cast<float>(unit) : std::numeric_limits<float>::quiet_NaN();
    const double inverse = 1 / unit;
    double e2 = 0, e4 = 0, q2 = 0, q4 = 0, e_max = 0;
    for (int i = 0; i < dimension; ++i) {
        const double exact = row[i] * inverse;
        const double q = std::clamp(std::nearbyint(exact), -127.0, 127.0);
        const double e = exact - q;
        out[i] = static_cast<int8_t>(q);
        e2 += e * e;
        e4 += e * e * e * e;
        q2 += q * q;
        q4 += q * q * q * q;
        e_max = std::max(e_max, std::fabs(e));
    }
    const double up = 1 + 1e-9;
    widen_error(errors.error_norm2, e2 * up);
    widen_error(errors.error_max, e_max * up);
    widen_error(errors.norm2, q2);
    widen_error(errors.error_spread, deviation(e2, e4, dimension));
    widen_error(errors.square_spread, deviation(q2, q4, dimension));
}

Int8Index::Errors worst(const Int8Index::Errors& a, const Int8Index::Errors& b) {
    return {std::max(a.error_norm2, b.error_norm2), std::max(a.error_spread, b.error_spread),
            std::max(a.error_max, b.error_max), std::max(a.norm2, b.norm2),
            std::max(a.square_spread, b.square_spread)};
}

}  // namespace

Int8Index::Int8Index(const Gallery& gallery, const Options& options) : gallery_(gallery) {
    const Kernels* kernels = options.kernels;
    copy_.type = kInt8;
    copy_.dimension = gallery.dimension;
    copy_.vectors = gallery.vectors;
    const Gallery flat = gallery.flat();
    const size_t length = static_cast<size_t>(gallery.dimension);
    for (const Block& block : gallery.blocks) {
        const size_t count = static_cast<size_t>(block.count) * static_cast<size_t>(gallery.vectors);
        if (gallery.type == kInt8) {
            copy_.blocks.push_back(block);
            continue;
        }
        values_.push_back(large_array<int8_t>(count * length));
        scales_.push_back(large_array<float>(count));
        copy_.blocks.push_back({values_.back().get(), scales_.back().get(), block.count});
    }
    const int threads = useful_threads(options.threads, static_cast<double>(flat.count()) * gallery.dimension);
    std::vector<Errors> errors(static_cast<size_t>(threads), Errors{});
    std::vector<std::vector<float>> row(static_cast<size_t>(threads), std::vector<float>(length));
    Chunks chunks(flat, 1024);
    Watch watch(options);
    in_parallel(threads, [&](int thread) {
        Errors& mine = errors[static_cast<size_t>(thread)];
        float* values = row[static_cast<size_t>(thread)].data();
        for (Chunk chunk; !watch.stopped(thread) && chunks.next(chunk);) {
            const size_t b = static_cast<size_t>(chunk.block - flat.blocks.data());
            for (int64_t i = chunk.start; i < chunk.start + chunk.count; ++i) {
                kernels->widen[gallery.type](row_address(flat, *chunk.block, i),
                                             gallery.dimension, values);
                if (gallery.type == kInt8) {
                    double q2 = 0, q4 = 0;
                    for (size_t d = 0; d < length; ++d) {
                        const double squared = static_cast<double>(values[d]) * values[d];
                        q2 += squared;
                        q4 += squared * squared;
                    }
                    // A row is float32(q * scale): q up to one rounding. A scale that is not an ordinary positive
                    // number has no such bound.
                    const float scale = chunk.block->scales[i];
                    if (q2 == 0) continue;
                    const double unknown = scale > 1e-30f && scale < 1e30f ? 0 : static_cast<double>(kInfinity);
                    mine = worst(mine, {q2 * kUnit * kUnit + unknown, std::sqrt(q4) * kUnit * kUnit,
                                        128 * kUnit + unknown, q2, deviation(q2, q4, gallery.dimension)});
                } else {
                    quantise(values, gallery.dimension, &values_[b][static_cast<size_t>(i) * length],
                             &scales_[b][static_cast<size_t>(i)], mine);
                }
            }
        }
    });
    watch.check();
    for (const Errors& each : errors) errors_ = worst(errors_, each);
}

int64_t Int8Index::bytes() const {
    int64_t bytes = 0;
    if (!values_.empty()) {
        for (const Block& block : copy_.blocks) bytes += block.count * gallery_.vectors * (gallery_.dimension + 4);
    }
    return bytes;
}

}  // namespace cir
