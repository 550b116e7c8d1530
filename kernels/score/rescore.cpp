#include "rescore.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace cir {
namespace {
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
}

float careful_score(const Gallery& gallery, const Block& block, int64_t row, const Query& query, int64_t q,
                    float* terms) {
    const size_t length = static_cast<size_t>(gallery.dimension);
    const char* values = row_address(block, gallery.type, gallery.dimension, row);
    const float scale = block.scales ? block.scales[row] : 1;
    float sum = 0;
    for (int j = 0; j < query.terms; ++j) {
        const size_t at = (static_cast<size_t>(q) * static_cast<size_t>(query.terms) + static_cast<size_t>(j)) * length;
        const float term =
            static_cast<float>(careful_term(values, gallery.type, scale, query.numerators + at,
                                            query.weights ? query.weights + at : nullptr, gallery.dimension));
        if (terms) terms[j] = term;
        sum += std::isfinite(term) ? term : kNaN;
    }
    return std::isfinite(sum) ? sum : kNaN;
}

Rescorer::Rescorer(const Gallery& gallery, const Query& query, const Kernels& kernels, int64_t most)
    : gallery_(gallery),
      query_(query),
      kernels_(kernels),
      most_(static_cast<size_t>(std::max<int64_t>(most, 1))),
      index_(most_),
      terms_(most_ * static_cast<size_t>(query.terms)),
      sums_(most_),
      order_(most_) {
    int64_t first = 0;
    for (const Block& block : gallery.blocks) {
        first_rows_.push_back(first);
        first += block.count;
    }
}

void Rescorer::score(const RowTerms& terms, int64_t q, Hit* hits, int64_t count) {
    std::sort(hits, hits + count, [](const Hit& a, const Hit& b) { return a.row < b.row; });
    const int stride = static_cast<int>(most_);
    for (int64_t start = 0; start < count;) {
        // The run of hits in one block.
        const auto above = std::upper_bound(first_rows_.begin(), first_rows_.end(), hits[start].row);
        const size_t b = static_cast<size_t>(above - first_rows_.begin()) - 1;
        const Block& block = gallery_.blocks[b];
        int64_t end = start;
        while (end < count && hits[end].row < first_rows_[b] + block.count) {
            index_[static_cast<size_t>(end)] = static_cast<int32_t>(hits[end].row - first_rows_[b]);
            ++end;
        }
        const int size = static_cast<int>(end - start);
        float* to = &terms_[static_cast<size_t>(start)];
        kernels_.rows[gallery_.type](block.rows, block.scales, &index_[static_cast<size_t>(start)], size, terms, to,
                                     stride);
        kernels_.sum_above(to, terms.pairs, stride, size, 0, &sums_[static_cast<size_t>(start)]);
        for (int64_t i = start; i < end; ++i) {
            float score = sums_[static_cast<size_t>(i)];
            if (!std::isfinite(score)) {
                std::vector<float> careful(static_cast<size_t>(terms.pairs));
                score = careful_score(gallery_, block, index_[static_cast<size_t>(i)], query_, q, careful.data());
                for (size_t j = 0; j < careful.size(); ++j) terms_[j * most_ + static_cast<size_t>(i)] = careful[j];
            }
            hits[i].score = score;
        }
        start = end;
    }
}

void Rescorer::answer(const RowTerms& terms, int64_t q, Hit* hits, int64_t count, int64_t k, const Answer& answer) {
    score(terms, q, hits, count);
    int64_t ranked = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isnan(hits[i].score)) order_[static_cast<size_t>(ranked++)] = i;
    }
    const int64_t found = std::min(ranked, k);
    std::partial_sort(order_.begin(), order_.begin() + found, order_.begin() + ranked,
                      [&](int64_t a, int64_t b) { return better(hits[a], hits[b]); });
    float* scores = answer.scores + q * k;
    int64_t* rows = answer.rows + q * k;
    float* by_term = answer.terms + q * k * query_.terms;
    for (int64_t i = 0; i < k; ++i) {
        const int64_t at = i < found ? order_[static_cast<size_t>(i)] : -1;
        scores[i] = at < 0 ? -std::numeric_limits<float>::infinity() : hits[at].score;
        rows[i] = at < 0 ? -1 : hits[at].row;
        for (int j = 0; j < query_.terms; ++j) {
            by_term[i * query_.terms + j] =
                at < 0 ? kNaN : terms_[static_cast<size_t>(j) * most_ + static_cast<size_t>(at)];
        }
    }
}

}  // namespace cir
