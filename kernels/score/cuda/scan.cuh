// The exact kernel: score rows and keep the k best of each query, in one launch and one read.
//
// Block (x, q) takes every grid_x-th run of rows of query q. A warp scores four rows at a time, in float32, and appends
// the keys that may beat the running floor to the block's buffer. A full buffer is cut back to the keys that may be among
// its k largest, and the floor so found is raised for all blocks. Where rounding leaves too many of them, their exact
// scores decide, and so they do at the end: what a block hands on is exact. The block that finishes last merges.
//
// A floor is a key, and it is exclusive: k rows are known to have exact keys above it. `slack` bounds how far the score in
// a key of the buffer may lie from the exact one.
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
    uint32_t slack;    // bits of the largest slack of a key in the buffer
    Rounding rounding; // of this query
    uint64_t ceiling;  // only keys below count
};
static_assert(sizeof(ScanShared) == 1712, "the launcher asks for this much; a multiple of 16, for the keys that follow");

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

// Where keys of the buffer find their rows, and what bounds them.
template <class Type, bool kWeighted>
struct Buffer {
    const ScanArguments& args;
    const Query& query;
    const Segment& segment;
    const bool listed;
    uint64_t* const keys;
    ScanShared& shared;

    CIR_DEVICE Row row(uint32_t number) const {
        return listed ? find_row<Type>(args, number) : row_of_segment<Type>(segment, number, args.vectors);
    }

    // Keys that may beat the floor.
    CIR_DEVICE static uint64_t least_key_above(uint64_t floor, float slack) {
        if (slack == 0) return floor + 1;
        return floor == 0 ? 1 : key_from(below(score_of(floor) - slack));
    }

    // Cuts the buffer back to the keys that may beat the floor, a higher one if it finds one, which it returns; to at most
    // `most` keys, or, if that is 0, to the k best and exactly. Every thread calls this, after a barrier.
    CIR_DEVICE uint64_t narrow(uint64_t floor, uint32_t most) {
        const uint32_t k = args.k;
        uint32_t held = shared.count;
        float slack = device::from_bits(shared.slack);
        floor = raise(floor, held, slack);
        keep_from(keys, held, least_key_above(floor, slack), shared.selection);
        device::barrier();
        held = shared.selection.kept;
        if (slack != 0 && held > most) {
            for (uint32_t base = device::warp() * kRowsOfWarp; base < held; base += kRowsOfRound) {
                const uint32_t place = base + device::lane() / 8;
                // Read by the lane that writes it.
                uint32_t number = place < held && device::lane() % 8 == 0 ? row_of(keys[place]) : 0;
                number = device::from_lane(number, place < held ? device::lane() / 8 * 8 : 0);
                const Row mine = row(number);
                const float score = exact_score<Type, kWeighted>(query, mine.values, mine.scale, nullptr);
                if (place < held && device::lane() % 8 == 0) keys[place] = key_of(score, number);
            }
            device::barrier();
            slack = 0;
            floor = raise(floor, held, slack);
            keep_from(keys, held, floor + 1, shared.selection);
            device::barrier();
            held = shared.selection.kept;
        }
        if (device::thread() == 0) {
            shared.count = held;
            shared.slack = device::bits(slack);
            if (held >= k) device::raise(args.floors + device::block_y(), floor);
        }
        return floor;
    }

