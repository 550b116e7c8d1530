// Exact top-k from int8 rows: upper bounds in one scan of the copy, a short list re-scored in the gallery, and a proof
// that no row outside the list can belong to the answer.
//
// A row is t = scale * (q + e) with integers q and an error e of which `Errors` tells the largest norms. A weighted
// term does not change with the scale. With A = sqrt(w) and M = | n / A |, it is M times the cosine between n / A and
// A o (q + e); moving the second vector by A o e turns it by at most asin(rho), rho = | A o e | / | A o q |, and so
// moves the term by at most M * 2 sin(asin(rho) / 2) <= 1.0081 * M * rho for rho <= 1/4. Nothing is first order.
//
//   | A o e |^2 = sum w e^2 <= mean(w) sum e^2 + | w - mean(w) | * | e^2 - mean(e^2) |       (Cauchy-Schwarz, centred)
//
// n and w are themselves rounded to integers n', w' (units d_n, d_w):
//
//   | (n - n') . q | <= | n - n' | * | q |           | (w - w') . q^2 | <= the same centred bound =: D
//
// So the true term is at most T / sqrt(w' . q^2 -+ D), the sign that of T, with
//
//   T = n' . q  +  | n - n' | | q |  +  1.0081 M | A o e |
//
// which costs the scan two additions a row and term. Rounding in float32, of the bounds and of the scores that they
// are compared with, is covered by `slack`.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "hits.h"
#include "parallel.h"
#include "rescore.h"
#include "terms.h"

namespace cir {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUnit = 1.0 / (1 << 24);  // float32 rounds by at most so much of a value
constexpr int64_t kQueryBlock = 64;

// The first list: on the hardest data measured (README.md) it is long enough for every query.
int64_t first_list(int64_t k) { return 4 * k + 64; }
// An extension grows it by this factor, and beyond this share of the gallery a plain scan is cheaper.
constexpr int64_t kGrowth = 4, kShare = 8;

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

// J terms of a query in integers, and what they prove.
struct IntegerTerms {
    LineVector<int16_t> n, w;
    std::vector<float> factor, margin, doubt, least;
    double slack = 0;
    bool usable = true;
    BoundTerms view{};
};

void weighted_term(const float* n, const float* w, int size, int n_most, int w_most, const Int8Index::Errors& errors,
                   size_t j, size_t padded, IntegerTerms& out) {
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
    const double up = 1 + 1e-6;  // the constants themselves are rounded
    out.factor[j] = static_cast<float>(dn / std::sqrt(dw));
    const double margin = std::sqrt(n_error2 * errors.norm2) + 1.0081 * m * std::sqrt(moved2);
    out.margin[j] = static_cast<float>(margin / dn * up);
    out.doubt[j] = static_cast<float>(d / dw * up);
    out.least[j] = static_cast<float>((16 * moved2 + 2 * d) / dw * up);
    out.slack += m * (size / 2 + 128) * kUnit;
    out.usable = out.usable && std::isfinite(m) && std::isnormal(out.factor[j]) && std::isfinite(out.margin[j]) &&
                 std::isfinite(out.doubt[j]) && std::isfinite(out.least[j]);
}

void plain_term(const float* n, int size, int n_most, const Int8Index::Errors& errors, size_t j, size_t padded,
                IntegerTerms& out) {
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
    const double rounding = (size / 2 + 128) * kUnit * (std::sqrt(errors.norm2) + std::sqrt(errors.error_norm2));
    const double margin =
        std::sqrt(n_error2 * errors.norm2) + std::sqrt(n2) * (std::sqrt(errors.error_norm2) + rounding);
    out.factor[j] = static_cast<float>(dn);
    out.margin[j] = static_cast<float>(margin / dn * (1 + 1e-6));
    out.usable = out.usable && std::isnormal(out.factor[j]) && std::isfinite(out.margin[j]);
}

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
            weighted_term(query.numerators + at, query.weights + at, dimension, n_most, w_most, errors, j, padded,
                          out);
        } else {
            plain_term(query.numerators + at, dimension, n_most, errors, j, padded, out);
        }
    }
    out.view = {out.n.data(),         query.weights ? out.w.data() : nullptr, out.factor.data(), out.margin.data(),
                out.doubt.data(), out.least.data(), query.terms, dimension, static_cast<int>(padded)};
    return out;
}

bool all_zero(const int8_t* row, int dimension) {
    return std::all_of(row, row + dimension, [](int8_t x) { return x == 0; });
}

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

