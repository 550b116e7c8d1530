// Rows of a chunk that may be among the best of many queries, told by products of bytes (screen_terms.h); and when that pays.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "chunks.h"
#include "hits.h"
#include "memory.h"
#include "screen_terms.h"

namespace cir {

// Which products a thread uses for its next chunk: bounds from bytes leave few rows, unless the rows stand close or the
// bounds are wide; so each way is left when too many rows pass, and tried again later. What a bound, a second digit
// and a row that is scored cost, against products in float32, is measured in README.md,
// with VNNI: AMX was not at hand, and goes by the same.
class Pace {
public:
    enum Way { kFloat32 = 0, kOneDigit = 1, kTwoDigits = 2 };

    explicit Pace(Products products) : forced_(products == Products::kBytes), way_(forced_ ? kOneDigit : kTwoDigits) {}

    Way way() const { return way_; }

    // After a chunk of `pairs`, of whose bounds in one digit `passed` were looked at closer, and meanwhile `scored` rows scored.
    void step(int64_t passed, int64_t scored, int64_t pairs) {
        if (forced_) {
            way_ = way_ == kOneDigit ? kTwoDigits : kOneDigit;
            return;
        }
        const double all = static_cast<double>(std::max<int64_t>(pairs, 1));
        if (way_ == kOneDigit && static_cast<double>(passed) > kMostPassed * all) {
            leave(kTwoDigits);
        } else if (way_ != kFloat32 && static_cast<double>(scored) > kMostScored * all) {
            leave(kFloat32);
        } else if (way_ != kOneDigit && --left_ <= 0) {
            way_ = way_ == kFloat32 ? kTwoDigits : kOneDigit;
            left_ = 1;
        }
    }

private:
    static constexpr double kMostPassed = 0.5, kMostScored = 0.2;
    static constexpr int kLongestWait = 64;

    void leave(Way way) {
        way_ = way;
        left_ = wait_[way];
        wait_[way] = std::min(2 * wait_[way], kLongestWait);
    }

    bool forced_;
    Way way_;  // at first two digits: no floor is known, and all rows pass
    int left_ = 1;
    int wait_[3] = {1, 1, 1};  // chunks
};

// A row that a query may have to look at: its number within what is looked at, and what its score is at most.
struct Pending {
    float bound;
    int32_t row;
};

// What one thread screens with. Rows that pass are not scored at once but wait, so that those of the largest bounds are
// scored first: what they reach drops most of the others unseen.
class Screening {
public:
    Screening(const Screen& screen, const PreparedTerms& terms, const ScreenTerms& bytes, const Options& options)
        : pace(options.products), screen_(&screen), copy_(options.copy), terms_(&bytes), queries_(static_cast<size_t>(terms.count())), pairs_(terms.query(0).pairs),
          dimension_(terms.query(0).dimension), tile_(screen, terms.query(0).padded, terms.query(0).w != nullptr) {
        bounds_.resize(queries_ * static_cast<size_t>(pairs_ * screen.tile_rows));
        if (terms.query(0).w) inverse_roots_.resize(bounds_.size());
        thresholds_.resize(queries_);
        pending_.resize(queries_ * kPending);
        waiting_.resize(queries_);
    }

    // Which of the rows index[0 .. count) each query has to look at: all whose score may reach its list's floor. They
    // wait under their number and `from` more; where a query has no room for another, score(query) has to take them.
    template <class Score>
    void look(RowType type, const void* base, const float* scales, const int32_t* index, int count, int32_t from,
              const std::vector<Contenders>& lists, const Score& score) {
        const int tile = screen_->tile_rows;
        const ByteRows rows = tile_.rows();
        const bool closer = pace.way() == Pace::kOneDigit;
        const std::vector<ByteTerms>& groups = terms_->groups(closer ? 1 : 2);
        for (size_t q = 0; q < queries_; ++q) thresholds_[q] = threshold(q, lists[q].floor);
        for (int start = 0; start < count; start += tile) {
            const int size = std::min(tile, count - start);
            screen_->pack[type](base, scales, index + start, size, dimension_, rows);
            if (copy_) add_lost(*copy_, rows, tile);
            multiply(rows, base, row_bytes(type, dimension_), index + start + size, std::min(tile, count - start - size),
                     groups);
            const uint64_t real = size == 64 ? ~uint64_t{0} : (uint64_t{1} << size) - 1;
            for (size_t q = 0; q < queries_; ++q) {
                const float* bounds = &bounds_[q * static_cast<size_t>(pairs_ * tile)];
                const uint64_t bits = screen_->above(bounds, pairs_, thresholds_[q]) & real;
                if (bits) pass(q, rows, bits, bounds, closer, index + start, from, lists, score);
            }
        }
        bounded += static_cast<int64_t>(queries_) * count;
        pace.step(passed_, scored_, static_cast<int64_t>(queries_) * count);
        passed_ = scored_ = 0;
    }

