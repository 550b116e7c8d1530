// The terms of rows: in float32, with a bound on what rounding does to them, and exactly as defined.
#pragma once

#include <device.cuh>

constexpr int kRowsOfWarp = 4;        // rows that a warp scores together, so that each term is read once for four
constexpr float kSmallestSquare = 1e-30f;  // outside these bounds products may have left float32's range
constexpr float kLargestSquare = 1e30f;
constexpr float kLargestTerm = 3e38f;
constexpr float kLargestFloat = 3.402823466e38f;
constexpr float kSmallestReach2 = 0x1p-126f;  // more than squares lose below float32's range
constexpr double kUnit = 0x1p-24;             // float32 rounds by at most so much of a value

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

// Fills `prepared`, to be read after the caller's next barrier; `scratch` has one float a warp. Every thread of the
// block calls this. Whether the values that this thread scaled kept all their bits.
template <class Type, int kAtOnce, bool kWeighted>
CIR_DEVICE bool prepare_terms(const Query& query, float* prepared, float* scratch) {
    const int slots = query.vectors * Type::kWidth;
    bool whole = true;
    for (int j = 0; j < padded_terms(query.term_count, kAtOnce); ++j) {
        const bool real = j < query.term_count;
        // A missing last term has no numerator and some other term's weights: it adds 0 / x.
        const float* n = query.numerators + static_cast<size_t>(real ? j : 0) * query.dimension;
        const float* w = query.weights + static_cast<size_t>(real ? j : 0) * query.dimension;
        int shift = 0;
        if (kWeighted) {
            float most = 0;
            for (int i = device::thread(); i < query.dimension; i += device::threads()) most = fmaxf(most, device::load(w + i));
            for (int step = 16; step > 0; step >>= 1) most = fmaxf(most, device::from_lane_xor(most, step));
            if (device::lane() == 0) scratch[device::warp()] = most;
            device::barrier();
            for (int i = 0; i < device::threads() / 32; ++i) most = fmaxf(most, scratch[i]);
            device::barrier();
            const int exponent = most > 0 ? device::exponent_of(most) + 1 : 0;  // most < 2^exponent
            shift = -((exponent + (exponent > 0)) / 2);
        }
        float* to = prepared + static_cast<size_t>(j) * (kWeighted ? 2 : 1) * slots;
        for (int i = device::thread(); i < slots; i += device::threads()) {
            const int vector = i / Type::kWidth, inside = i % Type::kWidth;
            const int slot = ((inside / 4) * query.vectors + vector) * 4 + inside % 4;
            const bool in_row = i < query.dimension;
            const float n_value = in_row && real ? device::load(n + i) : 0.0f, n_scaled = device::scaled(n_value, shift);
            to[slot] = n_scaled;
            whole = whole && device::scaled(n_scaled, -shift) == n_value;
            if constexpr (kWeighted) {
                const float w_value = in_row ? device::load(w + i) : 0.0f, w_scaled = device::scaled(w_value, 2 * shift);
                to[slots + slot] = w_scaled;
                whole = whole && device::scaled(w_scaled, -2 * shift) == w_value;
            }
        }
    }
    return whole;
}

// How far the float32 score of a row may lie from its exact score: constant + per_reach * reach of the row, where only
// terms without weights have the latter. The proof is in kernels/score/README.md. Infinite where there is no bound.
struct Rounding {
    float constant, per_reach;
};

// Every thread of the block calls this, with what `prepare_terms` said; `scratch` has one double a warp and is free again
// after the caller's next barrier.
template <bool kWeighted>
CIR_DEVICE Rounding rounding_of(const Query& query, bool whole, double* scratch) {
    double size = 0;  // of all terms: |n / sqrt(w)|, or |n| without weights, bounds a term
    for (int j = 0; j < query.term_count; ++j) {
        double sum = whole ? 0.0 : HUGE_VAL;
        for (int i = device::thread(); i < query.dimension; i += device::threads()) {
            const size_t at = static_cast<size_t>(j) * query.dimension + i;
            const double n = device::load(query.numerators + at);
            if (n == 0) continue;
            if constexpr (kWeighted) sum += n * n / static_cast<double>(device::load(query.weights + at));
            else sum += n * n;
        }
        for (int step = 16; step > 0; step >>= 1) sum += device::from_lane_xor(sum, step);
        if (device::lane() == 0) scratch[device::warp()] = sum;
        device::barrier();
        double total = 0;
        for (int i = 0; i < device::threads() / 32; ++i) total += scratch[i];
        device::barrier();
        size += sqrt(total);
    }
    const double terms = query.term_count, values = query.dimension;
    const double steps = values / 32 + 32, rounded = steps * kUnit / (1 - steps * kUnit);
    const double rest = (terms + 14) * kUnit + values * 0x1p-47;
    // Products of the smallest values are lost below float32's range: so much of a term.
    const double lost = terms * values * (kWeighted ? 0x1p-98 : 0x1p-148);
    const double constant = (kWeighted ? size * (2 * rounded + rest) : size * 0) + lost;
    const double per_reach = kWeighted ? 0 : 1.2 * size * (rounded + rest) + terms * values * 0x1p-148;
    // NaN where the size is infinite and multiplied by 0.
    return {static_cast<float>(constant == constant ? constant * (1 + 1e-6) + 0x1p-148 : HUGE_VAL),
            static_cast<float>(per_reach * (1 + 1e-6) + 0x1p-148)};
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
// rank, and the first of them writes its terms unless `terms` is null. Every lane of the warp calls this.
template <class Type, bool kWeighted>
CIR_DEVICE float exact_score(const Query& query, const device::Vector16* row, float scale, float* terms) {
    double score = 0;
    bool ranks = true;
    for (int j = 0; j < query.term_count; ++j) {
        const float* n = query.numerators + static_cast<size_t>(j) * query.dimension;
        const float* w = kWeighted ? query.weights + static_cast<size_t>(j) * query.dimension : nullptr;
        double numerator = 0, square = 0;
#pragma unroll 4
        for (int i = device::lane() % 8; i < query.dimension; i += 8) {
            float value = Type::value(row, i);
            if constexpr (Type::kScaled) value *= scale;
            const double t = value;
            numerator = device::sum(numerator, device::product(device::load(n + i), t));
            if constexpr (kWeighted) square = device::sum(square, device::product(device::load(w + i), device::product(t, t)));
        }
        for (int step = 4; step > 0; step >>= 1) {
            numerator = device::sum(numerator, device::from_lane_xor(numerator, step));
            if constexpr (kWeighted) square = device::sum(square, device::from_lane_xor(square, step));
        }
        // Sums of float32 products cannot leave double's range: what is not finite was not so in the row.
        double term = numerator - numerator == 0 ? numerator : NAN;
        if constexpr (kWeighted) {
            if (term == term) term = square > 0 ? numerator / sqrt(square) : 0;
        }
        const float rounded = static_cast<float>(term);
        ranks = ranks && fabsf(rounded) <= kLargestFloat;
        if (terms != nullptr && device::lane() % 8 == 0) terms[j] = rounded;
        score = device::sum(score, term);
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
        term = numerator / sqrtf(square);
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
