// The terms of rows: in float32, with a bound on what rounding does to them, and exactly as defined.
#pragma once

#include <device.cuh>

constexpr int kRowsOfWarp = 4;        // rows that a warp scores together, so that each term is read once for four
constexpr float kSmallestSquare = 1e-30f;  // outside these bounds products may have left float32's range
constexpr float kLargestSquare = 1e30f;
constexpr float kLargestTerm = 3e38f;
constexpr float kLargestFloat = 3.402823466e38f;
constexpr float kSmallestReach2 = 0x1p-126f;  // more than squares lose below float32's range
constexpr float kUnit = 0x1p-24f;             // float32 rounds by at most so much of a value

struct Float32 {
    static constexpr int kWidth = 4;  // values in 16 bytes
    static constexpr bool kScaled = false;
    CIR_DEVICE static float value(const device::Vector16* row, int i) { return device::load(reinterpret_cast<const float*>(row) + i); }
    CIR_DEVICE static void unpack(const device::Vector16& v, int part, float (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = device::from_bits(v.word[i]);
        (void)part;
    }
};

struct Float16 {
    static constexpr int kWidth = 8;
    static constexpr bool kScaled = false;
    CIR_DEVICE static float value(const device::Vector16* row, int i) { return device::half2_low(device::load(reinterpret_cast<const uint16_t*>(row) + i)); }
    CIR_DEVICE static void unpack(const device::Vector16& v, int part, float (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            x[2 * i] = device::half2_low(v.word[2 * part + i]);
            x[2 * i + 1] = device::half2_high(v.word[2 * part + i]);
        }
    }
};

struct Int8 {
    static constexpr int kWidth = 16;
    static constexpr bool kScaled = true;
    CIR_DEVICE static float value(const device::Vector16* row, int i) { return static_cast<int8_t>(device::load(reinterpret_cast<const uint8_t*>(row) + i)); }
    // A byte b placed into the mantissa of 2^23 and 2^23 + 128 subtracted again: no slow integer conversion.
    CIR_DEVICE static void unpack(const device::Vector16& v, int part, float (&x)[4]) {
        const uint32_t biased = v.word[part] ^ 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i] = device::from_bits(device::permute_bytes(biased, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
        }
    }
};

// The terms of one query, in shared memory (kShared) or, where they do not fit, as the caller gave them.
//
// In shared memory value 4 * part + i of the 16-byte vector v of a row lies at float4 number part * vectors + v, so
// that the lanes of a warp, each on its own vector, read without bank conflicts. Every term is scaled by a power of
// two that brings its largest weight into [1/4, 1): the score stays, and tiny softmax weights stay in range.
struct Query {
    const float* prepared;
    const float* numerators;  // (J, D)
    const float* weights;     // (J, D) or null
    int term_count;           // J
    int dimension;
    int vectors;
};

CIR_DEVICE int padded_terms(int term_count, int at_once) { return (term_count + at_once - 1) / at_once * at_once; }

// How far the float32 score of a row may lie from its exact score: constant + per_reach * reach of the row, where only
// terms without weights have the latter. The proof is in kernels/score/README.md. Infinite where there is no bound.
struct Rounding {
    float constant, per_reach;
};

// `size` bounds the sum of all terms' |n / sqrt(w)|, or |n| without weights. float32 rounds what it computes of this by
// less than the thousandth by which `size` is too large.
template <bool kWeighted>
CIR_DEVICE Rounding rounding_of(const Query& query, float size) {
    const float terms = query.term_count, values = query.dimension;
    const float steps = values / 32 + 32, rounded = steps * kUnit / (1 - steps * kUnit);
    // 4 more than on the CPU: the reciprocal root is right to two units in the last place.
    const float rest = (terms + 18) * kUnit + values * 0x1p-47f;
    // Products of the smallest values are lost below float32's range: so much of a term.
    const float lost = terms * values * (kWeighted ? 0x1p-98f : 0x1p-148f);
    const float constant = (kWeighted ? size * (2 * rounded + rest) : size * 0) + lost;
    const float per_reach = kWeighted ? 0 : 1.2f * size * (rounded + rest) + lost;
    // NaN where the size is infinite and multiplied by 0.
    return {constant == constant ? constant + 0x1p-148f : device::from_bits(0x7f800000u), per_reach + 0x1p-148f};
}

constexpr int kTermsTogether = 2;  // that share a reduction over the block

// |n / sqrt(w)|^2 of a term, or |n|^2 without weights, in float64: for those that leave float32's range. `wide` has one
// double a warp. Every thread of the block calls this.
template <bool kWeighted>
CIR_DEVICE_ONCE double squared_size(const float* numerators, const float* weights, int dimension, double* wide) {
    double sum = 0;
    for (int i = device::thread(); i < dimension; i += device::threads()) {
        const double n = device::load(numerators + i);
        if (n == 0) continue;
        if constexpr (kWeighted) sum += n * n / static_cast<double>(device::load(weights + i));
        else sum += n * n;
    }
    for (int step = 16; step > 0; step >>= 1) sum += device::from_lane_xor(sum, step);
    if (device::lane() == 0) wide[device::warp()] = sum;
    device::barrier();
    double total = 0;
    for (int i = 0; i < device::threads() / 32; ++i) total += wide[i];
    device::barrier();
    return total;
}

// Looks at all terms of a query: fills `prepared` where they are read from shared memory, and bounds what rounding does
// to a score. `scratch` has four floats a warp, `wide` one double a warp; both are free again, and `prepared` may be
// read, after the caller's next barrier. Every thread of the block calls this.
template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE Rounding prepare(const Query& query, float* prepared, float* scratch, double* wide) {
    const int slots = query.vectors * Type::kWidth, warps = device::threads() / 32;
    bool whole = true;  // whether the values that this thread scaled kept all their bits
    float size = 0;
    for (int first = 0; first < query.term_count; first += kTermsTogether) {
        float most[kTermsTogether] = {}, sum[kTermsTogether] = {};
        for (int i = device::thread(); i < query.dimension; i += device::threads()) {
            float n[kTermsTogether], w[kTermsTogether];  // all on their way before the first is used
#pragma unroll
            for (int t = 0; t < kTermsTogether; ++t) {
                const bool real = first + t < query.term_count;
                const size_t at = static_cast<size_t>(first + t) * query.dimension + i;
                n[t] = real ? device::load(query.numerators + at) : 0.0f;
                if constexpr (kWeighted) w[t] = real ? device::load(query.weights + at) : 0.0f;
            }
#pragma unroll
            for (int t = 0; t < kTermsTogether; ++t) {
                if constexpr (kWeighted) {
                    most[t] = fmaxf(most[t], w[t]);
                    // In this order a product below float32's range is next to nothing, and above it is infinite.
                    if (n[t] != 0) sum[t] += n[t] / w[t] * n[t];
                } else {
                    sum[t] += n[t] * n[t];
                }
            }
        }
        if (first > 0) device::barrier();  // what is in the scratch has been read
#pragma unroll
        for (int t = 0; t < kTermsTogether; ++t) {
            for (int step = 16; step > 0; step >>= 1) {
                if constexpr (kWeighted) most[t] = fmaxf(most[t], device::from_lane_xor(most[t], step));
                sum[t] += device::from_lane_xor(sum[t], step);
            }
            if (device::lane() == 0) {
                scratch[2 * t * warps + device::warp()] = most[t];
                scratch[(2 * t + 1) * warps + device::warp()] = sum[t];
            }
        }
        device::barrier();
        int shift[kTermsTogether] = {};
#pragma unroll
        for (int t = 0; t < kTermsTogether; ++t) {
            if (first + t >= query.term_count) continue;
            float largest = 0, total = 0;
            for (int i = 0; i < warps; ++i) {
                if constexpr (kWeighted) largest = fmaxf(largest, scratch[2 * t * warps + i]);
                total += scratch[(2 * t + 1) * warps + i];
            }
            // float32 is a thousandth off at most, unless it has lost or overrun values.
            if (total >= 1e-20f && total <= 1e30f) {
                size += 1.002f * sqrtf(total);
            } else {
                const size_t at = static_cast<size_t>(first + t) * query.dimension;
                const float* w = kWeighted ? query.weights + at : nullptr;
                size += 1.002f * static_cast<float>(sqrt(squared_size<kWeighted>(query.numerators + at, w, query.dimension, wide)));
            }
            const int exponent = largest > 0 ? device::exponent_of(largest) + 1 : 0;  // largest < 2^exponent
            if constexpr (kWeighted) shift[t] = -((exponent + (exponent > 0)) / 2);
        }
#pragma unroll
        for (int t = 0; t < (kShared ? kTermsTogether : 0); ++t) {
            const int j = first + t;
            if (j >= padded_terms(query.term_count, kAtOnce)) continue;
            // A missing last term has no numerator and the other term's weights: it adds 0 / x.
            const bool real = j < query.term_count;
            const int by = real ? shift[t] : shift[0];  // a number known to the compiler: else the array needs memory
            const float up = device::from_bits(static_cast<uint32_t>(127 + by) << 23), down = device::from_bits(static_cast<uint32_t>(127 - by) << 23);
            const size_t from = static_cast<size_t>(real ? j : first) * query.dimension;
            float* to = prepared + static_cast<size_t>(j) * (kWeighted ? 2 : 1) * slots;
            for (int i = device::thread(); i < slots; i += device::threads()) {
                const int vector = i / Type::kWidth, inside = i % Type::kWidth;
                const int slot = ((inside / 4) * query.vectors + vector) * 4 + inside % 4;
                const bool in_row = i < query.dimension;
                const float n_value = in_row && real ? device::load(query.numerators + from + i) : 0.0f, n_scaled = n_value * up;
                to[slot] = n_scaled;
                whole = whole && n_scaled * down == n_value;
                if constexpr (kWeighted) {
                    const float w_value = in_row ? device::load(query.weights + from + i) : 0.0f, w_scaled = w_value * up * up;
                    to[slots + slot] = w_scaled;
                    whole = whole && w_scaled * down * down == w_value;
                }
            }
        }
    }
    if constexpr (kShared) {
        if (device::barrier_or(!whole)) size = device::from_bits(0x7f800000u);
    }
    return rounding_of<kWeighted>(query, size);
}

// Sums kCount values over the warp, halving their number with each of the first steps: afterwards the bits of a lane
// from the highest say which value it holds. All lanes of one value hold the same bits.
template <int kCount, int kStep = 16>
CIR_DEVICE float sum_over_warp(float (&v)[kCount]) {
    if constexpr (kCount == 1) {
#pragma unroll
        for (int step = kStep; step > 0; step >>= 1) v[0] += device::from_lane_xor(v[0], step);
        return v[0];
    } else {
        const bool upper = (device::lane() & kStep) != 0;
        float half[kCount / 2];
#pragma unroll
        for (int i = 0; i < kCount / 2; ++i) {
            const float sent = upper ? v[i] : v[i + kCount / 2], kept = upper ? v[i + kCount / 2] : v[i];
            half[i] = kept + device::from_lane_xor(sent, kStep);
        }
        return sum_over_warp<kCount / 2, kStep / 2>(half);
    }
}

// n and w of one float4 of a row.
template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE void read_terms(const Query& query, int j, int part, int vector, float (&n)[4], float (&w)[4]) {
    if constexpr (kShared) {
        const int slots = query.vectors * Type::kWidth;
        const float* from = query.prepared + static_cast<size_t>(j) * (kWeighted ? 2 : 1) * slots +
                            (part * query.vectors + vector) * 4;
        const device::Vector16 a = *reinterpret_cast<const device::Vector16*>(from);
#pragma unroll
        for (int i = 0; i < 4; ++i) n[i] = device::from_bits(a.word[i]);
        if constexpr (kWeighted) {
            const device::Vector16 b = *reinterpret_cast<const device::Vector16*>(from + slots);
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = device::from_bits(b.word[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = vector * Type::kWidth + part * 4 + i;
            const bool in_row = at < query.dimension;
            const size_t from = static_cast<size_t>(j) * query.dimension + at;
            n[i] = in_row ? device::load(query.numerators + from) : 0.0f;
            if constexpr (kWeighted) w[i] = in_row ? device::load(query.weights + from) : 0.0f;
        }
    }
}

// The exact score of four rows at once, as kernels/score/exact.h defines it and to the same bits. Lanes 8 r .. 8 r + 7
// bring the same row and hold the eight accumulators of its sums; they all get the score, NaN where the row does not
// rank, and the first of them writes the bits of its terms unless `terms` is null. Every lane of the warp calls this.
template <class Type, bool kWeighted>
CIR_DEVICE float exact_score(const float* numerators, const float* weights, int term_count, int dimension,
                             const device::Vector16* row, float scale, uint32_t* terms) {
    // Values that a lane asks for before it uses the first: as many as there are registers for.
    constexpr int kTogether = device::kConvertsSlowly ? (Type::kScaled ? 2 : 4) : 6;
    double score = 0;
    bool ranks = true;
    // Two terms at a time share what is made of the row.
    for (int j = 0; j < term_count; j += 2) {
        const bool both = j + 1 < term_count;
        const float* n[2] = {numerators + static_cast<size_t>(j) * dimension, numerators + static_cast<size_t>(both ? j + 1 : j) * dimension};
        const float* w[2] = {kWeighted ? weights + (n[0] - numerators) : nullptr, kWeighted ? weights + (n[1] - numerators) : nullptr};
        double numerator[2] = {}, square[2] = {};
        for (int first = device::lane() % 8; first < dimension; first += 8 * kTogether) {
            // Beyond the row all is 0, which changes no sum: they begin at +0, and so never are -0.
            float value[kTogether], by[2][kTogether], weight[2][kTogether];
#pragma unroll
            for (int u = 0; u < kTogether; ++u) {
                const int i = first + 8 * u;
                value[u] = i < dimension ? Type::value(row, i) : 0.0f;
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    by[p][u] = i < dimension ? device::load(n[p] + i) : 0.0f;
                    if constexpr (kWeighted) weight[p][u] = i < dimension ? device::load(w[p] + i) : 0.0f;
                }
            }
            bool ordinary = device::kConvertsSlowly;
#pragma unroll
            for (int u = 0; u < kTogether; ++u) {
                if constexpr (Type::kScaled) value[u] *= scale;
                ordinary = ordinary && device::is_ordinary(value[u]);
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    ordinary = ordinary && device::is_ordinary(by[p][u]);
                    if constexpr (kWeighted) ordinary = ordinary && device::is_ordinary(weight[p][u]);
                }
            }
            const auto add = [&](bool ordinary_ones) {
                const auto widened = [=](float v) { return ordinary_ones ? device::widened_ordinary(v) : device::widened(v); };
#pragma unroll
                for (int u = 0; u < kTogether; ++u) {
                    const double t = widened(value[u]);
                    double squared = 0;
                    if constexpr (kWeighted) squared = device::product(t, t);
#pragma unroll
                    for (int p = 0; p < 2; ++p) {
                        if (p == 1 && !both) break;
                        numerator[p] = device::sum(numerator[p], device::product(widened(by[p][u]), t));
                        if constexpr (kWeighted) square[p] = device::sum(square[p], device::product(widened(weight[p][u]), squared));
                    }
                }
            };
            if (ordinary) add(true);
            else add(false);
        }
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            if (p == 1 && !both) break;
            for (int step = 4; step > 0; step >>= 1) {
                numerator[p] = device::sum(numerator[p], device::from_lane_xor(numerator[p], step));
                if constexpr (kWeighted) square[p] = device::sum(square[p], device::from_lane_xor(square[p], step));
            }
            // Sums of float32 products cannot leave double's range: what is not finite was not so in the row.
            double term = numerator[p] - numerator[p] == 0 ? numerator[p] : NAN;
            if constexpr (kWeighted) {
                if (term == term) term = square[p] > 0 ? numerator[p] / sqrt(square[p]) : 0;
            }
            const float rounded = static_cast<float>(term);
            ranks = ranks && fabsf(rounded) <= kLargestFloat;
            if (terms != nullptr && device::lane() % 8 == 0) terms[j + p] = device::bits(rounded);
            score = device::sum(score, term);
        }
    }
    const float rounded = static_cast<float>(score);
    return ranks && fabsf(rounded) <= kLargestFloat ? rounded : NAN;
}

