// What the k best of many queries will reach, foreseen from a sample of the rows.
//
// One row of kSampleEvery is looked at first. Of the k best rows of all, Binomial(k, 1 / kSampleEvery) are among these; so what
// the r-th best of the sample reaches is less than what the k-th best of all reaches, unless r or more of the k best are in the
// sample. r is such that this happens to one query in ten thousand. Rows that do not reach as much are then dropped unproven,
// and when all rows have been seen it is known whether k of them do: if so, it was right to drop the others, in whatever order
// rows came and however alike they are: what equals the r-th is not below it, so of a sample, too, k rows are kept. If not, the
// query is answered again without foresight.
#pragma once

#include <cmath>
#include <cstdint>

#include "chunks.h"

namespace cir {

enum class Part { kAll, kSample, kRest };

constexpr int64_t kSampleEvery = 8;
// Of more rows what k are known to reach is soon as good, and a sample that lies far apart costs more than it saves:
// measured in README.md.
constexpr int64_t kForeseenRows = 1024;  // times k

// One of kSampleEvery that follow each other, but not always the same: galleries are sorted, and some have a period.
inline bool in_sample(int64_t row) {
    static_assert(kSampleEvery == 8, "three bits choose");
    const uint64_t group = static_cast<uint64_t>(row) / kSampleEvery;
    return (group * 0x9E3779B97F4A7C15u) >> 61 == static_cast<uint64_t>(row) % kSampleEvery;
}

// The r above; 0 where a sample would tell nothing.
inline int64_t rank_in_sample(int64_t k, int64_t rows) {
    constexpr double kChance = 1.0 / kSampleEvery, kDoubt = 1e-4;
    constexpr int64_t kMost = 1 << 12;  // beyond, chances leave double's range
    if (k > kMost || rows > kForeseenRows * k) return 0;
    double chance = std::pow(1 - kChance, static_cast<double>(k)), more = 1 - chance;  // of none, of one or more
    for (int64_t r = 1; r < k; ++r) {
        if (more < kDoubt) return r;
        chance *= static_cast<double>(k - r + 1) / static_cast<double>(r) * (kChance / (1 - kChance));
        more -= chance;
    }
    return 0;
}

// Of so many rows, wherever they begin, no more than `most` >= 2 are in the sample.
inline int rows_to_sample(int most) { return (most - 1) * static_cast<int>(kSampleEvery); }

// Numbers, counted from the start of the chunk, of the rows of a part that the mask allows; as allowed_rows.
inline int rows_of(const Chunk& chunk, Part part, const uint8_t* allow, int32_t* index) {
    if (part == Part::kAll) return allowed_rows(chunk, allow, index);
    int count = 0;
    for (int i = 0; i < chunk.count; ++i) {
        const int64_t row = chunk.first_row + i;
        if (in_sample(row) != (part == Part::kSample) || (allow && !(allow[row >> 3] >> (row & 7) & 1))) continue;
        index[count++] = i;
    }
    return count;
}

}  // namespace cir
