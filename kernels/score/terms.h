// Query terms in the layouts that the kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "score.h"

namespace cir {

// How far a query's float32 scores may lie from its exact ones: by `constant + per_reach * reach of the row`, where only
// terms without weights have the latter. README.md has the proof. Infinite where there is no bound.
struct Rounding {
    float constant, per_reach;
};

// Terms of a few queries for `Kernels::rows`, scaled by powers of two so that the largest numerator and weight are
// near 1: what that changes is undone exactly by `factor`.
class PreparedTerms {
public:
    PreparedTerms(const Query& query, int64_t first, int64_t count, int dimension);

    RowTerms query(int64_t i) const;
    int64_t count() const { return count_; }
    // Of term j of query i: |n / sqrt(w)|, or |n| without weights, which bounds it; and the same of what scaling cost n.
    double size(int64_t i, int j) const { return size_[static_cast<size_t>(i * pairs_ + j)]; }
    double lost(int64_t i, int j) const { return lost_[static_cast<size_t>(i * pairs_ + j)]; }
    // Of `Kernels::tile`, which adds one product after the other, or of `Kernels::rows`.
    Rounding rounding(int64_t i, bool tiled) const;

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
    std::vector<double> size_, lost_;
};

int padded_dimension(int dimension);

// The largest |x|, which is not NaN.
float largest(const float* x, int size);

}  // namespace cir
