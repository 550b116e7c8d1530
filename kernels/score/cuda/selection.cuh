// Keys that order rows, and the selection of the largest ones by one block.
#pragma once

#include <device.cuh>

// A score and a row number in one word: higher scores first, then smaller rows. 0 stands for "not ranked".
CIR_DEVICE uint64_t key_of(float score, uint32_t row) {
    if (!(fabsf(score) <= device::from_bits(0x7f7fffffu))) return 0;  // NaN and infinities
    const uint32_t b = device::bits(score + 0.0f);        // -0 becomes +0, so that the two tie
    const uint32_t ordered = (b & 0x80000000u) ? ~b : (b | 0x80000000u);
    return (static_cast<uint64_t>(ordered) << 32) | static_cast<uint32_t>(~row);
}
CIR_DEVICE float score_of(uint64_t key) {
    const uint32_t ordered = static_cast<uint32_t>(key >> 32);
    return device::from_bits((ordered & 0x80000000u) ? (ordered & 0x7fffffffu) : ~ordered);
}
CIR_DEVICE uint32_t row_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

// Any score from this one on has a key of at least this, and lower scores have none; and the largest key of a score.
// What no score can be is taken for the end of the range on its side.
CIR_DEVICE uint64_t key_from(float score) { return score >= -3.402823466e38f ? key_of(score, 0xffffffffu) : 1; }
CIR_DEVICE uint64_t key_up_to(float score) { return score <= 3.402823466e38f ? key_of(score, 0) : ~0ull; }
// A little less than a score.
CIR_DEVICE float below(float score) { return score - fabsf(score) * 0x1p-22f - 0x1p-148f; }

constexpr int kBins = 256;

// Shared by the threads of a block while they select.
struct Selection {
    uint64_t least[32];   // per warp
    uint64_t most[32];
    uint32_t bins[kBins];
    uint32_t digit;       // bin in which the k-th key lies
    uint32_t above;       // keys in higher bins
    uint32_t inside;      // keys in that bin
    uint32_t kept;
};

// The smallest of the threads' values, for every thread of the block.
CIR_DEVICE uint64_t least_of_block(uint64_t least, Selection& s) {
    for (int step = 16; step > 0; step >>= 1) {
        const uint64_t other = device::from_lane_xor(least, step);
        least = other < least ? other : least;
    }
    if (device::lane() == 0) s.least[device::warp()] = least;
    device::barrier();
    for (int w = 0; w < device::threads() / 32; ++w) least = s.least[w] < least ? s.least[w] : least;
    return least;
}

