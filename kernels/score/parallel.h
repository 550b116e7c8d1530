// Threads of one call, and the pieces of a gallery that they take turns at.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "score.h"

namespace cir {

// f(0), f(1) ... f(threads - 1) at once, f(0) in the caller. A thread costs some 20 microseconds to start, and a
// call that needs more than one takes far longer than that; in return there is no pool to own, to share between
// concurrent calls, or to lose in a fork. `f` must not throw.
template <class F>
void in_parallel(int threads, const F& f) {
    std::vector<std::thread> others;
    others.reserve(static_cast<size_t>(std::max(threads - 1, 0)));
    for (int i = 1; i < threads; ++i) {
        try {
            others.emplace_back(f, i);
        } catch (const std::system_error&) {
            break;  // the machine has no more threads: the others take its share
        }
    }
    f(0);
    for (std::thread& other : others) other.join();
}

// As many threads as have work for some tens of microseconds.
inline int useful_threads(int threads, double multiplications) {
    return static_cast<int>(std::clamp(multiplications / 500e3, 1.0, static_cast<double>(std::max(threads, 1))));
}

inline size_t row_bytes(RowType type, int dimension) {
    return static_cast<size_t>(dimension) * (type == kFloat32 ? 4 : type == kFloat16 ? 2 : 1);
}

// Rows of a chunk when few queries are asked: megabytes, so that the start of a chunk, which nothing prefetches, does
// not count; but several chunks a thread, so that all end together.
inline int chunk_rows(const Gallery& gallery, int threads) {
    const int64_t fair = gallery.count() / (static_cast<int64_t>(threads) * 8) / 64 * 64;
    const int64_t large = static_cast<int64_t>((4 << 20) / row_bytes(gallery.type, gallery.dimension)) / 64 * 64;
    return static_cast<int>(std::clamp<int64_t>(fair, 64, std::max<int64_t>(large, 64)));
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

inline const char* row_address(const Block& block, RowType type, int dimension, int64_t row) {
    return static_cast<const char*>(block.rows) + static_cast<size_t>(row) * row_bytes(type, dimension);
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