Int8Index::Int8Index(const Gallery& gallery, int threads, const Kernels* kernels) : gallery_(gallery) {
    copy_.type = kInt8;
    copy_.dimension = gallery.dimension;
    const size_t length = static_cast<size_t>(gallery.dimension);
    for (const Block& block : gallery.blocks) {
        const size_t count = static_cast<size_t>(block.count);
        if (gallery.type == kInt8) {
            copy_.blocks.push_back(block);
            continue;
        }
        values_.push_back(large_array<int8_t>(count * length));
        scales_.push_back(large_array<float>(count));
        copy_.blocks.push_back({values_.back().get(), scales_.back().get(), block.count});
    }
    threads = useful_threads(threads, static_cast<double>(gallery.count()) * gallery.dimension);
    std::vector<Errors> errors(static_cast<size_t>(threads), Errors{});
    std::vector<std::vector<float>> row(static_cast<size_t>(threads), std::vector<float>(length));
    Chunks chunks(gallery, 1024);
    in_parallel(threads, [&](int thread) {
        Errors& mine = errors[static_cast<size_t>(thread)];
        float* values = row[static_cast<size_t>(thread)].data();
        for (Chunk chunk; chunks.next(chunk);) {
            const size_t b = static_cast<size_t>(chunk.block - gallery.blocks.data());
            for (int64_t i = chunk.start; i < chunk.start + chunk.count; ++i) {
                kernels->widen[gallery.type](row_address(*chunk.block, gallery.type, gallery.dimension, i),
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
    for (const Errors& each : errors) errors_ = worst(errors_, each);
}

// One pass over the copy for a block of queries.
struct Int8Index::Scan {
    struct Workspace {
        std::vector<int32_t> index;
        std::vector<float> bounds;
        std::vector<Hit> hits;
        std::vector<HitList> lists;
    };

    const Gallery& copy;
    const Options& options;
    int threads, chunk;
    std::vector<Workspace> work;
    std::vector<Hit> merged;
    int64_t room;

    Scan(const Gallery& copy, const Options& options, size_t queries, int64_t list, int64_t rows, int terms,
         float threshold)
        : copy(copy), options(options), room(HitList::room(list, rows)) {
        threads = useful_threads(options.threads, static_cast<double>(rows) * copy.dimension * terms *
                                                      static_cast<double>(queries));
        // Several queries pass over a chunk: it has to stay in the first-level cache, or nearly.
        chunk = std::min(chunk_rows(copy, threads), queries > 1 ? 128 : std::numeric_limits<int>::max());
        work.resize(static_cast<size_t>(threads));
        for (Workspace& w : work) {
            w.index.resize(static_cast<size_t>(chunk));
            std::iota(w.index.begin(), w.index.end(), 0);
            w.bounds.resize(static_cast<size_t>(chunk));
            w.hits.resize(queries * static_cast<size_t>(room));
            w.lists.resize(queries);
            for (size_t q = 0; q < queries; ++q) {
                w.lists[q].hits = &w.hits[q * static_cast<size_t>(room)];
                w.lists[q].k = list;
                w.lists[q].capacity = room;
                w.lists[q].threshold = threshold;
            }
        }
        merged.resize(static_cast<size_t>(room) * work.size());
    }

    void run(const std::vector<IntegerTerms>& terms) {
        Chunks chunks(copy, chunk);
        in_parallel(threads, [&](int thread) {
            Workspace& w = work[static_cast<size_t>(thread)];
            for (Chunk at; chunks.next(at);) {
                const int allowed = allowed_rows(at, options.allow, w.index.data());
                if (allowed == 0) continue;
                for (size_t q = 0; q < terms.size(); ++q) {
                    if (terms[q].usable) collect(at, allowed, terms[q].view, w, w.lists[q]);
                }
            }
        });
    }

    void collect(const Chunk& at, int allowed, const BoundTerms& terms, Workspace& w, HitList& list) const {
        const auto* base = static_cast<const int8_t*>(copy.blocks.empty() ? nullptr : at.block->rows) +
                           static_cast<ptrdiff_t>(at.start) * copy.dimension;
        const float* scales = at.block->scales + at.start;
        constexpr int kGroup = 64;
        float* bounds = w.bounds.data();
        options.kernels->bounds(base, scales, w.index.data(), allowed, terms, bounds);
        for (int start = 0; start < allowed; start += kGroup) {
            const int end = std::min(start + kGroup, allowed);
            float* group = bounds + start;
            if (!options.kernels->sum_above(group, 1, 0, end - start, list.threshold, group)) continue;
            for (int i = start; i < end; ++i) {
                float bound = bounds[i];
                if (bound <= list.threshold) continue;
                const int32_t row = w.index[static_cast<size_t>(i)];
                if (!std::isfinite(bound)) {
                    const bool zero = all_zero(base + static_cast<ptrdiff_t>(row) * copy.dimension, copy.dimension);
                    bound = zero ? 0 : kInfinity;
                    if (bound <= list.threshold) continue;
                }
                list.push(bound, at.first_row + row);
            }
        }
    }

    // The rows of the largest bounds; every other row's bound is at most `beyond`.
    Hit* list(size_t q, int64_t most, int64_t& size, float& beyond) {
        size = 0;
        bool trimmed = false;
        for (Workspace& w : work) {
            const HitList& list = w.lists[q];
            std::copy(list.hits, list.hits + list.size, merged.data() + size);
            size += list.size;
            trimmed = trimmed || list.trimmed;
        }
        if (size > most) {
            std::nth_element(merged.begin(), merged.begin() + most - 1, merged.begin() + size, better);
            size = most;
            trimmed = true;
        }
        beyond = -kInfinity;
        if (trimmed) {
            beyond = std::min_element(merged.begin(), merged.begin() + size, [](const Hit& a, const Hit& b) {
                         return a.score < b.score;
                     })->score;
        }
        return merged.data();
    }
};

void Int8Index::topk(const Query& query, int64_t k, int64_t list, const Options& options, const Answer& answer) {
    const int64_t rows = gallery_.count();
    const size_t length = static_cast<size_t>(query.terms) * static_cast<size_t>(gallery_.dimension);
    const auto one = [&](int64_t q) {
        return Query{query.numerators + static_cast<size_t>(q) * length,
                     query.weights ? query.weights + static_cast<size_t>(q) * length : nullptr, 1, query.terms};
    };
    const auto exhaustive = [&](int64_t q) {
        exhaustive_ += 1;
        cir::topk(gallery_, one(q), k, options,
                  {answer.scores + q * k, answer.rows + q * k, answer.terms + q * k * query.terms});
    };
    queries_ += query.queries;
    const int64_t most = list > 0 ? rows : rows / kShare;
    if (list <= 0) list = first_list(std::min(k, rows));
    if (list > most) {
        exhaustive_ += query.queries;
        cir::topk(gallery_, query, k, options, answer);
        return;
    }
    for (int64_t first = 0; first < query.queries; first += kQueryBlock) {
        const int64_t count = std::min(kQueryBlock, query.queries - first);
        const PreparedTerms prepared(query, first, count, gallery_.dimension);
        std::vector<IntegerTerms> terms;
        for (int64_t q = first; q < first + count; ++q) {
            terms.push_back(integer_terms(query, q, gallery_.dimension, errors_, *options.kernels));
        }
        Scan scan(copy_, options, static_cast<size_t>(count), list, rows, query.terms, -kInfinity);
        scan.run(terms);
        Rescorer rescorer(gallery_, query, *options.kernels, list);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t q = first + i;
            const IntegerTerms& mine = terms[static_cast<size_t>(i)];
            if (!mine.usable) {
                exhaustive(q);
                continue;
            }
            int64_t size;
            float beyond;
            Hit* hits = scan.list(static_cast<size_t>(i), list, size, beyond);
            rescored_ += size;
            rescorer.answer(prepared.query(i), q, hits, size, k, answer);
            const float* worst = answer.scores + q * k + k - 1;
            const auto proven = [&] { return beyond == -kInfinity || *worst > beyond + mine.slack; };
            if (proven()) continue;
            extended_ += 1;
            // All rows whose bound reaches the k-th score found so far, if they are few enough.
            int64_t longer = list;
            bool done = false;
            while (!done && (longer *= kGrowth) <= most) {
                const float floor = static_cast<float>(*worst - mine.slack);
                Scan again(copy_, options, 1, longer, rows, query.terms, std::nextafter(floor, -kInfinity));
                again.run({mine});
                Hit* more = again.list(0, longer, size, beyond);
                rescored_ += size;
                Rescorer(gallery_, query, *options.kernels, longer)
                    .answer(prepared.query(i), q, more, size, k, answer);
                done = proven();
            }
            if (!done) exhaustive(q);
        }
    }
}

Int8Index::Statistics Int8Index::statistics() const {
    return {queries_.load(), extended_.load(), exhaustive_.load(), rescored_.load()};
}

int64_t Int8Index::bytes() const {
    int64_t bytes = 0;
    if (!values_.empty()) {
        for (const Block& block : copy_.blocks) bytes += block.count * (gallery_.dimension + 4);
    }
    return bytes;
}

}  // namespace cir
