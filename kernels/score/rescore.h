// Scores of chosen rows, each computed alike wherever it stands and whatever else is asked.
#pragma once

#include <cstdint>
#include <vector>

#include "hits.h"
#include "terms.h"

namespace cir {

// The terms of a row at the edge of float32's range. NaN, which never ranks, if a term or the sum is beyond it.
float careful_score(const Gallery& gallery, const Block& block, int64_t row, const Query& query, int64_t q,
                    float* terms);

// Scores rows anywhere in a gallery for one query after the other; not for use by several threads at once.
class Rescorer {
public:
    Rescorer(const Gallery& gallery, const Query& query, const Kernels& kernels, int64_t most);

    // Replaces the scores of the hits, NaN for a row that does not rank, and keeps the terms. Hits leave in the order
    // of rows.
    void score(const RowTerms& terms, int64_t q, Hit* hits, int64_t count);

    // Scores the hits, drops those that do not rank, and writes the k best.
    void answer(const RowTerms& terms, int64_t q, Hit* hits, int64_t count, int64_t k, const Answer& answer);

private:
    const Gallery& gallery_;
    const Query& query_;
    const Kernels& kernels_;
    size_t most_;
    std::vector<int64_t> first_rows_;
    std::vector<int32_t> index_;
    std::vector<float> terms_, sums_;
    std::vector<int64_t> order_;
};

}  // namespace cir
