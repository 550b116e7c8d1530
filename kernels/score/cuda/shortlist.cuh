// The tensor-core kernel: approximate scores of a range of rows for all queries, and a list of every row that could
// be among a query's k best. The exact kernel scores the lists; together they are exact.
//
// Why it is safe: each approximate score differs from the exact one by at most `margin` (see pack), the floor is a
// score that k rows are known to reach, and a row stays out of a list only if its score plus the margin is below the
// floor. Rows whose approximation says nothing (squares out of float16's range, NaN) are listed always.
//
// Why it is fast: a row comes from memory straight into the registers that the matrix instruction wants, because the
// order of the D products is free: lane t of a quad loads 16 consecutive bytes and `pack` permutes the queries'
// operands to match. t and its square are formed once for all products, and scores never leave the registers.
#pragma once

#include "arguments.cuh"
#include "exact_terms.cuh"
#include "selection.cuh"

constexpr double kHalfRounding = 0x1p-11;  // relative rounding error of float16
constexpr double kLightWeight = 0x1p-30;   // of a packed weight; the largest is near 2^14

struct TermConstants {
    float factor;  // approximate term = numerator sum / sqrt(square sum) * factor
    float slack;   // times 1 / sqrt(square sum): what quantised rows add to the margin
    float trust;   // smallest square sum for which the margin holds
    float margin;  // bound on |approximate term - exact term|
};

// The 64 bytes that a quad of lanes loads make kSteps matrix steps of 16 values; step s takes values 4 s .. 4 s + 3
// of each lane's 16 bytes, as two float16 pairs.
template <class Type>
struct Halves;

template <>
struct Halves<Float32> {
    static constexpr int kSteps = 1;
    CIR_DEVICE static void step(const device::Vector16& v, int, float scale, uint32_t (&out)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            out[h] = device::half2_from(device::from_bits(v.word[2 * h]) * scale, device::from_bits(v.word[2 * h + 1]) * scale);
        }
    }
};

template <>
struct Halves<Float16> {
    static constexpr int kSteps = 2;
    CIR_DEVICE static void step(const device::Vector16& v, int s, float scale, uint32_t (&out)[2]) {
        const uint32_t factor = device::half2_from(scale, scale);
#pragma unroll
        for (int h = 0; h < 2; ++h) out[h] = device::half2_multiply(v.word[2 * s + h], factor);
    }
};

template <>
struct Halves<Int8> {
    static constexpr int kSteps = 4;
    // A byte placed into the mantissa of 2^10; 2^10 + 128 subtracted again. Exact, and no integer conversion.
    CIR_DEVICE static void step(const device::Vector16& v, int s, float, uint32_t (&out)[2]) {
        const uint32_t bias = 0x64806480u, biased = v.word[s] ^ 0x80808080u;
        out[0] = device::half2_subtract(device::permute_bytes(biased, 0x64646464u, 0x4140u), bias);
        out[1] = device::half2_subtract(device::permute_bytes(biased, 0x64646464u, 0x4342u), bias);
    }
};

