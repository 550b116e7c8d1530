// Rows of a chunk that may be among the best of many queries, told by products of bytes (screen_terms.h); and when that pays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "chunks.h"
#include "hits.h"
#include "memory.h"
#include "screen_terms.h"

namespace cir {

// Which products a thread uses for its next chunk: bounds from bytes leave few rows, unless the rows stand close or the
// bounds are wide; so each way is left when too many rows pass, and tried again later. What a bound, a second digit
// and a row that passes cost, against products in float32, is measured in README.md.
class Pace {
public:
    enum Way { kFloat32 = 0, kOneDigit = 1, kTwoDigits = 2 };

    explicit Pace(Products products) : forced_(products == Products::kBytes), way_(forced_ ? kOneDigit : kFloat32) {}

    Way way() const { return way_; }

    // After a chunk of which `passed` of `pairs` were scored.
    void step(int64_t passed, int64_t pairs) {
        if (forced_) {
            way_ = way_ == kOneDigit ? kTwoDigits : kOneDigit;
            return;
        }
        const double share = static_cast<double>(passed) / static_cast<double>(std::max<int64_t>(pairs, 1));
        if ((way_ == kOneDigit && share > kMostOfOne) || (way_ == kTwoDigits && share > kMostOfTwo)) {
            way_ = way_ == kOneDigit ? kTwoDigits : kFloat32;
            left_ = wait_[way_];
            wait_[way_] = std::min(2 * wait_[way_], kLongestWait);
        } else if (way_ != kOneDigit && --left_ <= 0) {
            way_ = way_ == kFloat32 ? kTwoDigits : kOneDigit;
            left_ = 1;
        }
    }

private:
    static constexpr double kMostOfOne = 0.04, kMostOfTwo = 0.2;
    static constexpr int kLongestWait = 64;

    bool forced_;
    Way way_;
    int left_ = 1;
    int wait_[3] = {1, 1, 1};  // chunks
};

// The terms of a block of queries in one digit and in two.
struct Screens {
    ScreenTerms one, two;

    Screens(const PreparedTerms& terms, const Screen& screen) : one(terms, screen, 1), two(terms, screen, 2) {}
    const ScreenTerms& of(Pace::Way way) const { return way == Pace::kTwoDigits ? two : one; }
};

// What one thread screens with.
class Screening {
public:
    Screening(const Screen& screen, const PreparedTerms& terms, int chunk_rows, Products products)
        : pace(products), screen_(&screen), queries_(static_cast<size_t>(terms.count())), pairs_(terms.query(0).pairs),
          dimension_(terms.query(0).dimension), tile_(screen, terms.query(0).padded, terms.query(0).w != nullptr) {
        const size_t tile = static_cast<size_t>(screen.tile_rows);
        bounds_.resize(queries_ * static_cast<size_t>(pairs_) * tile);
        thresholds_.resize(queries_);
        passes_.resize(queries_ * ((static_cast<size_t>(chunk_rows) + tile - 1) / tile));
        passed_.resize(static_cast<size_t>(chunk_rows));
    }

    // Which of the rows index[0 .. count) each query has to look at: all whose score may reach its list's floor.
    void look(RowType type, const void* base, const float* scales, const int32_t* index, int count,
              const ScreenTerms& terms, const std::vector<Contenders>& lists) {
        const int tile = screen_->tile_rows;
        const ByteRows rows = tile_.rows();
        for (size_t q = 0; q < queries_; ++q) {
            thresholds_[q] = just_below(lists[q].floor - static_cast<double>(terms.slack(q)));
        }
        const size_t row_size = row_bytes(type, dimension_);
        uint64_t* passes = passes_.data();
        for (int start = 0; start < count; start += tile, passes += queries_) {
            const int size = std::min(tile, count - start);
            screen_->pack[type](base, scales, index + start, size, dimension_, rows);
            float* to = bounds_.data();
            // The next tile's rows come meanwhile.
            const int ahead = std::min(tile, count - start - size);
            const size_t groups = terms.groups().size();
            for (size_t g = 0; g < groups; ++g) {
                const ByteTerms& group = terms.groups()[g];
                const int from = ahead * static_cast<int>(g) / static_cast<int>(groups), until = ahead * static_cast<int>(g + 1) / static_cast<int>(groups);
                for (int r = from; r < until; ++r) {
                    const char* row = static_cast<const char*>(base) + row_size * static_cast<size_t>(index[start + size + r]);
                    for (size_t b = 0; b < row_size; b += 64) __builtin_prefetch(row + b, 0, 2);
                }
                screen_->bounds(rows, group, to);
                to += static_cast<ptrdiff_t>(group.pairs) * tile;
            }
            const uint64_t real = size == 64 ? ~uint64_t{0} : (uint64_t{1} << size) - 1;
            const float* bounds = bounds_.data();
            for (size_t q = 0; q < queries_; ++q, bounds += static_cast<ptrdiff_t>(pairs_) * tile) {
                passes[q] = screen_->above(bounds, pairs_, thresholds_[q]) & real;
            }
        }
    }

    // The rows that the query has to look at, and how many of the `count` they are.
    const int32_t* passed(size_t query, const int32_t* index, int count, int& found) {
        found = 0;
        const uint64_t* passes = &passes_[query];
        for (int start = 0; start < count; start += screen_->tile_rows, passes += queries_) {
            for (uint64_t bits = *passes; bits; bits &= bits - 1) {
                passed_[static_cast<size_t>(found++)] = index[start + __builtin_ctzll(bits)];
            }
        }
        return passed_.data();
    }

    void bounded_all(int rows, int64_t passed) {
        const int64_t pairs = static_cast<int64_t>(queries_) * rows;
        bounded += pairs;
        listed += passed;
        pace.step(passed, pairs);
    }
    void multiplied_all(int rows) {
        multiplied += static_cast<int64_t>(queries_) * rows;
        pace.step(0, 0);
    }

    Pace pace;
    int64_t multiplied = 0, bounded = 0, listed = 0;

private:
    const Screen* screen_;
    size_t queries_;
    int pairs_, dimension_;
    ByteTile tile_;
    LineVector<float> bounds_;
    std::vector<float> thresholds_;
    std::vector<uint64_t> passes_;  // [tiles of the chunk][queries]
    std::vector<int32_t> passed_;
};

}  // namespace cir