    // A floor below the k-th of the keys.
    CIR_DEVICE uint64_t raise(uint64_t floor, uint32_t held, float slack) {
        if (held <= args.k) return floor;
        const uint64_t bound = bound_of_largest([this](uint32_t i) { return keys[i]; }, held, args.k, shared.selection);
        uint64_t least = ~0ull;
        for (uint32_t i = device::thread(); i < held; i += device::threads()) {
            if (keys[i] >= bound && keys[i] < least) least = keys[i];
        }
        least = least_of_block(least, shared.selection);
        const uint64_t reached = slack == 0 ? least - 1 : key_from(below(score_of(least) - slack)) - 1;
        return reached > floor ? reached : floor;
    }
};

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
    if (device::thread() == 0) {
        shared.count = 0;
        shared.slack = 0;
    }
    bool whole = true;
    if constexpr (kShared) {
        whole = prepare_terms<Type, kAtOnce, kWeighted>(query, prepared, shared.scratch);
    }
    // The selection's memory is free until the first keys are cut back.
    const Rounding rounding = rounding_of<kWeighted>(query, whole, reinterpret_cast<double*>(shared.selection.least));
    if (device::thread() == 0) {
        shared.rounding = rounding;
        shared.ceiling = (args.flags & kBelow) ? device::load_fresh(args.ceilings + q) : ~0ull;
    }
    device::barrier();

    const Segment segment = args.segments[args.segment];
    const bool listed = args.lists != nullptr;
    const uint32_t* list = listed ? args.lists + static_cast<size_t>(q) * args.list_capacity : nullptr;
    const uint32_t meant = listed ? device::load_fresh(args.list_counts + q) : segment.count;
    const uint32_t count = listed && meant > args.list_capacity ? args.list_capacity : meant;
    const uint32_t run = kRowsOfRound * args.rounds;
    const uint32_t high_water = args.buffer - run;
    Buffer<Type, kWeighted> buffer{args, query, segment, listed, keys, shared};
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

            const Row mine = buffer.row(number);
            const device::Vector16* rows[kRowsOfWarp];
            share_rows(mine, rows);
            float score = 0, reach = 0;
            for (int j = 0; j < query.term_count; j += kAtOnce) {
                float term = terms_of_rows<Type, kAtOnce, kWeighted, kShared>(query, j, rows, mine.scale, reach);
                if constexpr (kAtOnce == 2) term += device::from_lane_xor(term, 4);
                score += term;
            }
            const uint64_t ceiling = shared.ceiling;
            float slack = kWeighted ? shared.rounding.constant : fmaf(shared.rounding.per_reach, reach, shared.rounding.constant);
            bool unknown = !(fabsf(score) + slack <= kLargestTerm);
            const uint64_t most = unknown ? ~0ull : key_up_to(score + slack);
            wanted = wanted && most > floor && (unknown || key_from(score - slack) < ceiling);
            // Nothing is known of the row but that it may be good; or it may be among those of an earlier pass.
            unknown = wanted && (unknown || most >= ceiling);
            if (device::ballot(unknown) != 0) {
                const float exact = exact_score<Type, kWeighted>(query, mine.values, mine.scale, nullptr);
                if (unknown) {
                    const uint64_t key = key_of(exact, number);
                    wanted = key > floor && key < ceiling;
                    score = exact;
                    slack = 0;
                }
            }
            if (wanted && lane % 8 == 0) {
                const uint32_t slot = device::add(&shared.count, 1);
                keys[slot] = key_of(score, number);
                device::raise(&shared.slack, device::bits(slack));
                full |= slot >= high_water;
            }
        }
        if (device::barrier_or(full)) {
            own_floor = buffer.narrow(floor, (k + high_water) / 2);
            device::barrier();
        }
    }

    const uint64_t others = device::load_fresh(args.floors + q);
    // Keys that some other block's k largest all beat are left behind.
    own_floor = buffer.narrow(others > own_floor ? others : own_floor, 0);
    device::barrier();
    const uint32_t held = shared.count;
    uint64_t* merged = args.keys + static_cast<size_t>(q) * args.key_capacity;
    if (device::thread() == 0) shared.base = device::add(args.key_counts + q, held);
    device::barrier();
    for (uint32_t i = device::thread(); i < held; i += device::threads()) merged[shared.base + i] = keys[i];
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
            const uint32_t asked = device::load_fresh(args.list_counts + q);
            args.list_counts[q] = 0;
            if (asked > args.list_capacity) args.overflowed[q] = 1;
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
        exact_score<Type, kWeighted>(query, mine.values, mine.scale, place < found ? args.terms + (out + place) * args.term_count : nullptr);
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