// A warp takes 16 * kRowTiles rows and 8 * kGroups queries. kTerms numerators and, if weighted, kTerms weights make
// the kTiles tiles of 8 columns of a group of 8 queries.
template <class Type, int kTerms, bool kWeighted, int kRowTiles, int kGroups>
CIR_DEVICE void shortlist(const ShortlistArguments& args) {
    constexpr int kTiles = kTerms * (kWeighted ? 2 : 1);
    constexpr int kSteps = Halves<Type>::kSteps;
    const int lane = device::lane();
    const uint32_t column_warp = device::warp() % args.column_warps;
    const uint32_t row_warp = device::warp() / args.column_warps;
    const uint32_t row_warps = kWarps / args.column_warps;

    // This block's operands, as packed, into shared memory once.
    const uint32_t group_vectors = args.k_steps * kTiles * 16;  // of 16 bytes: 32 lanes * 4 halves a step and tile
    const uint32_t block_groups = kGroups * args.column_warps;
    auto* operands = reinterpret_cast<device::Vector16*>(device::shared());
    {
        const auto* from = static_cast<const device::Vector16*>(args.operands) +
                           static_cast<size_t>(device::block_y()) * block_groups * group_vectors;
        for (uint32_t i = device::thread(); i < block_groups * group_vectors; i += kThreads) operands[i] = device::load16(from + i);
    }
    device::barrier();
    const auto* mine = reinterpret_cast<const device::Vector8*>(operands + static_cast<size_t>(column_warp) * kGroups * group_vectors) + lane;
    const uint32_t first_query = (device::block_y() * block_groups + column_warp * kGroups) * 8;

    // A lane beyond a row takes what is there of its last vectors: the operands are zero there.
    const uint32_t nearest = lane % 4 < args.vectors ? lane % 4 : args.vectors - 1;
    const uint32_t furthest = args.vectors - 1 - nearest;

    const uint32_t rows_of_warp = 16 * kRowTiles;
    const uint32_t stride = device::grid_x() * row_warps * rows_of_warp;
    for (uint32_t base = (device::block_x() * row_warps + row_warp) * rows_of_warp; base < args.count; base += stride) {
        const device::Vector16* rows[kRowTiles][2];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint32_t row = base + m * 16 + half * 8 + lane / 4;
                rows[m][half] = static_cast<const device::Vector16*>(args.rows) +
                                static_cast<size_t>(row < args.count ? row : args.count - 1) * args.vectors + nearest;
            }
        }
        const auto fetch = [&](uint32_t vector, device::Vector16 (&to)[kRowTiles][2]) {
            const uint32_t further = vector < furthest ? vector : furthest;
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) to[m][half] = device::load16_and_ahead(rows[m][half] + further);
            }
        };
        float sums[kRowTiles][kGroups * kTiles][4] = {};
        const auto multiply = [&](uint32_t vector, const device::Vector16 (&values)[kRowTiles][2]) {
            const auto* step_operands = mine + static_cast<size_t>(vector / 4) * kSteps * kTiles * 32;
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                uint32_t b[kGroups * kTiles][2];
#pragma unroll
                for (int g = 0; g < kGroups; ++g) {
#pragma unroll
                    for (int tile = 0; tile < kTiles; ++tile) {
                        const device::Vector8 pair = step_operands[static_cast<size_t>(g) * group_vectors * 2 + (s * kTiles + tile) * 32];
                        b[g * kTiles + tile][0] = pair.word[0];
                        b[g * kTiles + tile][1] = pair.word[1];
                    }
                }
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
                    uint32_t upper[2], lower[2];
                    Halves<Type>::step(values[m][0], s, args.row_scale, upper);
                    Halves<Type>::step(values[m][1], s, args.row_scale, lower);
                    const uint32_t a[4] = {upper[0], lower[0], upper[1], lower[1]};
                    uint32_t squared[4];
                    if constexpr (kWeighted) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) squared[i] = device::half2_multiply(a[i], a[i]);
                    }
#pragma unroll
                    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
                        for (int tile = 0; tile < kTiles; ++tile) {
                            if (tile < kTerms) device::multiply_tiles(sums[m][g * kTiles + tile], a, b[g * kTiles + tile]);
                            else device::multiply_tiles(sums[m][g * kTiles + tile], squared, b[g * kTiles + tile]);
                        }
                    }
                }
            }
        };
        // One step is under way while the tensor cores work on the one before. Two steps a pass, so that none is moved
        // from registers to registers.
        device::Vector16 even[kRowTiles][2], odd[kRowTiles][2];
        fetch(0, even);
        for (uint32_t vector = 0; vector < args.vectors; vector += 8) {
            const bool more = vector + 4 < args.vectors;
            if (more) fetch(vector + 4, odd);
            multiply(vector, even);
            if (!more) break;
            if (vector + 8 < args.vectors) fetch(vector + 8, even);
            multiply(vector + 4, odd);
        }

        // Division and selection. This lane holds queries 2 t and 2 t + 1 of each group, rows lane / 4 and 8 further.
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const uint32_t query = first_query + g * 8 + 2 * (lane % 4) + side;
                if (query >= args.queries) continue;
                const uint64_t floor = args.floors[query];
                float factor[kTerms], slack[kTerms], trust[kTerms], margin = 0;
#pragma unroll
                for (int j = 0; j < kTerms; ++j) {
                    const device::Vector16 c = device::load16(args.constants + (static_cast<size_t>(query) * kTerms + j) * 4);
                    factor[j] = device::from_bits(c.word[0]);
                    slack[j] = device::from_bits(c.word[1]);
                    trust[j] = device::from_bits(c.word[2]);
                    margin += device::from_bits(c.word[3]);
                }
                const float cut = floor == 0 ? -device::from_bits(0x7f800000u) : score_of(floor) - margin;
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const uint32_t row = base + m * 16 + half * 8 + lane / 4;
                        const int c = half * 2 + side;
                        float upper = 0;
                        bool trusted = true;
