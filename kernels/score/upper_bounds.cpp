// The upper bounds from bytes by themselves, for tests that hold them against exact scores.
#include <algorithm>
#include <limits>
#include <numeric>

#include "chunks.h"
#include "screen_terms.h"

namespace cir {

void upper_bounds(const Gallery& gallery, const Query& query, const Kernels& kernels, int digits, bool closer,
                  const double* shares, float* out, const Copy* copy) {
    const PreparedTerms prepared(query, 0, query.queries, gallery.dimension);
    ScreenTerms terms(prepared, *kernels.screen);
    terms.keep_of_margins(shares);
    const int tile = kernels.screen->tile_rows;
    ByteTile bytes(*kernels.screen, padded_dimension(gallery.dimension), query.weights != nullptr);
    const ByteRows rows = bytes.rows();
    std::vector<int32_t> index(static_cast<size_t>(tile));
    LineVector<float> bounds(index.size() * static_cast<size_t>(query.queries * query.terms)), roots(bounds.size());
    std::iota(index.begin(), index.end(), 0);
    const int64_t count = gallery.count();
    Chunks chunks(gallery, tile);
    for (Chunk chunk; chunks.next(chunk);) {
        kernels.screen->pack[gallery.type](row_address(gallery, *chunk.block, chunk.start),
                                           scales_from(gallery, *chunk.block, chunk.start), index.data(), chunk.count,
                                           gallery.dimension, rows);
        if (copy) add_lost(*copy, rows, tile);
        size_t to = 0;
        for (const ByteTerms& group : terms.groups(digits)) {
            kernels.screen->bounds(rows, group, &bounds[to], &roots[to]);
            to += static_cast<size_t>(group.pairs * tile);
        }
        for (int64_t q = 0; q < query.queries; ++q) {
            const size_t at = static_cast<size_t>(q * query.terms * tile);
            for (int i = 0; i < chunk.count; ++i) {
                float sum = 0;
                if (closer) {
                    const uint8_t row = static_cast<uint8_t>(i);
                    kernels.screen->closer(rows, terms.second(static_cast<size_t>(q)), &row, 1, &bounds[at],
                                           query.weights ? &roots[at] : nullptr, &sum);
                } else {
                    for (int j = 0; j < query.terms; ++j) sum += bounds[at + static_cast<size_t>(j * tile + i)];
                }
                out[q * count + chunk.first_row + i] = sum + terms.slack(static_cast<size_t>(q));
            }
        }
    }
}

}  // namespace cir
