// The exact kernel: score rows and keep the k best of each query, in one launch and one read.
//
// Block (x, q) takes every grid_x-th run of rows of query q. A warp scores four rows at a time and appends the keys
// that beat the running floor to the block's buffer; a full buffer is cut back to its k largest, and the bound so
// found is raised for all blocks. The block that finishes last merges what the others left.
#pragma once

#include "arguments.cuh"
#include "exact_terms.cuh"
#include "selection.cuh"

constexpr uint32_t kRowsOfRound = kWarps * kRowsOfWarp;

struct ScanShared {
    Selection selection;
    float scratch[32];
    uint32_t count;    // keys in the buffer
    uint32_t base;     // where this block's keys go in global memory
    uint32_t is_last;
    uint32_t unused;
};
static_assert(sizeof(ScanShared) == 1696, "the launcher asks for this much; a multiple of 16, for the keys that follow");

struct Row {
    const device::Vector16* values;
    float scale;
};

template <class Type>
CIR_DEVICE Row row_of_segment(const Segment& segment, uint32_t number, uint32_t vectors) {
    const uint32_t local = number - segment.first;
    const auto* values = static_cast<const device::Vector16*>(segment.rows) + static_cast<size_t>(local) * vectors;
    const float scale = Type::kScaled && segment.scales != nullptr ? device::load(segment.scales + local) : 1.0f;
    return {values, scale};
}

template <class Type>
CIR_DEVICE Row find_row(const ScanArguments& args, uint32_t number) {
    uint32_t s = 0;
    while (s + 1 < args.segment_count && number >= args.segments[s + 1].first) ++s;
    return row_of_segment<Type>(args.segments[s], number, args.vectors);
}

// Four rows by what lane 8 r knows of row r.
CIR_DEVICE void share_rows(const Row& mine, const device::Vector16* (&rows)[kRowsOfWarp]) {
    const auto address = reinterpret_cast<unsigned long long>(mine.values);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
        rows[r] = reinterpret_cast<const device::Vector16*>(device::from_lane(address, 8 * r));
    }
}

