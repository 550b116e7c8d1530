// The keys that a block holds while it scans, and the floors that they must beat.
//
// A floor is a key, and it is exclusive: k rows are known to have exact keys above it. `slack` bounds how far the score in
// a key of the buffer may lie from the exact one. A peak is a key that `share` of a block's rows reach or exceed. Where
// share times so many blocks is k, the least of their peaks is what a row must reach: so each block learns early what is
// good in all others, and hands on few keys more than k / grid_x.
#pragma once

#include "gallery_rows.cuh"
#include "selection.cuh"

constexpr uint32_t kRowsOfRound = kWarps * kRowsOfWarp;

struct alignas(16) ScanShared {
    Selection selection;
    float scratch[32];
    uint32_t count;    // keys in the buffer
    uint32_t base;     // where this block's keys go in global memory
    uint32_t is_last;
    uint32_t slack;    // bits of the largest slack of a key in the buffer
    Rounding rounding; // of this query
    uint64_t ceiling;  // only keys below count
    uint32_t runs;     // of every block; here for want of a register: else scan_i8_ratio1 would spill from sm_86 on
};
static_assert(sizeof(ScanShared) == 1728, "the launcher asks for this much; keys follow");

constexpr uint32_t kSpare = 64;  // keys beyond k that a block may hand on

// The keys that a block holds, and what bounds them.
template <class Type, bool kWeighted>
struct Buffer {
    const ScanArguments& args;
    uint64_t* const keys;
    ScanShared& shared;

    // Cuts the buffer back to the keys that may beat the floor, and raises it for all blocks. Looks for the k best of its
    // own where more than `enough` keys are left, and at their exact scores where that leaves more than `most`. Every
    // thread calls this, after a barrier.
    CIR_DEVICE void narrow(uint32_t enough, uint32_t most) {
        uint32_t held = shared.count;
        float slack = device::from_bits(shared.slack);
        uint64_t floor = higher(device::load_fresh(args.floors + device::block_y()), floor_of_blocks(held, slack));
        held = keep(held, floor, slack);
        if (held > enough && held > kThreads && 2 * args.k <= kThreads) {
            // So many words are compared at once, where a radix selection of all keys takes several passes. The k-th best
            // of the threads' best is a little lower than that of all keys, and as true.
            const uint32_t kth = kth_of_brought(best_of_mine(held), kThreads, args.k, shared.selection);
            if (kth != 0) floor = higher(floor, beaten_by(static_cast<uint64_t>(kth) << 32, slack));
            held = keep(held, floor, slack);
        }
        if (held > enough) {
            floor = higher(floor, beaten_by(kth_of_shared(keys, held, args.k, shared.selection), slack));
            held = keep(held, floor, slack);
        }
        if (slack != 0 && held > most) {
            for (uint32_t base = device::warp() * kRowsOfWarp; base < held; base += kRowsOfRound) {
                const uint32_t place = base + device::lane() / 8;
                // Read by the lane that writes it.
                uint32_t number = place < held && device::lane() % 8 == 0 ? row_of(keys[place]) : 0;
                number = device::from_lane(number, place < held ? device::lane() / 8 * 8 : 0);
                const float score = exact_of<Type, kWeighted>(args, number, nullptr);
                if (place < held && device::lane() % 8 == 0) keys[place] = key_of(score, number);
            }
            device::barrier();
            slack = 0;
            if (held > args.k) floor = higher(floor, beaten_by(kth_of_shared(keys, held, args.k, shared.selection), slack));
            held = keep(held, floor, slack);
        }
        if (device::thread() == 0) {
            shared.count = held;
            shared.slack = device::bits(slack);
            device::raise(args.floors + device::block_y(), floor);
        }
    }

    // A floor by what this query's blocks say of themselves, this one included; 0 as long as too few of them have.
    CIR_DEVICE uint64_t floor_of_blocks(uint32_t held, float slack) {
        const uint32_t blocks = device::grid_x(), me = device::block_x();
        if (blocks == 1) return 0;
        // Half as many again as an even share, so that two thirds of the blocks decide and none must be lucky.
        const uint32_t share = (3 * args.k + 2 * blocks - 1) / (2 * blocks);
        uint64_t* peaks = args.peaks + static_cast<size_t>(device::block_y()) * blocks;
        uint64_t mine = 1;
        // Scores are enough. Where a thread looks at several keys, the best of them speaks for all: a peak is a little
        // lower then, and as true.
        if (held >= share) {
            const uint32_t best = best_of_mine(held);
            const uint32_t peak = share == 1 ? most_of_block(best, shared.selection)
                                             : kth_of_brought(best, held < kThreads ? held : kThreads, share, shared.selection);
            if (peak != 0) mine = beaten_by(static_cast<uint64_t>(peak) << 32, slack) + 1;
            if (device::thread() == 0) device::raise(peaks + me, mine);
        }
        // Blocks too: the best of those that a thread looks at. Half the threads are enough where a few of many blocks are
        // asked for, and compare in a quarter of the work.
        const uint32_t wanted = (args.k + share - 1) / share, voices = 4 * wanted <= blocks ? kThreads / 2 : kThreads;
        uint64_t brought = 1;
        for (uint32_t block = device::thread(); device::thread() < voices && block < blocks; block += voices) {
            brought = higher(brought, higher(device::load_fresh(peaks + block), block == me ? mine : 1));
        }
        const uint32_t least = kth_of_brought(static_cast<uint32_t>(brought >> 32), blocks < voices ? blocks : voices, wanted, shared.selection);
        return least == 0 ? 0 : (static_cast<uint64_t>(least) << 32) - 1;
    }

    // The best score, as in a key, of those that this thread looks at; 0 without any.
    CIR_DEVICE uint32_t best_of_mine(uint32_t held) {
        uint64_t best = 0;
        for (uint32_t i = device::thread(); i < held; i += kThreads) best = higher(best, keys[i]);
        return static_cast<uint32_t>(best >> 32);
    }

    // Keys that may beat the floor, at the front of the buffer, and how many they are.
    CIR_DEVICE uint32_t keep(uint32_t held, uint64_t floor, float slack) {
        keep_from(keys, held, slack == 0 || floor == 0 ? floor + 1 : key_from(below(score_of(floor) - slack)), shared.selection);
        device::barrier();
        return shared.selection.kept;
    }

    // A key that every row beats whose key, right but for the slack, is this one or above.
    CIR_DEVICE static uint64_t beaten_by(uint64_t key, float slack) {
        return slack == 0 ? key - 1 : key_from(below(score_of(key) - slack)) - 1;
    }

    CIR_DEVICE static uint64_t higher(uint64_t a, uint64_t b) { return a > b ? a : b; }
};