// A bound that exactly k of n > k distinct keys in shared memory reach. Every thread of the block calls this.
//
// Radix selection, most significant digit first. Scores of one query share their leading bits, so the digits start
// at the first bit in which the smallest and the largest key differ: two or three passes instead of eight.
CIR_DEVICE uint64_t bound_of_largest(const uint64_t* keys, uint32_t n, uint32_t k, Selection& s) {
    uint64_t least = ~0ull, most = 0;
    for (uint32_t i = device::thread(); i < n; i += device::threads()) {
        const uint64_t key = keys[i];
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    for (int step = 16; step > 0; step >>= 1) {
        const uint64_t other_least = device::from_lane_xor(least, step), other_most = device::from_lane_xor(most, step);
        least = other_least < least ? other_least : least;
        most = other_most > most ? other_most : most;
    }
    if (device::lane() == 0) {
        s.least[device::warp()] = least;
        s.most[device::warp()] = most;
    }
    device::barrier();
    for (int w = 0; w < device::threads() / 32; ++w) {
        least = s.least[w] < least ? s.least[w] : least;
        most = s.most[w] > most ? s.most[w] : most;
    }

    int high = 64 - device::leading_zeros(least ^ most);  // bits [high, 64) are common; least != most
    uint64_t bound = high == 64 ? 0 : (most >> high) << high;
    uint32_t wanted = k;
    while (true) {
        const int low = high > 8 ? high - 8 : 0;
        const uint32_t digits = 1u << (high - low);
        for (int i = device::thread(); i < kBins; i += device::threads()) s.bins[i] = 0;
        device::barrier();
        for (uint32_t i = device::thread(); i < n; i += device::threads()) {
            const uint64_t key = keys[i];
            const bool same = high == 64 || (key >> high) == (bound >> high);
            if (same) device::add(&s.bins[static_cast<uint32_t>(key >> low) & (digits - 1)], 1);
        }
        device::barrier();
        if (device::warp() == 0) {
            // Lane l sums the l-th eight bins from the top; the running total finds the bin of the k-th key.
            const int top = kBins - 1 - 8 * device::lane();
            uint32_t sum = 0;
            for (int i = 0; i < 8; ++i) sum += s.bins[top - i];
            uint32_t running = sum;
            for (int distance = 1; distance < 32; distance <<= 1) {
                const uint32_t below = device::from_lane_below(running, distance);
                if (device::lane() >= distance) running += below;
            }
            uint32_t above = running - sum;
            if (above < wanted && wanted <= running) {
                for (int i = 0; i < 8; ++i) {
                    const uint32_t inside = s.bins[top - i];
                    if (above + inside >= wanted) {
                        s.digit = static_cast<uint32_t>(top - i);
                        s.above = above;
                        s.inside = inside;
                        break;
                    }
                    above += inside;
                }
            }
        }
        device::barrier();
        bound |= static_cast<uint64_t>(s.digit) << low;
        wanted -= s.above;
        const bool whole = s.inside == wanted;
        if (whole || low == 0) return bound > 0 ? bound : 1;  // 0 is no key
        high = low;
    }
}

constexpr uint32_t kBuffer = 2048;  // most keys that a block holds
constexpr uint32_t kThreads = 256;
constexpr int kWarps = static_cast<int>(kThreads) / 32;

// How many of n values in shared memory, which begin at a multiple of 16 bytes, are `least` or more. Four vectors are
// under way at once, and each of their values has a sum of its own, so that none waits for the one before.
template <class Value>
CIR_DEVICE uint32_t reaching(const Value* values, uint32_t n, Value least) {
    constexpr uint32_t kVectors = 4, kAtOnce = 16 / sizeof(Value);
    uint32_t count[kAtOnce] = {n}, i = 0;
    for (; i + kVectors * kAtOnce <= n; i += kVectors * kAtOnce) {
        device::Vector16 v[kVectors];
#pragma unroll
        for (uint32_t u = 0; u < kVectors; ++u) v[u] = *reinterpret_cast<const device::Vector16*>(values + i + u * kAtOnce);
#pragma unroll
        for (uint32_t u = 0; u < kVectors; ++u) {
#pragma unroll
            for (uint32_t e = 0; e < kAtOnce; ++e) {
                if constexpr (kAtOnce == 4) count[e] = device::less_one_below(count[e], v[u].word[e], least);
                else count[e] = device::less_one_below(count[e], static_cast<uint64_t>(v[u].word[2 * e + 1]) << 32 | v[u].word[2 * e], least);
            }
        }
    }
#pragma unroll 4
    for (; i < n; ++i) count[0] = device::less_one_below(count[0], values[i], least);
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t e = 0; e < kAtOnce; ++e) sum += count[e];
    return sum;
}

// The k-th largest of k <= n <= kThreads values in shared memory. Each thread compares one with all: one barrier, where
// every pass of a radix selection waits at four.
template <class Value>
CIR_DEVICE Value kth_of_few(const Value* values, uint32_t n, uint32_t k, Selection& s) {
    uint64_t best = 0;
    if (device::thread() < n) {
        const Value mine = values[device::thread()];
        if (reaching(values, n, mine) >= k) best = mine;
    }
    for (int step = 16; step > 0; step >>= 1) {
        const uint64_t other = device::from_lane_xor(best, step);
        best = other > best ? other : best;
    }
    if (device::lane() == 0) s.most[device::warp()] = best;
    device::barrier();
    for (int w = 0; w < kWarps; ++w) best = s.most[w] > best ? s.most[w] : best;
    return static_cast<Value>(best);
}