template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE void scan(const ScanArguments& args) {
    const uint32_t q = device::block_y();
    const bool rescue = (args.flags & kRescue) != 0;
    if (rescue && device::load_fresh(args.overflowed + q) == 0) return;

    auto& shared = *reinterpret_cast<ScanShared*>(device::shared());
    auto* keys = reinterpret_cast<uint64_t*>(device::shared() + sizeof(ScanShared));
    auto* prepared = reinterpret_cast<float*>(keys + args.buffer);
    const int lane = device::lane(), warp = device::warp();
    const uint32_t k = args.k;

    const size_t of_query = static_cast<size_t>(args.term_count) * args.dimension;
    const Query query{prepared,
                      args.numerators + q * of_query,
                      kWeighted ? args.weights + q * of_query : nullptr,
                      static_cast<int>(args.term_count),
                      static_cast<int>(args.dimension),
                      static_cast<int>(args.vectors)};
    if (device::thread() == 0) shared.count = 0;
    if constexpr (kShared) {
        prepare_terms<Type, kAtOnce, kWeighted>(query, prepared, shared.scratch);
    }
    device::barrier();

    const Segment segment = args.segments[args.segment];
    const bool listed = args.lists != nullptr;
    const uint32_t* list = listed ? args.lists + static_cast<size_t>(q) * args.list_capacity : nullptr;
    const uint32_t meant = listed ? device::load_fresh(args.list_counts + q) : segment.count;
    const uint32_t count = listed && meant > args.list_capacity ? args.list_capacity : meant;
    const uint64_t ceiling = (args.flags & kBelow) ? device::load_fresh(args.ceilings + q) : ~0ull;
    const uint32_t run = kRowsOfRound * args.rounds;
    const uint32_t high_water = args.buffer - run;
    uint64_t own_floor = 0;

    for (uint32_t start = device::block_x() * run; start < count; start += device::grid_x() * run) {
        const uint64_t others = device::load_fresh(args.floors + q);
        const uint64_t floor = others > own_floor ? others : own_floor;
        bool full = false;
        for (uint32_t round = 0; round < args.rounds; ++round) {
            const uint32_t base = start + round * kRowsOfRound + warp * kRowsOfWarp;
            if (base >= count) break;
            const uint32_t at = base + lane / 8;
            const uint32_t index = at < count ? at : base;
            const uint32_t number = listed ? list[index] : segment.first + index;
            bool wanted = at < count;
            if (wanted && args.allow != nullptr) wanted = (device::load(args.allow + number / 8) >> (number % 8)) & 1;
            if (device::ballot(wanted) == 0) continue;

            const Row mine = listed ? find_row<Type>(args, number) : row_of_segment<Type>(segment, number, args.vectors);
            const device::Vector16* rows[kRowsOfWarp];
            share_rows(mine, rows);
            float score = 0;
            for (int j = 0; j < query.term_count; j += kAtOnce) {
                float term = terms_of_rows<Type, kAtOnce, kWeighted, kShared>(query, j, rows, mine.scale);
                if constexpr (kAtOnce == 2) term += device::from_lane_xor(term, 4);
                score += term;
            }
            if (wanted && lane % 8 == 0) {
                const uint64_t key = key_of(score, number);
                if (key > floor && key < ceiling) {
                    const uint32_t slot = device::add(&shared.count, 1);
                    keys[slot] = key;
                    full |= slot >= high_water;
                }
            }
        }
        if (device::barrier_or(full)) {
            const uint32_t held = shared.count;
            own_floor = keep_largest(keys, held, k, shared.selection);
            if (device::thread() == 0) {
                shared.count = k;
                device::raise(args.floors + q, own_floor - 1);  // exclusive: the k themselves still count
            }
            own_floor -= 1;
            device::barrier();
        }
    }

    uint32_t held = shared.count;
    device::barrier();
    if (held > k) {
        own_floor = keep_largest(keys, held, k, shared.selection) - 1;
        held = k;
        if (device::thread() == 0) device::raise(args.floors + q, own_floor);
    }
    const uint64_t floor = device::load_fresh(args.floors + q);
    if (device::thread() == 0) shared.count = 0;
    device::barrier();
    // Keys that some other block's k largest all beat are left behind.
    uint64_t survivors[kBuffer / kThreads];
    uint32_t slots[kBuffer / kThreads];
#pragma unroll
    for (uint32_t i = 0; i < kBuffer / kThreads; ++i) {
        const uint32_t at = i * kThreads + device::thread();
        survivors[i] = at < held ? keys[at] : 0;
        slots[i] = survivors[i] > floor ? device::add(&shared.count, 1) : 0;
    }
    device::barrier();
    uint64_t* merged = args.keys + static_cast<size_t>(q) * args.key_capacity;
    if (device::thread() == 0) shared.base = device::add(args.key_counts + q, shared.count);
    device::barrier();
#pragma unroll
    for (uint32_t i = 0; i < kBuffer / kThreads; ++i) {
        if (survivors[i] > floor) merged[shared.base + slots[i]] = survivors[i];
    }
    device::fence();
    device::barrier();  // every thread's keys are out before the ticket is taken
    if (device::thread() == 0) {
        shared.is_last = device::add(args.tickets + q, 1) + 1 == device::grid_x();
        shared.count = 0;
    }
    device::barrier();
    if (!shared.is_last) return;
    device::fence();

    // The last block of this query: the k best of all.
    const uint32_t total = device::load_fresh(args.key_counts + q);
    const auto at = [merged](uint32_t i) { return device::load_fresh(merged + i); };
    const uint64_t bound = total > k ? bound_of_largest(at, total, k, shared.selection) : 1;
    for (uint32_t i = device::thread(); i < total; i += device::threads()) {
        const uint64_t key = at(i);
        if (key >= bound) keys[device::add(&shared.count, 1)] = key;
    }
    device::barrier();
    const uint32_t found = shared.count;
    const bool finish = (args.flags & kFinish) != 0;
    if (device::thread() == 0) {
        args.tickets[q] = 0;
        args.key_counts[q] = finish ? 0 : found;
        if (finish) args.floors[q] = 0;
        if (listed) {
            args.list_counts[q] = 0;
            if (meant > args.list_capacity) args.overflowed[q] = 1;
        }
        if (rescue && finish) {
            args.overflowed[q] = 0;
            device::add(args.rescued, 1);
        }
    }
    if (!finish) {
        uint64_t least = ~0ull;
        for (uint32_t i = device::thread(); i < found; i += device::threads()) {
            merged[i] = keys[i];
            least = keys[i] < least ? keys[i] : least;
        }
        // The bound of the selection may lie well below the k-th key; the next launch deserves the key itself.
        least = least_of_block(least, shared.selection);
        if (device::thread() == 0 && found == k) args.floors[q] = least - 1;
        return;
    }

    sort_descending(keys, found);
    const size_t out = static_cast<size_t>(q) * args.out_stride;
    for (uint32_t i = device::thread(); i < k; i += device::threads()) {
        args.scores[out + i] = i < found ? score_of(keys[i]) : -device::from_bits(0x7f800000u);
        args.rows[out + i] = i < found ? static_cast<int64_t>(row_of(keys[i])) : -1;
    }
    for (uint32_t i = found * args.term_count + device::thread(); i < k * args.term_count; i += device::threads()) {
        args.terms[out * args.term_count + i] = device::from_bits(0x7fc00000u);
    }
    if (device::thread() == 0) args.ceilings[q] = found == k ? keys[k - 1] : 1;
    for (uint32_t base = warp * kRowsOfWarp; base < found; base += kRowsOfRound) {
        const uint32_t place = base + lane / 8;
        const Row mine = find_row<Type>(args, row_of(keys[place < found ? place : base]));
        const device::Vector16* rows[kRowsOfWarp];
        share_rows(mine, rows);
        for (int j = 0; j < query.term_count; j += kAtOnce) {
            const float term = terms_of_rows<Type, kAtOnce, kWeighted, kShared>(query, j, rows, mine.scale);
            const int own = j + (kAtOnce == 2 ? (lane / 4) % 2 : 0);
            const bool writes = lane % (kAtOnce == 2 ? 4 : 8) == 0;
            if (writes && place < found && own < query.term_count) {
                args.terms[(out + place) * args.term_count + own] = term;
            }
        }
    }
}

#define CIR_SCAN(name, Type, at_once, weighted, in_shared) \
    CIR_KERNEL(name, ScanArguments, kThreads, 2) { scan<Type, at_once, weighted, in_shared>(args); }

#define CIR_SCANS(suffix, Type)                               \
    CIR_SCAN(scan_##suffix##_dot1, Type, 1, false, true)      \
    CIR_SCAN(scan_##suffix##_dot2, Type, 2, false, true)      \
    CIR_SCAN(scan_##suffix##_dot_any, Type, 1, false, false)  \
    CIR_SCAN(scan_##suffix##_ratio1, Type, 1, true, true)     \
    CIR_SCAN(scan_##suffix##_ratio2, Type, 2, true, true)     \
    CIR_SCAN(scan_##suffix##_ratio_any, Type, 1, true, false)

CIR_SCANS(f32, Float32)
CIR_SCANS(f16, Float16)
CIR_SCANS(i8, Int8)
