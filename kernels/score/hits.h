// Which rows of a stream may still be among the best k.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace cir {

// A row whose exact score is within `slack` of `score`; no slack: is that score, or a mere bound (bounded.cpp).
struct Hit {
    float score, slack;
    int64_t row;

    double least() const { return static_cast<double>(score) - static_cast<double>(slack); }
    double most() const { return static_cast<double>(score) + static_cast<double>(slack); }
};

// Best first; equal scores by the smaller row.
inline bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

// The k best of hits without slack come first; returns how many there are.
inline int64_t best_of(Hit* hits, int64_t size, int64_t k) {
    if (size <= k) return size;
    std::nth_element(hits, hits + k - 1, hits + size, better);
    return k;
}

// Room for so many hits, of which k are kept when it is full.
inline int64_t room_for(int64_t k, int64_t rows) {
    const int64_t most = rows + 1;  // never reached, so nothing is dropped
    return k >= most ? most : std::min(std::max(2 * k, k + 64), most);
}

// A float32 f for which `score > f` holds for all scores >= x, and few others.
inline float just_below(double x) {
    const float rounded = static_cast<float>(x);
    const float low = static_cast<double>(rounded) <= x ? rounded : std::nextafter(rounded, -std::numeric_limits<float>::infinity());
    return std::nextafter(low, -std::numeric_limits<float>::infinity());
}

// Every row of a stream that may be among the k best exact scores: all but those whose most is below what k others
// reach at least. Many rows may stand so close that rounding cannot tell; then their exact scores are computed as they
// come, so that neither memory nor time depends on how many there are.
struct Contenders {
    Hit* hits = nullptr;
    int64_t k = 0, capacity = 0, size = 0;
    int64_t looked = 0;  // the size when what is reached was last looked at
    int64_t rank = 0;  // in a sample: of the row that tells the floor; 0 for the k-th
    double floor = -std::numeric_limits<double>::infinity();  // k rows are known to reach it, or expected to
    float per_reach = 0, slack = 0;                            // of a score (terms.h)
    float threshold = -std::numeric_limits<float>::infinity();  // what a score and its reach must exceed

    void push(const Hit& hit) { hits[size++] = hit; }
    bool full() const { return size == capacity; }

    // How many rows reach what the floor is raised to.
    int64_t reaching() const { return rank > 0 ? rank : k; }

    // Raises the floor and drops what is below it.
    void drop_beaten() {
        const int64_t last = reaching();
        if (size > last) {
            std::nth_element(hits, hits + last - 1, hits + size, [](const Hit& a, const Hit& b) { return a.least() > b.least(); });
            raise(hits[last - 1].least());
        }
        size = std::partition(hits, hits + size, [this](const Hit& hit) { return hit.most() >= floor; }) - hits;
        looked = size;
    }

    // `settle` gives hits their exact scores and returns how many rank. Of equal ones k stay, whatever the floor rests on: below
    // it nothing is in the answer if it holds, but of what equals it all may be.
    template <class Settle>
    void make_room(const Settle& settle) {
        drop_beaten();
        if (size <= k + (capacity - k) / 2) return;
        looked = size = best_of(hits, settle(hits, size), k);
        const int64_t last = reaching();
        if (size < last) return;
        std::nth_element(hits, hits + last - 1, hits + size, better);
        raise(hits[last - 1].score);
    }

    void raise(double reached) {
        floor = std::max(floor, reached);
        threshold = just_below(floor - static_cast<double>(slack));
    }
};

// What k rows reach of each query, in whatever thread they were found: none needs to look at what is below.
class Floors {
public:
    explicit Floors(size_t queries) : floors_(queries) {
        for (std::atomic<double>& floor : floors_) floor.store(-std::numeric_limits<double>::infinity());
    }

    void share(std::vector<Contenders>& lists) {
        for (size_t q = 0; q < floors_.size(); ++q) {
            double known = floors_[q].load(std::memory_order_relaxed);
            const double mine = lists[q].floor;
            while (mine > known && !floors_[q].compare_exchange_weak(known, mine, std::memory_order_relaxed)) {
            }
            if (known > mine) lists[q].raise(known);
        }
    }

private:
    std::vector<std::atomic<double>> floors_;
};

// The rows of the largest scores, as they come: those that equal the threshold come after all that are kept, and lose.
struct HitList {
    Hit* hits = nullptr;
    int64_t k = 0, capacity = 0, size = 0;
    float threshold = -std::numeric_limits<float>::infinity();
    bool trimmed = false;

    void push(float score, int64_t row) {
        hits[size++] = {score, 0, row};
        if (size == capacity) trim();
    }

    void trim() {
        if (size <= k) return;
        size = best_of(hits, size, k);
        threshold = std::max(threshold, hits[k - 1].score);
        trimmed = true;
    }
};

}  // namespace cir
