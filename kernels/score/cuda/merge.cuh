// The end of a query in one launch: of what all blocks have handed on, the k best.
#pragma once

#include "block_keys.cuh"

// Called by the block of a query that finishes last, with `total` keys handed on in `merged` and their terms: writes the
// answer, or leaves the best to the next launch.
template <class Type, bool kWeighted, class Done>
CIR_DEVICE void merge(const ScanArguments& args, Buffer<Type, kWeighted>& buffer, uint32_t q, uint32_t k, bool finish, bool rescue,
                      uint32_t total, uint64_t* merged, uint32_t* terms, const Done& list_is_done) {
    ScanShared& shared = buffer.shared;
    uint64_t* const keys = buffer.keys;
    const auto at = [merged](uint32_t i) { return device::load_fresh(merged + i); };
    uint64_t* sources = keys + args.buffer / 2;  // where each of them came from
    uint32_t found = 0;
    if (total <= kThreads) {
        // Few enough for each thread to find the place of one: no bound, and nothing is moved twice.
        const uint32_t me = device::thread();
        const uint64_t mine = me < total ? at(me) : 0;
        if (me < total) keys[me] = mine;
        device::barrier();
        const uint32_t place = mine != 0 ? reaching(keys, total, mine) - 1 : k;
        device::barrier();  // all have been compared with
        if (place < k) {
            keys[place] = mine;
            sources[place] = me;
            device::add(&shared.count, 1);
        }
        device::barrier();
        found = shared.count;
    } else {
        // What a key must reach is known before any is read.
        const uint64_t by_blocks = buffer.floor_of_blocks(0, 0), by_all = device::load_fresh(args.floors + q);
        uint64_t bound = (by_blocks > by_all ? by_blocks : by_all) + 1;
        for (uint32_t start = 0; start < total; start += 2 * kThreads) {
            uint64_t two[2];
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t index = start + i * kThreads + device::thread();
                two[i] = index < total ? at(index) : 0;
            }
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                if (two[i] >= bound) keys[device::add(&shared.count, 1)] = two[i];
            }
            device::barrier();
            found = shared.count;
            if (found > k && (found + 2 * kThreads > args.buffer || start + 2 * kThreads >= total)) {
                bound = kth_of_shared(keys, found, k, shared.selection);
                keep_from(keys, found, bound, shared.selection);
                device::barrier();
                found = shared.selection.kept;
                if (device::thread() == 0) shared.count = found;
            }
            device::barrier();
        }
        sort_descending(keys, found);
        for (uint32_t i = device::thread(); i < total && found > 0; i += device::threads()) {
            const uint64_t key = at(i);
            if (key >= keys[found - 1]) sources[place_of(keys, found, key)] = i;
        }
        device::barrier();
    }

    uint64_t* peaks = args.peaks + static_cast<size_t>(q) * device::grid_x();
    for (uint32_t i = device::thread(); i < device::grid_x(); i += device::threads()) peaks[i] = 0;
    if (device::thread() == 0) {
        args.tickets[q] = 0;
        args.key_counts[q] = finish ? 0 : found;
        if (finish) args.floors[q] = 0;
        else if (found == k) args.floors[q] = keys[k - 1] - 1;
        list_is_done();
        if (rescue && finish) {
            args.overflowed[q] = 0;
            device::add(args.rescued, 1);
        }
    }
    if (!finish) {
        for (uint32_t i = device::thread(); i < found; i += device::threads()) merged[i] = keys[i];
        for (uint32_t j = 0; j < args.term_count; ++j) {
            uint32_t moved[kBuffer / 2 / kThreads];
#pragma unroll
            for (uint32_t i = 0; i < kBuffer / 2 / kThreads; ++i) {
                const uint32_t place = i * kThreads + device::thread();
                moved[i] = place < found ? device::load_fresh(terms + sources[place] * args.term_count + j) : 0;
            }
            device::barrier();  // all are read before one is written
#pragma unroll
            for (uint32_t i = 0; i < kBuffer / 2 / kThreads; ++i) {
                const uint32_t place = i * kThreads + device::thread();
                if (place < found) terms[static_cast<size_t>(place) * args.term_count + j] = moved[i];
            }
        }
        return;
    }

    const size_t out = static_cast<size_t>(q) * args.out_stride;
    for (uint32_t i = device::thread(); i < k; i += device::threads()) {
        args.scores[out + i] = i < found ? score_of(keys[i]) : -device::from_bits(0x7f800000u);
        args.rows[out + i] = i < found ? static_cast<int64_t>(row_of(keys[i])) : -1;
    }
    for (uint32_t i = device::thread(); i < k * args.term_count; i += device::threads()) {
        const uint32_t place = i / args.term_count, j = i % args.term_count;
        const bool real = place < found;
        args.terms[out * args.term_count + i] = device::from_bits(real ? device::load_fresh(terms + sources[place] * args.term_count + j) : 0x7fc00000u);
    }
    if (device::thread() == 0) args.ceilings[q] = found == k ? keys[k - 1] : 1;
}