#pragma unroll
                        for (int j = 0; j < kTerms; ++j) {
                            const float numerator = sums[m][g * kTiles + j][c];
                            if constexpr (kWeighted) {
                                const float square = sums[m][g * kTiles + kTerms + j][c];
                                trusted = trusted && square >= trust[j] && square <= 3e38f;
                                upper += (numerator * factor[j] + slack[j]) * device::reciprocal_root(square);
                            } else {
                                trusted = trusted && fabsf(numerator) <= 3e38f;
                                upper += numerator * factor[j] + slack[j];
                            }
                        }
                        const bool beaten = trusted && upper < cut;
                        if (row >= args.count || (beaten && args.scales == nullptr)) continue;
                        if (args.scales != nullptr) {
                            // Ratios have scales only where some row's is no ordinary one, NaN there.
                            const float scale = device::load(args.scales + row);
                            if (kWeighted ? beaten && scale == 1.0f : trusted && upper * scale < cut) continue;
                        }
                        const uint32_t number = args.first + row;
                        if (args.allow != nullptr && ((device::load(args.allow + number / 8) >> (number % 8)) & 1) == 0) continue;
                        const uint32_t slot = device::add(args.list_counts + query, 1);
                        if (slot < args.list_capacity) args.lists[static_cast<size_t>(query) * args.list_capacity + slot] = number;
                    }
                }
            }
        }
    }
}

