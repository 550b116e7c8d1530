// Query terms in the layouts that the kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "score.h"

namespace cir {

// Terms of a few queries for `Kernels::rows`, scaled by powers of two so that the largest numerator and weight are
// near 1: what that changes is undone exactly by `factor`.
class PreparedTerms {
public:
    PreparedTerms(const Query& query, int64_t first, int64_t count, int dimension);

    RowTerms query(int64_t i) const;
    int64_t count() const { return count_; }

    // The same terms, [max_pairs] at a time, for `Kernels::tile`.
    struct Tiles {
        LineVector<float> packed;
        std::vector<TileTerms> groups;  // in the order of queries, then terms
    };
    Tiles tiles(const Kernels& kernels) const;

private:
    int64_t count_;
    int pairs_, dimension_, padded_;
    bool weighted_;
    LineVector<float> n_, w_, factor_;
};

int padded_dimension(int dimension);

// The term in double precision for rows at the edge of float32's range; NaN if the row is not finite.
double careful_term(const void* row, RowType type, float scale, const float* n, const float* w, int dimension);

}  // namespace cir