// The k-th largest of n >= k keys in shared memory that are not 0, or one of as many that are equal. Every thread of the
// block calls this, after a barrier; what is shared is free again after the next one.
CIR_DEVICE_ONCE uint64_t kth_of_shared(const uint64_t* keys, uint32_t n, uint32_t k, Selection& s) {
    if (n <= kThreads) return kth_of_few(keys, n, k, s);
    const uint64_t bound = n > k ? bound_of_largest(keys, n, k, s) : 1;
    uint64_t least = ~0ull;
    for (uint32_t i = device::thread(); i < n; i += device::threads()) {
        if (keys[i] >= bound && keys[i] < least) least = keys[i];
    }
    return least_of_block(least, s);
}

// The k-th largest of the first n words, one of each thread; 0 where there are fewer than k. May be called again at once:
// its words are read before its last barrier, and what it reads behind that the next call writes behind its first.
CIR_DEVICE_ONCE uint32_t kth_of_brought(uint32_t word, uint32_t n, uint32_t k, Selection& s) {
    static_assert(kBins >= kThreads, "a word of every thread");
    s.bins[device::thread()] = word;
    device::barrier();
    return kth_of_few(s.bins, n, k, s);
}

// The largest word of the block's threads. To be called again after another barrier.
CIR_DEVICE uint32_t most_of_block(uint32_t word, Selection& s) {
    for (int step = 16; step > 0; step >>= 1) {
        const uint32_t other = device::from_lane_xor(word, step);
        word = other > word ? other : word;
    }
    if (device::lane() == 0) s.least[device::warp()] = word;
    device::barrier();
    for (int w = 0; w < kWarps; ++w) word = s.least[w] > word ? static_cast<uint32_t>(s.least[w]) : word;
    return word;
}

// Moves those of the n keys in shared memory that reach a bound to its front; s.kept says how many they are. To be read
// after the caller's next barrier.
CIR_DEVICE_ONCE void keep_from(uint64_t* keys, uint32_t n, uint64_t bound, Selection& s) {
    uint64_t mine[kBuffer / kThreads];
    // Held against what is left behind this thread's first key: the places of the others the compiler would keep in seven
    // registers from call to call, which the scan does not have.
    const uint32_t left = n > device::thread() ? n - device::thread() : 0;
#pragma unroll
    for (uint32_t i = 0; i < kBuffer / kThreads; ++i) mine[i] = i * kThreads < left ? keys[i * kThreads + device::thread()] : 0;
    if (device::thread() == 0) s.kept = 0;
    device::barrier();
#pragma unroll
    for (uint32_t i = 0; i < kBuffer / kThreads; ++i) {
        if (mine[i] >= bound) keys[device::add(&s.kept, 1)] = mine[i];
    }
}

// Where a key stands among n that are sorted, largest first, of which it is one.
CIR_DEVICE uint32_t place_of(const uint64_t* keys, uint32_t n, uint64_t key) {
    uint32_t low = 0, high = n;
    while (low + 1 < high) {
        const uint32_t middle = (low + high) / 2;
        if (keys[middle] >= key) low = middle;
        else high = middle;
    }
    return low;
}

// Sorts n keys, of which no two are equal, largest first: few by the place of each, more by a bitonic sort, with room for
// the next power of two.
CIR_DEVICE void sort_descending(uint64_t* keys, uint32_t n) {
    if (n <= kThreads) {
        const uint32_t me = device::thread();
        const uint64_t mine = me < n ? keys[me] : 0;
        const uint32_t place = me < n ? reaching(keys, n, mine) : 0;  // itself among them
        device::barrier();
        if (me < n) keys[place - 1] = mine;
        device::barrier();
        return;
    }
    uint32_t size = 2;
    while (size < n) size <<= 1;
    for (uint32_t i = n + device::thread(); i < size; i += device::threads()) keys[i] = 0;
    device::barrier();
    for (uint32_t run = 2; run <= size; run <<= 1) {
        for (uint32_t distance = run >> 1; distance > 0; distance >>= 1) {
            for (uint32_t i = device::thread(); i < size / 2; i += device::threads()) {
                const uint32_t a = 2 * i - (i & (distance - 1)), b = a + distance;
                const bool descending = (a & run) == 0;
                const uint64_t x = keys[a], y = keys[b];
                if ((x < y) == descending) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
            device::barrier();
        }
    }
}
