// The pieces of a gallery, and of many queries, that the threads of a call take turns at.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "score.h"

namespace cir {

inline size_t row_bytes(RowType type, int dimension) {
    return static_cast<size_t>(dimension) * (type == kFloat32 ? 4 : type == kFloat16 ? 2 : 1);
}

inline size_t item_bytes(const Gallery& gallery) {
    return row_bytes(gallery.type, gallery.dimension) * static_cast<size_t>(gallery.vectors);
}

// Rows of a chunk when few queries are asked: megabytes, so that the start of a chunk, which nothing prefetches, does
// not count; but several chunks a thread, so that all end together.
inline int chunk_rows(const Gallery& gallery, int threads) {
    const int64_t fair = gallery.count() / (static_cast<int64_t>(threads) * 8) / 64 * 64;
    const int64_t large = static_cast<int64_t>((4 << 20) / item_bytes(gallery)) / 64 * 64;
    // Of items of many vectors even a few are a chunk.
    const int64_t least = std::max<int64_t>(1, 64 / gallery.vectors);
    return static_cast<int>(std::clamp<int64_t>(fair, least, std::max<int64_t>(large, least)));
}

// At most so many vectors, but an item at least.
inline int items_of(const Gallery& gallery, int vectors) { return std::max(1, vectors / gallery.vectors); }

// Queries of which one thread takes so many at a time, with `bytes` of hits for each.
inline int64_t query_block(int64_t queries, int threads, size_t bytes, const Kernels& kernels) {
    // Terms of so many stay in the second-level cache while a tile of rows passes over them. Of many they are twice as many
    // where that cache is large, a megabyte and more beside AVX-512: rows are turned into bytes half as often.
    constexpr int64_t kQueries = 128, kManyBlocks = 8;
    constexpr int kWidthOfLargeCaches = 16;
    constexpr size_t kBytes = 64 << 20;
    const bool large = kernels.screen && kernels.screen->width >= kWidthOfLargeCaches;
    const int64_t most = large && queries >= kManyBlocks * kQueries * threads ? 2 * kQueries : kQueries;
    const int64_t room = std::clamp<int64_t>(static_cast<int64_t>(kBytes / (bytes * static_cast<size_t>(threads))), 1, most);
    const int64_t together = room * threads;
    if (queries < together) return room;
    // All of one size, so that few queries are left. Where one alone fills the room, rounding may ask for blocks of less.
    const int64_t rounds = (queries + together / 2) / together;
    return std::clamp<int64_t>(queries / (rounds * threads), 1, room);
}

struct Chunk {
    const Block* block;
    int64_t start;      // within the block
    int64_t first_row;  // within the gallery
    int count;
};

// A gallery cut into chunks of rows. Whoever asks next gets the next one, so that each thread sees ascending rows.
class Chunks {
public:
    Chunks(const Gallery& gallery, int rows) : gallery_(gallery), rows_(rows) {
        int64_t chunks = 0, first = 0;
        for (const Block& block : gallery.blocks) {
            chunks += (block.count + rows - 1) / rows;
            ends_.push_back(chunks);
            first_rows_.push_back(first);
            first += block.count;
        }
    }

    bool next(Chunk& chunk) {
        const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
        const auto at = std::upper_bound(ends_.begin(), ends_.end(), i);
        if (at == ends_.end()) return false;
        const size_t b = static_cast<size_t>(at - ends_.begin());
        const Block& block = gallery_.blocks[b];
        const int64_t start = (i - (b ? ends_[b - 1] : 0)) * rows_;
        chunk = {&block, start, first_rows_[b] + start,
                 static_cast<int>(std::min<int64_t>(rows_, block.count - start))};
        return true;
    }

private:
    const Gallery& gallery_;
    int rows_;
    std::vector<int64_t> ends_, first_rows_;
    std::atomic<int64_t> next_{0};
};

inline const char* row_address(const Gallery& gallery, const Block& block, int64_t row) {
    return static_cast<const char*>(block.rows) + static_cast<size_t>(row) * item_bytes(gallery);
}

// The scales of a block from a row on.
inline const float* scales_from(const Gallery& gallery, const Block& block, int64_t row) {
    return block.scales ? block.scales + row * gallery.vectors : nullptr;
}

// Numbers of the vectors of some rows; where `all` are wanted they are 0, 1, 2 ... already.
inline void expand(const int32_t* rows, int count, int vectors, bool all, int32_t* out) {
    if (all) return;
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < vectors; ++v) *out++ = rows[i] * vectors + v;
    }
}

// Numbers, counted from the start of the chunk, of the rows that the mask allows. `index` holds 0, 1, 2 ... when a
// scan begins, and without a mask it stays so.
inline int allowed_rows(const Chunk& chunk, const uint8_t* allow, int32_t* index) {
    if (!allow) return chunk.count;
    int count = 0;
    for (int i = 0; i < chunk.count;) {
        const int64_t row = chunk.first_row + i;
        if (row % 8 == 0 && i + 64 <= chunk.count) {
            uint64_t bits;
            std::memcpy(&bits, allow + row / 8, sizeof bits);
            if (bits == 0) {
                i += 64;
                continue;
            }
        }
        index[count] = i++;
        count += allow[row >> 3] >> (row & 7) & 1;
    }
    return count;
}

}  // namespace cir
