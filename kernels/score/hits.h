// The best k of a stream of rows, behind a threshold that rises as it goes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace cir {

struct Hit {
    float score;
    int64_t row;
};

// Best first; equal scores by the smaller row.
inline bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

// Rows arrive in ascending order, so one that equals the threshold comes after all that are kept, and loses.
struct HitList {
    Hit* hits = nullptr;
    int64_t k = 0, capacity = 0, size = 0;
    float threshold = -std::numeric_limits<float>::infinity();
    bool trimmed = false;

    // Room for so many hits, of which k are kept when it is full.
    static int64_t room(int64_t k, int64_t rows) {
        const int64_t most = rows + 1;  // never reached, so nothing is trimmed
        return k >= most ? most : std::min(std::max(2 * k, k + 64), most);
    }

    void push(float score, int64_t row) {
        hits[size++] = {score, row};
        if (size == capacity) trim();
    }

    void trim() {
        if (size <= k) return;
        std::nth_element(hits, hits + k - 1, hits + size, better);
        size = k;
        threshold = std::max(threshold, hits[k - 1].score);
        trimmed = true;
    }
};

}  // namespace cir