// float32 terms to float16 operands in the order in which `shortlist` multiplies them, and the error bound.
//
// With u = n / sqrt(w), and ^ for what float16 holds, a term t -> n.t / sqrt(w.t^2) moves by at most
//     |u^ - u|            numerators rounded (Cauchy-Schwarz: |(n^ - n).t| <= |u^ - u| sqrt(w.t^2))
//   + r |u^|              rows rounded, relative error r of each value
//   + a |u^|              accumulation, and values below float16's normal range (see `trust`)
//   + d/2 / (1 - d) |u|   denominator: relative error d of the square sum, from weights, squares and rows
// and for int8 shadows by |u| e / (1 - e/2) more, with e = 0.5 sqrt(sum w) / sqrt(w.q^2) in units of the row's scale:
// the distance of two unit vectors is at most that of the vectors over their mean length.
// Block (q, j), where plain dot products have one block a query: the sum of their terms is one term.
template <bool kWeighted>
CIR_DEVICE void pack(const PackArguments& args) {
    auto* sums = reinterpret_cast<double*>(device::shared());      // 5 a warp
    auto* peaks = reinterpret_cast<float*>(sums + 5 * (kThreads / 32));  // 2 a warp
    const uint32_t terms = kWeighted ? args.term_count : 1;
    const uint32_t tiles = terms * (kWeighted ? 2 : 1);
    const uint32_t q = device::block_x() / terms, j = device::block_x() % terms;
    const bool real = q < args.queries;
    const uint32_t d = args.dimension;
    const float* numerators = args.numerators + (static_cast<size_t>(real ? q : 0) * args.term_count + j) * d;
    const float* weights = kWeighted ? args.weights + (static_cast<size_t>(real ? q : 0) * args.term_count + j) * d : nullptr;
    const auto whole = [&](uint32_t i) {
        double sum = 0;
        for (uint32_t other = 0; real && i < d && other < args.term_count; ++other) sum += fabs(static_cast<double>(device::load(numerators + static_cast<size_t>(other) * d + i)));
        return sum;
    };
    const auto precise = [&](uint32_t i) {
        if (!real || i >= d) return 0.0;
        double sum = device::load(numerators + i);
        if constexpr (!kWeighted) {
            for (uint32_t other = 1; other < args.term_count; ++other) sum += device::load(numerators + static_cast<size_t>(other) * d + i);
        }
        return sum;
    };
    const auto numerator = [&](uint32_t i) { return static_cast<float>(precise(i)); };
    const auto weight = [&](uint32_t i) { return real ? device::load(weights + i) : 0.0f; };

    float peak = 0, peak_weight = 0;
    for (uint32_t i = device::thread(); i < d; i += kThreads) {
        peak = fmaxf(peak, fabsf(numerator(i)));
        if constexpr (kWeighted) peak_weight = fmaxf(peak_weight, weight(i));
    }
    for (int step = 16; step > 0; step >>= 1) {
        peak = fmaxf(peak, device::from_lane_xor(peak, step));
        peak_weight = fmaxf(peak_weight, device::from_lane_xor(peak_weight, step));
    }
    if (device::lane() == 0) {
        peaks[2 * device::warp()] = peak;
        peaks[2 * device::warp() + 1] = peak_weight;
    }
    device::barrier();
    for (int i = 0; i < kWarps; ++i) {
        peak = fmaxf(peak, peaks[2 * i]);
        peak_weight = fmaxf(peak_weight, peaks[2 * i + 1]);
    }
    // Powers of two that bring the largest numerator near 2^12 and the largest weight near 2^14.
    const int shift = peak > 0 && peak <= 3e38f ? 12 - device::exponent_of(peak) : 0;
    const int weight_shift = peak_weight > 0 ? 14 - device::exponent_of(peak_weight) : 0;

    const double up = static_cast<double>(device::scaled(1.0f, shift / 2)) * static_cast<double>(device::scaled(1.0f, shift - shift / 2));

    // |u|^2, |u^ - u|^2, sum of the packed weights, or without weights | sum of the terms' |n| |^2; where the weight is next to nothing: sum |n|, sum |n^ - n|.
    constexpr int kSums = 5;
    double own[kSums] = {};
    const uint32_t step_values = args.quad_values / 4;  // matrix steps in the 64 bytes of a quad
    auto* packed = reinterpret_cast<device::Vector8*>(args.operands) + static_cast<size_t>(q / 8) * args.k_steps * tiles * 32;
    for (uint32_t i = device::thread(); i < args.k_steps * 4; i += kThreads) {
        const uint32_t step = i / 4, t = i % 4;
        const uint32_t first = (step / step_values) * args.quad_values * 4 + t * args.quad_values + step % step_values * 4;
        uint32_t n_words[2], w_words[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float n[2] = {}, w[2] = {};
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const uint32_t at = first + 2 * h + e;
                if (at >= d) continue;
                n[e] = numerator(at);
                if constexpr (kWeighted) w[e] = weight(at);
            }
            n_words[h] = device::half2_from(device::scaled(n[0], shift), device::scaled(n[1], shift));
            w_words[h] = kWeighted ? device::half2_from(device::scaled(w[0], weight_shift), device::scaled(w[1], weight_shift)) : 0;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const double rounded = e == 0 ? device::half2_low(n_words[h]) : device::half2_high(n_words[h]);
                const double exact = kWeighted ? static_cast<double>(device::scaled(n[e], shift)) : precise(first + 2 * h + e) * up;
                const double off = exact - rounded;
                const double w_exact = kWeighted ? static_cast<double>(device::scaled(w[e], weight_shift)) : 1.0;
                if (!kWeighted || w_exact < kLightWeight) {
                    own[3] += fabs(exact);
                    own[4] += fabs(off);
                }
                if (w_exact >= kLightWeight) {
                    own[0] += exact * exact / w_exact;
                    own[1] += off * off / w_exact;
                }
                if constexpr (!kWeighted) {
                    const double all = whole(first + 2 * h + e) * up;
                    own[2] += all * all;
                }
                if (kWeighted) own[2] += e == 0 ? device::half2_low(w_words[h]) : device::half2_high(w_words[h]);
            }
        }
        auto* to = packed + static_cast<size_t>(step) * tiles * 32 + (q % 8) * 4 + t;
        to[j * 32] = {{n_words[0], n_words[1]}};
        if constexpr (kWeighted) to[(terms + j) * 32] = {{w_words[0], w_words[1]}};
    }