// Terms j .. j + kAtOnce - 1 of four rows in float32, NaN where they could have left its range. Lane l answers for row
// l / 8, whose scale it brings, and with kAtOnce == 2 for term j + (l / 4) % 2. Without weights, `reach` is how far
// rounding reaches in that row: its length.
template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE float terms_of_rows(const Query& query, int j, const device::Vector16* const (&rows)[kRowsOfWarp],
                               float scale, float& reach) {
    constexpr int kKinds = 2;
    constexpr int kSums = kRowsOfWarp * kAtOnce * kKinds;
    float sum[kSums] = {};
    const auto accumulate = [&](const device::Vector16 (&raw)[kRowsOfWarp], int vector) {
#pragma unroll
        for (int part = 0; part < Type::kWidth / 4; ++part) {
            float x[kRowsOfWarp][4];
#pragma unroll
            for (int r = 0; r < kRowsOfWarp; ++r) Type::unpack(raw[r], part, x[r]);
            float n[kAtOnce][4], w[kAtOnce][4];
#pragma unroll
            for (int p = 0; p < kAtOnce; ++p) read_terms<Type, kAtOnce, kWeighted, kShared>(query, j + p, part, vector, n[p], w[p]);
#pragma unroll
            for (int r = 0; r < kRowsOfWarp; ++r) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float square = x[r][i] * x[r][i];
#pragma unroll
                    for (int p = 0; p < kAtOnce; ++p) {
                        float* to = sum + (r * kAtOnce + p) * kKinds;
                        to[0] = fmaf(n[p][i], x[r][i], to[0]);
                        to[1] = kWeighted ? fmaf(w[p][i], square, to[1]) : to[1] + square;
                    }
                }
            }
        }
    };
    // Two vectors of each of four rows are asked for before the first is used.
    for (int vector = device::lane(); vector < query.vectors; vector += 64) {
        device::Vector16 first[kRowsOfWarp], second[kRowsOfWarp];
        const bool more = vector + 32 < query.vectors;
#pragma unroll
        for (int r = 0; r < kRowsOfWarp; ++r) first[r] = device::load16(rows[r] + vector);
        if (more) {
#pragma unroll
            for (int r = 0; r < kRowsOfWarp; ++r) second[r] = device::load16(rows[r] + vector + 32);
        }
        accumulate(first, vector);
        if (more) accumulate(second, vector + 32);
    }

    const float mine = sum_over_warp(sum);
    constexpr int kKindBit = kAtOnce == 2 ? 2 : 4;
    const float other = device::from_lane_xor(mine, kKindBit);
    const bool holds_square = (device::lane() & kKindBit) != 0;
    const float square = holds_square ? mine : other, numerator = holds_square ? other : mine;
    float term = numerator;
    bool sound = true;
    if constexpr (kWeighted) {
        term = numerator * device::reciprocal_root(square);
        sound = square >= kSmallestSquare && square <= kLargestSquare;
    } else {
        reach = sqrtf(square + kSmallestReach2);
        if constexpr (Type::kScaled) {
            term *= scale;
            reach *= fabsf(scale);
        }
    }
    // Beyond, a scale changes more than the length of a row.
    if constexpr (Type::kScaled) sound = sound && scale > 0 && scale <= 1e36f;
    return sound && fabsf(term) <= kLargestTerm ? term : NAN;
}