    // Drops rows that wait and cannot reach the floor any more; of the others, where they are more than `keep`, takes at most
    // `most` of the largest bounds into `index`. Returns how many.
    int take(size_t q, double floor, size_t keep, int most, int32_t* index) {
        Pending* all = &pending_[q * kPending];
        const float least = threshold(q, floor);
        // Without branches on bounds, which no processor foresees.
        size_t count = 0;
        for (size_t i = 0; i < waiting_[q]; ++i) {
            const Pending each = all[i];
            all[count] = each;
            count += each.bound > least;
        }
        waiting_[q] = count;
        if (count <= keep) return 0;
        const float above = count > static_cast<size_t>(most) ? exceeded_by(most, all, count) : -kInfinity;
        size_t left = 0;
        int taken = 0;
        for (size_t i = 0; i < count && taken < most; ++i) {
            const Pending each = all[i];
            index[taken] = each.row;
            all[left] = each;
            const bool takes = each.bound > above;
            taken += takes;
            left += !takes;
        }
        const size_t seen = left + static_cast<size_t>(taken);
        std::copy(all + seen, all + count, all + left);
        waiting_[q] = count - static_cast<size_t>(taken);
        listed += taken;
        return taken;
    }

    // Rows were scored though k others were scored before them in the same turn: their bounds are no help.
    void scored_beyond(int rows) { scored_ += rows; }

    void multiplied_all(int rows) {
        multiplied += static_cast<int64_t>(queries_) * rows;
        pace.step(0, 0, 0);
    }

    Pace pace;
    int64_t multiplied = 0, bounded = 0, listed = 0;

    static constexpr size_t kPending = 256;

private:
    static constexpr float kInfinity = std::numeric_limits<float>::infinity();

    // What the bound of a row has to exceed whose score may reach the floor.
    float threshold(size_t q, double floor) const {
        return just_below(floor - static_cast<double>(terms_->slack(q)));
    }

    // What about `most` of the bounds exceed, and one at least.
    static float exceeded_by(int most, const Pending* all, size_t count) {
        double sum = 0, squares = 0;
        float top = -kInfinity;
        for (size_t i = 0; i < count; ++i) {
            const double bound = static_cast<double>(all[i].bound);
            sum += bound;
            squares += bound * bound;
            top = std::max(top, all[i].bound);
        }
        const double mean = sum / static_cast<double>(count), variance = squares / static_cast<double>(count) - mean * mean;
        // As if they fell off exponentially, which the upper part of most distributions nearly does.
        const double above = mean + std::sqrt(variance) * (std::log(static_cast<double>(count) / most) - 1);
        const float next = std::nextafter(top, -kInfinity);
        return above < static_cast<double>(next) ? static_cast<float>(above) : next;
    }

    // The rows of a tile that bits tell wait, unless a closer bound says otherwise.
    template <class Score>
    void pass(size_t q, const ByteRows& rows, uint64_t bits, const float* bounds, bool closer, const int32_t* index,
              int32_t from, const std::vector<Contenders>& lists, const Score& score) {
        uint8_t which[64];
        float sums[64];
        int found = 0;
        for (; bits; bits &= bits - 1) which[found++] = static_cast<uint8_t>(__builtin_ctzll(bits));
        passed_ += found;
        if (closer) {
            const float* roots = inverse_roots_.empty() ? nullptr : &inverse_roots_[static_cast<size_t>(bounds - bounds_.data())];
            screen_->closer(rows, terms_->second(q), which, found, bounds, roots, sums);
        } else {
            for (int i = 0; i < found; ++i) sums[i] = sum_of(bounds + which[i]);
        }
        for (int i = 0; i < found; ++i) {
            // Not finite: nothing is known.
            const bool known = std::fabs(sums[i]) <= kLargestTerm;
            if (known && sums[i] <= thresholds_[q]) continue;
            pending_[q * kPending + waiting_[q]++] = {known ? sums[i] : kInfinity, from + index[which[i]]};
            if (waiting_[q] < kPending) continue;
            score(q);
            thresholds_[q] = threshold(q, lists[q].floor);
        }
    }

    // All bounds of a tile; the next tile's rows come meanwhile.
    void multiply(const ByteRows& rows, const void* base, size_t row_size, const int32_t* next, int ahead,
                  const std::vector<ByteTerms>& terms) {
        size_t to = 0;
        const int groups = static_cast<int>(terms.size());
        for (int g = 0; g < groups; ++g) {
            for (int r = ahead * g / groups; r < ahead * (g + 1) / groups; ++r) {
                const char* row = static_cast<const char*>(base) + row_size * static_cast<size_t>(next[r]);
                for (size_t b = 0; b < row_size; b += 64) __builtin_prefetch(row + b, 0, 2);
            }
            const ByteTerms& group = terms[static_cast<size_t>(g)];
            screen_->bounds(rows, group, &bounds_[to], inverse_roots_.empty() ? nullptr : &inverse_roots_[to]);
            to += static_cast<size_t>(group.pairs * screen_->tile_rows);
        }
    }

    float sum_of(const float* bounds) const {
        float sum = bounds[0];
        for (int j = 1; j < pairs_; ++j) sum += bounds[j * screen_->tile_rows];
        return sum;
    }

    const Screen* screen_;
    const Copy* copy_;
    const ScreenTerms* terms_;
    size_t queries_;
    int pairs_, dimension_;
    ByteTile tile_;
    LineVector<float> bounds_, inverse_roots_;
    std::vector<float> thresholds_;
    std::vector<Pending> pending_;  // [queries][kPending]
    std::vector<size_t> waiting_;
    int64_t passed_ = 0, scored_ = 0;  // since the last step
};

}  // namespace cir
