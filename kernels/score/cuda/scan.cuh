// The exact kernel: score rows and keep the k best of each query, in one launch and one read.
//
// Block (x, q) takes every grid_x-th run of rows for query q. A warp scores four rows at a time, in float32, and appends
// the keys that may beat the running floor to the block's buffer. A full buffer is cut back to the keys that may be among
// its k largest. Where rounding leaves too many of them, their exact scores decide. What a block hands on at the end is
// exact, with its terms. The block that finishes last merges. All parts of this one launch share their registers and their
// shared memory.
#pragma once

#include "block_keys.cuh"
#include "merge.cuh"

constexpr uint32_t kAskedFor = 4096;  // bytes of a row or a term that are asked for ahead: what the first-level cache has room for

template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE void scan(const ScanArguments& args) {
    const uint32_t q = device::block_y();
    const bool rescue = (args.flags & kRescue) != 0;
    if (rescue && device::load_fresh(args.overflowed + q) == 0) return;

    auto& shared = *reinterpret_cast<ScanShared*>(device::shared());
    auto* const keys = reinterpret_cast<uint64_t*>(device::shared() + sizeof(ScanShared));
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
    const Segment segment = args.segments[args.segment];
    const bool listed = args.lists != nullptr;
    const uint32_t* list = listed ? args.lists + static_cast<size_t>(q) * args.list_capacity : nullptr;
    const uint32_t meant = listed ? device::load_fresh(args.list_counts + q) : segment.count;
    const uint32_t count = listed && meant > args.list_capacity ? args.list_capacity : meant;
    const uint32_t blocks = device::grid_x(), stripe = blocks * args.run, stripes = (count + stripe - 1) / stripe;
    const auto run_of = [=](uint32_t s) { return count - s * stripe < stripe ? (count - s * stripe + blocks - 1) / blocks : stripe / blocks; };
    const uint32_t begin = device::block_x() * run_of(0) + warp * kRowsOfWarp;
    if (!listed && begin < count) {
        // The first rows come while the terms are looked at.
        const uint32_t rows = count - begin < kRowsOfWarp ? count - begin : kRowsOfWarp, bytes = rows * args.vectors * 16;
        const auto* from = static_cast<const unsigned char*>(segment.rows) + static_cast<size_t>(begin) * args.vectors * 16;
        for (uint32_t at = lane * 32; at < bytes; at += 32 * 32) device::ask_for(from + at);
    }
    // Float64 is slow on most GPUs: where one block sees all keys of a query, they are made exact only at the end.
    const bool loose = (args.flags & kLoose) != 0 && blocks == 1, finish = (args.flags & kFinish) != 0;
    uint64_t* const merged = args.keys + static_cast<size_t>(q) * args.key_capacity;
    const uint32_t carried = loose ? device::load_fresh(args.key_counts + q) : 0;
    for (uint32_t i = device::thread(); i < carried; i += device::threads()) keys[i] = device::load_fresh(merged + i);
    if (device::thread() == 0) {
        shared.runs = stripes;
        shared.count = carried;
        shared.slack = carried > 0 ? device::load_fresh(args.slacks + q) : 0;
    }
    // The selection's memory is free until the first keys are cut back.
    const Rounding rounding = prepare<Type, kAtOnce, kWeighted, kShared>(query, prepared, shared.scratch, reinterpret_cast<double*>(shared.selection.least));
    if (device::thread() == 0) {
        shared.rounding = rounding;
        shared.ceiling = (args.flags & kBelow) ? device::load_fresh(args.ceilings + q) : ~0ull;
    }
    device::barrier();

    const uint32_t high_water = args.buffer - args.run;
    const uint32_t enough = (k + high_water) / 2;
    Buffer<Type, kWeighted> buffer{args, keys, shared};

    for (uint32_t taken = 0;;) {
        const uint32_t run = run_of(taken), start = taken * stripe + device::block_x() * run;
        const uint32_t end = start + run < count ? start + run : count;
        const uint64_t floor = device::load_fresh(args.floors + q);  // of all blocks, this one too
        const float cut = floor == 0 ? -device::from_bits(0x7f800000u) : score_of(floor);
        bool full = false;
        for (uint32_t base = start + warp * kRowsOfWarp; base < end; base += kRowsOfRound) {
            const uint32_t at = base + lane / 8;
            const uint32_t index = at < end ? at : base;
            const uint32_t number = listed ? list[index] : segment.first + index;
            bool wanted = at < end;
            if (wanted && args.allow != nullptr) wanted = (device::load(args.allow + number / 8) >> (number % 8)) & 1;
            if (device::ballot(wanted) == 0) continue;

            const device::Vector16* rows[kRowsOfWarp];
            float scale = 1;
            if (listed) {
                const Row mine = find_row<Type>(args, number);
                share_rows(mine, rows);
                scale = mine.scale;
            } else {
                // The same for all lanes, and no shuffles.
                const Row first = row_of_segment<Type>(segment, segment.first + base, args.vectors);
#pragma unroll
                for (int r = 0; r < kRowsOfWarp; ++r) rows[r] = first.values + (base + r < end ? r * args.vectors : 0);
                if constexpr (Type::kScaled) scale = row_of_segment<Type>(segment, number, args.vectors).scale;
            }
            float score = 0, reach = 0;
            for (int j = 0; j < query.term_count; j += kAtOnce) {
                float term = terms_of_rows<Type, kAtOnce, kWeighted, kShared>(query, j, rows, scale, reach);
                if constexpr (kAtOnce == 2) term += device::from_lane_xor(term, 4);
                score += term;
            }
            float slack = kWeighted ? shared.rounding.constant : fmaf(shared.rounding.per_reach, reach, shared.rounding.constant);
            // Most rows are done with here; those of which little is known are not.
            if (device::ballot(wanted && !(score + slack < cut && score >= -kLargestTerm)) == 0) continue;
            // Numbers again: no register holds them for as long.
            const uint32_t found_at = base + lane / 8 < end ? base + lane / 8 : base, found_number = listed ? list[found_at] : segment.first + found_at;
            const uint64_t ceiling = shared.ceiling;
            bool unknown = !(fabsf(score) + slack <= kLargestTerm);
            const uint64_t most = unknown ? ~0ull : key_up_to(score + slack);
            wanted = wanted && most > floor && (unknown || key_from(score - slack) < ceiling);
            // Nothing is known of the row but that it may be good; or it may be among those of an earlier pass.
            unknown = wanted && (unknown || most >= ceiling);
            if (device::ballot(unknown) != 0) {
                const float exact = exact_of<Type, kWeighted>(args, found_number, nullptr);
                if (unknown) {
                    const uint64_t key = key_of(exact, found_number);
                    wanted = key > floor && key < ceiling;
                    score = exact;
                    slack = 0;
                }
            }
            if (wanted && lane % 8 == 0) {
                const uint32_t slot = device::add(&shared.count, 1);
                keys[slot] = key_of(score, found_number);
                device::raise(&shared.slack, device::bits(slack));
                full |= slot >= high_water;
            }
        }
        // After a quarter of the runs, so that three of four rows are held against all blocks' floor, and before the last,
        // so that what is handed on is, the blocks hear of one another.
        ++taken;
        const uint32_t runs = shared.runs;
        const bool last = taken >= runs, due = blocks > 1 && (taken == (runs + 3) / 4 || taken + 1 == runs);
        if (device::barrier_or(full) || due || last) {
            // One place for both: twice in the code, it would come from memory twice in a launch.
            buffer.narrow(last ? k : enough, last ? k + kSpare : enough);
            device::barrier();
        }
        if (last) break;
    }
    const uint32_t held = shared.count;
    const auto list_is_done = [&] {
        if (!listed) return;
        const uint32_t asked = device::load_fresh(args.list_counts + q);
        args.list_counts[q] = 0;
        if (asked > args.list_capacity) args.overflowed[q] = 1;
    };
    if (loose && !finish) {
        for (uint32_t i = device::thread(); i < held; i += device::threads()) merged[i] = keys[i];
        if (device::thread() == 0) {
            args.key_counts[q] = held;
            args.slacks[q] = shared.slack;
            list_is_done();
        }
        return;
    }
    uint32_t* terms = args.key_terms + static_cast<size_t>(q) * args.key_capacity * args.term_count;
    // What exact scores take comes by a few values at a time, each lot behind the one before: all is asked for while the
    // keys are given their place.
    for (uint32_t place = warp * kRowsOfWarp + lane / 8; place < held; place += kRowsOfRound) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(row_of_number<Type>(args, row_of(keys[place])).values);
        for (uint32_t at = lane % 8 * 32; at < args.vectors * 16 && at < kAskedFor; at += 8 * 32) device::ask_for(bytes + at);
    }
    if (warp * kRowsOfWarp < held) {
        for (uint32_t at = lane * 8; at < of_query && at < kAskedFor / 2; at += 32 * 8) {
            device::ask_for(query.numerators + at);
            if constexpr (kWeighted) device::ask_for(query.weights + at);
        }
    }
    if (device::thread() == 0) shared.base = loose ? 0 : device::add(args.key_counts + q, held);
    device::barrier();
    for (uint32_t base = warp * kRowsOfWarp; base < held; base += kRowsOfRound) {
        const uint32_t place = base + lane / 8;
        const bool real = place < held;
        const uint32_t number = row_of(keys[real ? place : base]), slot = shared.base + place;
        const float score = exact_of<Type, kWeighted>(args, number, real ? terms + static_cast<size_t>(slot) * args.term_count : nullptr);
        if (real && lane % 8 == 0) merged[slot] = key_of(score, number);
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

    merge(args, buffer, q, k, finish, rescue, loose ? held : device::load_fresh(args.key_counts + q), merged, terms, list_is_done);
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
