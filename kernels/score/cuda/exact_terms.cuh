// The terms of rows, exactly as defined: float32 products and sums, float64 where float32 could leave its range.
#pragma once

#include <device.cuh>

constexpr int kRowsOfWarp = 4;        // rows that a warp scores together, so that each term is read once for four
constexpr float kSmallestSquare = 1e-30f;  // outside these bounds products may have left float32's range
constexpr double kNoNorm = 1e-200;         // below any square sum but 0 that float32 values can give
constexpr float kLargestSquare = 1e30f;

struct Float32 {
    static constexpr int kWidth = 4;  // values in 16 bytes
    static constexpr bool kScaled = false;
    CIR_DEVICE static void unpack(const device::Vector16& v, int part, float (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = device::from_bits(v.word[i]);
        (void)part;
    }
};

struct Float16 {
    static constexpr int kWidth = 8;
    static constexpr bool kScaled = false;
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
// block calls this.
template <class Type, int kAtOnce, bool kWeighted>
CIR_DEVICE void prepare_terms(const Query& query, float* prepared, float* scratch) {
    const int slots = query.vectors * Type::kWidth;
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
            to[slot] = in_row && real ? device::scaled(device::load(n + i), shift) : 0.0f;
            if (kWeighted) to[slots + slot] = in_row ? device::scaled(device::load(w + i), 2 * shift) : 0.0f;
        }
    }
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

// Term j of one row in float64, its scale applied, straight from the definition. Slow, and rare.
template <class Type, bool kWeighted>
CIR_DEVICE float precise_term(const Query& query, int j, const device::Vector16* row, float scale) {
    double numerator = 0, square = 0;
    for (int vector = device::lane(); vector < query.vectors; vector += 32) {
        const device::Vector16 raw = device::load16(row + vector);
#pragma unroll
        for (int part = 0; part < Type::kWidth / 4; ++part) {
            float x[4];
            Type::unpack(raw, part, x);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = vector * Type::kWidth + part * 4 + i;
                if (at >= query.dimension) continue;
                const size_t from = static_cast<size_t>(j) * query.dimension + at;
                const double t = x[i];
                numerator += static_cast<double>(device::load(query.numerators + from)) * t + (t - t);  // NaN where t is infinite
                if (kWeighted) square += static_cast<double>(device::load(query.weights + from)) * t * t;
            }
        }
    }
    for (int step = 16; step > 0; step >>= 1) {
        numerator += device::from_lane_xor(numerator, step);
        square += device::from_lane_xor(square, step);
    }
    if (!kWeighted) return static_cast<float>(numerator * scale);
    if (square < kNoNorm) return static_cast<float>(numerator * 0.0);  // 0, or NaN for a row that is not finite
    return static_cast<float>(numerator * scale / sqrt(square));
}

// Terms j .. j + kAtOnce - 1 of four rows. Lane l answers for row l / 8, whose scale it brings, and with kAtOnce == 2
// for term j + (l / 4) % 2.
template <class Type, int kAtOnce, bool kWeighted, bool kShared>
CIR_DEVICE float terms_of_rows(const Query& query, int j, const device::Vector16* const (&rows)[kRowsOfWarp],
                               float scale) {
    constexpr int kKinds = kWeighted ? 2 : 1;
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
                        if constexpr (kWeighted) to[1] = fmaf(w[p][i], square, to[1]);
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
    float term = Type::kScaled ? mine * scale : mine, square = 1.0f;
    if constexpr (kWeighted) {
        const float other = device::from_lane_xor(mine, kKindBit);
        const bool holds_square = (device::lane() & kKindBit) != 0;
        square = holds_square ? mine : other;
        const float numerator = holds_square ? other : mine;
        term = fabsf(numerator) <= 3e38f ? numerator / sqrtf(square) : numerator;
        if constexpr (Type::kScaled) term *= scale;
    }
    const bool suspect = !(fabsf(term) <= 3e38f) || !(square >= kSmallestSquare && square <= kLargestSquare);
    uint32_t suspects = device::ballot(suspect);
    while (suspects != 0) {
        const int lane = device::trailing_zeros(suspects);
        const int row = lane / 8, p = kAtOnce == 2 ? (lane / 4) % 2 : 0;
        const uint32_t same = kAtOnce == 2 ? 0xfu << (lane / 4 * 4) : 0xffu << (lane / 8 * 8);
        suspects &= ~same;
        // Not indexed by a variable: the pointers stay in registers.
        const device::Vector16* from = row == 0 ? rows[0] : row == 1 ? rows[1] : row == 2 ? rows[2] : rows[3];
        const float row_scale = device::from_lane(scale, 8 * row);
        const float precise = j + p < query.term_count ? precise_term<Type, kWeighted>(query, j + p, from, row_scale) : 0.0f;
        if ((same >> device::lane()) & 1u) term = precise;
    }
    return term;
}
