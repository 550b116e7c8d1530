// The exact kernel: score rows and keep the k best of each query, in one launch and one read.
//
// Block (x, q) takes every grid_x-th run of rows for query q. A warp scores four rows at a time, in float32, and appends
// the keys that may beat the running floor to the block's buffer. A full buffer is cut back to the keys that may be among
// its k largest. Where rounding leaves too many of them, their exact scores decide. What a block hands on at the end is
// exact, with its terms. The block that finishes last merges.
//
// A floor is a key, and it is exclusive: k rows are known to have exact keys above it. `slack` bounds how far the score in
// a key of the buffer may lie from the exact one. A peak is a key that `share` of a block's rows reach or exceed. Where
// share times so many blocks is k, the least of their peaks is what a row must reach: so each block learns early what is
// good in all others, and hands on few keys more than k / grid_x.
//
// Long because it is one launch: what its parts share lives in the same registers and the same shared memory.
#pragma once

#include "arguments.cuh"
#include "exact_terms.cuh"
#include "selection.cuh"

constexpr uint32_t kRowsOfRound = kWarps * kRowsOfWarp;

// What lasts from the first run to the last lies in shared memory, for want of two or three registers: scan_i8_ratio1 would spill
// on sm_120. Not where others would spill by it: scan_i8_ratio2 on sm_75, scan_f16_ratio2 on sm_100.
constexpr bool kRunsAside = device::kRunsAside;

struct ScanShared {
    Selection selection;
    float scratch[32];
    uint32_t count;    // keys in the buffer
    uint32_t base;     // where this block's keys go in global memory
    uint32_t is_last;
    uint32_t slack;    // bits of the largest slack of a key in the buffer
    Rounding rounding; // of this query
    uint64_t ceiling;  // only keys below count
    uint64_t* merged;  // of this query, in global memory; this and `runs` only where kRunsAside
    uint32_t runs;     // of every block
};
static_assert(sizeof(ScanShared) == 1728, "the launcher asks for this much; a multiple of 16, for the keys that follow");

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

// A row by its number, which is mostly one of the segment that is scanned.
template <class Type>
CIR_DEVICE Row row_of_number(const ScanArguments& args, uint32_t number) {
    const Segment& here = args.segments[args.segment];
    return number - here.first < here.count ? row_of_segment<Type>(here, number, args.vectors) : find_row<Type>(args, number);
}

constexpr uint32_t kAskedFor = 4096;  // bytes of a row or a term that are asked for ahead: what the first-level cache has room for

// Four rows by what lane 8 r knows of row r.
CIR_DEVICE void share_rows(const Row& mine, const device::Vector16* (&rows)[kRowsOfWarp]) {
    const auto address = reinterpret_cast<unsigned long long>(mine.values);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
        rows[r] = reinterpret_cast<const device::Vector16*>(device::from_lane(address, 8 * r));
    }
}

// The exact score of a row by its number, for four rows at once as `exact_score` takes them. All that it needs it finds for
// itself: a caller in the hot loop has no registers to spare.
template <class Type, bool kWeighted>
CIR_DEVICE_ONCE float exact_of(const ScanArguments& args, uint32_t number, uint32_t* terms) {
    const size_t first = static_cast<size_t>(device::block_y()) * args.term_count * args.dimension;
    const Row row = row_of_number<Type>(args, number);
    return exact_score<Type, kWeighted>(args.numerators + first, kWeighted ? args.weights + first : nullptr, static_cast<int>(args.term_count),
                                        static_cast<int>(args.dimension), row.values, row.scale, terms);
}

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
    uint64_t* const merged_here = args.keys + static_cast<size_t>(q) * args.key_capacity;
    const uint32_t carried = loose ? device::load_fresh(args.key_counts + q) : 0;
    for (uint32_t i = device::thread(); i < carried; i += device::threads()) keys[i] = device::load_fresh(merged_here + i);
    if (device::thread() == 0) {
        if constexpr (kRunsAside) {
            shared.merged = merged_here;
            shared.runs = stripes;
        }
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

    const auto all_runs = [&] {
        if constexpr (kRunsAside) return shared.runs;
        else return stripes;
    };
    for (uint32_t taken = 0; taken < all_runs();) {
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
        const uint32_t runs = all_runs();
        const bool due = blocks > 1 && (taken == (runs + 3) / 4 || taken + 1 == runs) && taken < runs;
        if (device::barrier_or(full) || due) {
            buffer.narrow(enough, enough);
            device::barrier();
        }
    }

    buffer.narrow(k, k + kSpare);
    device::barrier();
    const uint32_t held = shared.count;
    uint64_t* const merged = kRunsAside ? shared.merged : merged_here;
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

    // The last block of this query: the k best of all.
    const uint32_t total = loose ? held : device::load_fresh(args.key_counts + q);
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
