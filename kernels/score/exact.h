// The score of a row as it is defined: the same bits on every instruction set and on the GPU, whatever else is asked.
//
//     term_j = sum n_j t / sqrt(sum w_j t^2)   in double precision, the sums in the order of `Kernels::exact`
//     score  = float32(term_0 + term_1 + ...)  rounded once
//
// A row that holds NaN or infinity, or of which a term or the score is beyond float32, does not rank. Where a row is an
// item of several vectors, a term is the largest of theirs, and its token the first vector whose float32(term) is the
// item's.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "hits.h"
#include "memory.h"
#include "score.h"

namespace cir {

// Scores rows of one gallery; each thread has its own.
class ExactScores {
public:
    ExactScores(const Gallery& gallery, const Query& query, const Kernels& kernels);

    // NaN for a row that does not rank. `terms` may be null, and so may `tokens`: the vector of each term.
    float score(const Block& block, int64_t row_of_block, int64_t q, float* terms, int32_t* tokens = nullptr);
    float score(int64_t row, int64_t q, float* terms, int32_t* tokens = nullptr);

    // Gives every hit its exact score and drops those that do not rank; returns how many are left.
    int64_t settle(int64_t q, Hit* hits, int64_t count);

    // Writes the k best of the hits, whose scores need not be exact yet. The hits leave in another order. Allocates
    // nothing after `expect` for the same k.
    void expect(int64_t k);
    void answer(int64_t q, Hit* hits, int64_t count, int64_t k, const Answer& answer);

private:
    std::pair<const Block*, int64_t> place(int64_t row) const;
    void prefetch(int64_t row) const;
    const float* values(const Block& block, int64_t row, int vector);
    // Makes q the query whose terms are at hand.
    void take(int64_t q);
    // Its terms of a vector, whether that is finite; those of an item are the largest.
    bool vector_terms(const float* t, double* out);

    const Gallery* gallery_;
    const Query* query_;
    const Kernels* kernels_;
    std::vector<int64_t> first_rows_;
    LineVector<float> row_;
    int64_t taken_ = -1;
    LineVector<double> n_, w_;  // of that query
    std::vector<double> one_, most_;  // of a vector, of an item
    std::vector<float> rounded_;
    std::vector<float> terms_;
    std::vector<int32_t> tokens_;
    std::vector<int64_t> order_;
};

}  // namespace cir