#pragma unroll
    for (int v = 0; v < kSums; ++v) {
        for (int step = 16; step > 0; step >>= 1) own[v] += device::from_lane_xor(own[v], step);
        if (device::lane() == 0) sums[kSums * device::warp() + v] = own[v];
    }
    device::barrier();
    if (device::thread() != 0 || !real) return;
    double total[kSums] = {};
    for (int i = 0; i < kWarps; ++i) {
        for (int v = 0; v < kSums; ++v) total[v] += sums[kSums * i + v];
    }
    double u = sqrt(total[0]), u_off = sqrt(total[1]);
    // In units of the packed operands; back to the caller's by these.
    const double to_term = ldexp(1.0, -shift) * (kWeighted ? sqrt(ldexp(1.0, weight_shift)) : 1.0);
    const double accumulation = (args.k_steps + 2) * 0x1p-19;  // the matrix unit truncates; 2^-19 a step is generous
    const double row_error = args.row_rounding + 0x1p-19 + accumulation;
    auto* constants = reinterpret_cast<TermConstants*>(args.constants) + static_cast<size_t>(q) * terms + j;
    double margin;
    if constexpr (kWeighted) {
        const double square_error = 2 * kHalfRounding + 2 * args.row_rounding + 0x1p-13 + accumulation;
        const double weight_sum = total[2];
        const double reach = args.quantisation * sqrt(weight_sum) * 1.01;  // times 1 / sqrt(square sum): e above
        double trust = weight_sum * 0x1p-11;
        trust = fmax(trust, d * 0x1p5);
        trust = fmax(trust, reach * reach / (0.18 * 0.18));  // e <= 0.18, where 1 / (1 - e/2) <= 1.1
        // Values with next to no weight escape Cauchy-Schwarz, but no value of a trusted row passes 2^8.
        u += total[3] * 0x1p8 / sqrt(trust);
        u_off += total[4] * 0x1p8 / sqrt(trust);
        margin = u_off + row_error * (u + u_off) + square_error / 2 / (1 - square_error) * u;
        constants->factor = static_cast<float>(to_term);
        constants->slack = static_cast<float>(1.1 * u * reach * to_term);
        constants->trust = static_cast<float>(trust);
    } else {
        // Rows need not have unit length: their largest norm bounds what Cauchy-Schwarz gives.
        const double unscale = 1.0 / args.row_scale;
        margin = (u_off + row_error * (u + u_off)) * args.largest_norm + total[3] * 0x1p-24 * unscale;
        // Terms may cancel; each of them is rounded in float64.
        margin += sqrt(total[2]) * (d + 8.0) * 0x1p-50 * args.largest_norm;
        constants->factor = static_cast<float>(to_term * unscale);
        constants->slack = static_cast<float>(args.quantisation * sqrt(static_cast<double>(d)) * 1.01 * u * to_term);
        constants->trust = 0;
    }
    // 5% cover what is left out above and the rounding of exact scores; below float32's range that has an end.
    margin = 1.05 * margin * to_term + 0x1p-140;
    const double factor = constants->factor;
    if (!(margin <= 1e30 && factor >= 0x1p-126 && factor <= 1e38)) {
        margin = HUGE_VAL;  // every row is listed
        constants->trust = static_cast<float>(HUGE_VAL);
    }
    constants->margin = static_cast<float>(margin);
}

CIR_KERNEL(pack_dot, PackArguments, kThreads, 2) { pack<false>(args); }
CIR_KERNEL(pack_ratio, PackArguments, kThreads, 2) { pack<true>(args); }

// `few` takes 8 queries a warp and is bound by memory; `many` takes 8 tiles of columns and is bound by arithmetic.
constexpr int kRowTilesOfFew = 2;
constexpr int kRowTilesOfMany = 3;
constexpr int kTilesOfMany = 8;

#define CIR_SHORTLIST(name, Type, terms, weighted, row_tiles, groups, blocks) \
    CIR_KERNEL(name, ShortlistArguments, kThreads, blocks) { shortlist<Type, terms, weighted, row_tiles, groups>(args); }

#define CIR_SHORTLISTS(suffix, Type)                                                                   \
    CIR_SHORTLIST(few_##suffix##_dot1, Type, 1, false, kRowTilesOfFew, 1, 3)                           \
    CIR_SHORTLIST(few_##suffix##_ratio1, Type, 1, true, kRowTilesOfFew, 1, 2)                          \
    CIR_SHORTLIST(few_##suffix##_ratio2, Type, 2, true, kRowTilesOfFew, 1, 2)                          \
    CIR_SHORTLIST(many_##suffix##_dot1, Type, 1, false, kRowTilesOfMany, kTilesOfMany, 1)              \
    CIR_SHORTLIST(many_##suffix##_ratio1, Type, 1, true, kRowTilesOfMany, kTilesOfMany / 2, 1)         \
    CIR_SHORTLIST(many_##suffix##_ratio2, Type, 2, true, kRowTilesOfMany, kTilesOfMany / 4, 1)

CIR_SHORTLISTS(f32, Float32)
CIR_SHORTLISTS(f16, Float16)
CIR_SHORTLISTS(i8, Int8)
