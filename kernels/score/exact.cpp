#include "exact.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "chunks.h"

namespace cir {
namespace {
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kPrefetched = 8 << 10;  // of a row or an item, which lies anywhere
}

ExactScores::ExactScores(const Gallery& gallery, const Query& query, const Kernels& kernels)
    : gallery_(&gallery),
      query_(&query),
      kernels_(&kernels),
      row_(static_cast<size_t>(gallery.dimension)),
      one_(static_cast<size_t>(query.terms)),
      most_(static_cast<size_t>(query.terms)),
      rounded_(static_cast<size_t>(query.terms)) {
    n_.resize(static_cast<size_t>(query.terms) * row_.size());
    if (query.weights) w_.resize(n_.size());
    int64_t first = 0;
    for (const Block& block : gallery.blocks) {
        first_rows_.push_back(first);
        first += block.count;
    }
}

const float* ExactScores::values(const Block& block, int64_t row, int vector) {
    const char* stored = row_address(*gallery_, block, row) +
                         static_cast<size_t>(vector) * row_bytes(gallery_->type, gallery_->dimension);
    if (gallery_->type == kFloat32) return reinterpret_cast<const float*>(stored);
    kernels_->widen[gallery_->type](stored, gallery_->dimension, row_.data());
    // Rounded to float32, as a row that is taken from the gallery.
    if (block.scales) {
        const float scale = scales_from(*gallery_, block, row)[vector];
        for (float& value : row_) value *= scale;
    }
    return row_.data();
}

void ExactScores::take(int64_t q) {
    if (q == taken_) return;
    taken_ = q;
    const size_t from = static_cast<size_t>(q) * n_.size();
    for (size_t i = 0; i < n_.size(); ++i) n_[i] = static_cast<double>(query_->numerators[from + i]);
    for (size_t i = 0; i < w_.size(); ++i) w_[i] = static_cast<double>(query_->weights[from + i]);
}

bool ExactScores::vector_terms(const float* t, double* out) {
    const size_t length = static_cast<size_t>(gallery_->dimension);
    bool finite = true;
    for (int j = 0; j < query_->terms; j += 2) {
        const int pairs = std::min(2, query_->terms - j);
        const size_t at = static_cast<size_t>(j) * length;
        double sums[4];
        kernels_->exact(t, &n_[at], query_->weights ? &w_[at] : nullptr, gallery_->dimension, pairs, sums);
        for (int p = 0; p < pairs; ++p) {
            double term = sums[2 * p];
            // Sums of float32 products cannot leave double's range: what is not finite was not so in the row.
            if (!std::isfinite(term)) {
                term = static_cast<double>(kNaN);
                finite = false;
            } else if (query_->weights) {
                term = sums[2 * p + 1] > 0 ? term / std::sqrt(sums[2 * p + 1]) : 0;
            }
            out[j + p] = term;
        }
    }
    return finite;
}

float ExactScores::score(const Block& block, int64_t row, int64_t q, float* terms, int32_t* tokens) {
    const size_t width = static_cast<size_t>(query_->terms);
    take(q);
    bool ranks = vector_terms(values(block, row, 0), most_.data());
    if (tokens) std::fill(tokens, tokens + width, 0);
    if (gallery_->vectors > 1) {
        for (size_t j = 0; j < width; ++j) rounded_[j] = static_cast<float>(most_[j]);
        for (int v = 1; ranks && v < gallery_->vectors; ++v) {
            ranks = vector_terms(values(block, row, v), one_.data());
            for (size_t j = 0; j < width; ++j) {
                if (!(one_[j] > most_[j])) continue;
                most_[j] = one_[j];
                const float rounded = static_cast<float>(one_[j]);
                if (!(rounded > rounded_[j])) continue;
                rounded_[j] = rounded;
                if (tokens) tokens[j] = v;
            }
        }
    }
    double sum = 0;
    for (size_t j = 0; j < width; ++j) {
        const float rounded = static_cast<float>(most_[j]);
        ranks = ranks && std::isfinite(rounded);
        if (terms) terms[j] = rounded;
        sum += most_[j];
    }
    const float score = static_cast<float>(sum);
    return ranks && std::isfinite(score) ? score : kNaN;
}

float ExactScores::score(int64_t row, int64_t q, float* terms, int32_t* tokens) {
    const auto [block, within] = place(row);
    return score(*block, within, q, terms, tokens);
}

std::pair<const Block*, int64_t> ExactScores::place(int64_t row) const {
    const auto above = std::upper_bound(first_rows_.begin(), first_rows_.end(), row);
    const size_t b = static_cast<size_t>(above - first_rows_.begin()) - 1;
    return {&gallery_->blocks[b], row - first_rows_[b]};
}

void ExactScores::prefetch(int64_t row) const {
    const auto [block, within] = place(row);
    const char* at = row_address(*gallery_, *block, within);
    const size_t size = std::min(item_bytes(*gallery_), kPrefetched);
    for (size_t i = 0; i < size; i += 64) __builtin_prefetch(at + i, 0, 2);
}

int64_t ExactScores::settle(int64_t q, Hit* hits, int64_t count) {
    int64_t ranked = 0;
    for (int64_t i = 0; i < count; ++i) {
        Hit hit = hits[i];
        if (hit.slack != 0) hit = {score(hit.row, q, nullptr), 0, hit.row};
        if (!std::isnan(hit.score)) hits[ranked++] = hit;
    }
    return ranked;
}

void ExactScores::expect(int64_t k) {
    const int64_t rows = gallery_->count(), kept = std::min(k, rows);
    order_.resize(static_cast<size_t>(std::min(kept + kept / 4 + 64, std::max(rows, int64_t{1}))));
    terms_.resize(order_.size() * static_cast<size_t>(query_->terms));
    if (gallery_->items) tokens_.resize(terms_.size());
}

void ExactScores::answer(int64_t q, Hit* hits, int64_t count, int64_t k, const Answer& answer) {
    const size_t width = static_cast<size_t>(query_->terms);
    // Terms are kept as they are computed, but not for the many rows that may stand close around the k-th.
    if (count > static_cast<int64_t>(order_.size())) count = best_of(hits, settle(q, hits, count), k);
    int64_t ranked = 0;
    for (int64_t i = 0; i < count; ++i) {
        const size_t at = static_cast<size_t>(i) * width;
        if (i + 1 < count) prefetch(hits[i + 1].row);
        hits[i].score = score(hits[i].row, q, &terms_[at], gallery_->items ? &tokens_[at] : nullptr);
        if (!std::isnan(hits[i].score)) order_[static_cast<size_t>(ranked++)] = i;
    }
    const int64_t found = std::min(ranked, k);
    const auto before = [&](int64_t a, int64_t b) { return better(hits[a], hits[b]); };
    if (found < ranked) std::nth_element(order_.begin(), order_.begin() + found, order_.begin() + ranked, before);
    std::sort(order_.begin(), order_.begin() + found, before);
    float* scores = answer.scores + q * k;
    int64_t* rows = answer.rows + q * k;
    float* by_term = answer.terms + q * k * query_->terms;
    for (int64_t i = 0; i < k; ++i) {
        const int64_t at = i < found ? order_[static_cast<size_t>(i)] : -1;
        scores[i] = at < 0 ? -std::numeric_limits<float>::infinity() : hits[at].score;
        rows[i] = at < 0 ? -1 : hits[at].row;
        for (int j = 0; j < query_->terms; ++j) {
            const size_t from = static_cast<size_t>(at) * width + static_cast<size_t>(j);
            by_term[i * query_->terms + j] = at < 0 ? kNaN : terms_[from];
            if (answer.tokens) answer.tokens[(q * k + i) * query_->terms + j] = at < 0 ? -1 : tokens_[from];
        }
    }
}

}  // namespace cir
