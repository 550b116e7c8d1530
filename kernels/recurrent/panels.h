// `kernels.h` over vectors of one instruction set.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace cir {
namespace {

// Two vectors of each part: enough running sums that a multiply-add need not wait for the one before.
constexpr int kUnits = 2 * kLanes;

// Vectors that are multiplied at once: as many as leave their sums, their values and a weight in registers.
constexpr int together(int parts) {
    const int fit = (CIR_REGISTERS - 1) / (2 * parts + 1);
    return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

// sums[m][p] += the panel's p-th part times the vector x[m].
template <int P, int M>
inline void add_products(const float* panel, int inputs, const float* const (&x)[M], V (&sums)[M][P][2]) {
    for (int i = 0; i < inputs; ++i, panel += P * kUnits) {
        V value[M];
        for (int m = 0; m < M; ++m) value[m] = every(x[m][i]);
        for (int p = 0; p < P; ++p) {
            for (int half = 0; half < 2; ++half) {
                const V weight = load(panel + p * kUnits + half * kLanes);
                for (int m = 0; m < M; ++m) sums[m][p][half] += value[m] * weight;
            }
        }
    }
}

template <int M>
struct Several {
    static constexpr int kCount = M;
};

// f(first, Several<M>) for `count` vectors, M at once and then what is left.
template <int M, class F>
inline void in_groups(int count, const F& f, int first = 0) {
    for (; count - first >= M; first += M) f(first, Several<M>{});
    if constexpr (M > 1) {
        if (first < count) in_groups<M - 1>(count, f, first);
    }
}

template <int P>
void multiply(const Product& product) {
    in_groups<together(P)>(product.count, [&](int from, auto several) {
        constexpr int M = decltype(several)::kCount;
        const float* x[M];
        V sums[M][P][2];
        for (int m = 0; m < M; ++m) {
            x[m] = product.rows[from + m];
            for (int p = 0; p < P; ++p) {
                for (int half = 0; half < 2; ++half) sums[m][p][half] = load(product.bias + p * kUnits + half * kLanes);
            }
        }
        add_products<P, M>(product.panel, product.inputs, x, sums);
        for (int m = 0; m < M; ++m) {
            float* to = product.out + size_t(from + m) * product.stride;
            for (int p = 0; p < P; ++p) {
                for (int half = 0; half < 2; ++half) store(to + p * kUnits + half * kLanes, sums[m][p][half]);
            }
        }
    });
}

// The gates' sums, without the input's share of a GRU's candidate, which the reset gate does not touch.
template <int G, int M>
inline void gate_sums(const Step& s, int from, V (&sums)[M][G][2]) {
    const float* x[M];
    for (int m = 0; m < M; ++m) {
        x[m] = s.states + size_t(from + m) * s.stride;
        for (int g = 0; g < G; ++g) {
            const float* begin = G == 3 && g == 2 ? s.candidate_bias : s.inputs[from + m] + g * kUnits;
            for (int half = 0; half < 2; ++half) sums[m][g][half] = load(begin + half * kLanes);
        }
    }
    add_products<G, M>(s.panel, s.hidden, x, sums);
}

void step_gru(const Step& s) {
    in_groups<together(3)>(s.count, [&](int from, auto several) {
        constexpr int M = decltype(several)::kCount;
        V sums[M][3][2];
        gate_sums<3, M>(s, from, sums);
        for (int m = 0; m < M; ++m) {
            const size_t at = size_t(from + m) * s.stride;
            for (int half = 0; half < 2; ++half) {
                const int unit = half * kLanes;
                const V z = logistic(sums[m][0][half]), r = logistic(sums[m][1][half]);
                const V n = hyperbolic_tangent(load(s.inputs[from + m] + 2 * kUnits + unit) + r * sums[m][2][half]);
                store(s.after + at + unit, n + z * (load(s.before + at + unit) - n));
            }
        }
    });
}

void step_lstm(const Step& s) {
    in_groups<together(4)>(s.count, [&](int from, auto several) {
        constexpr int M = decltype(several)::kCount;
        V sums[M][4][2];
        gate_sums<4, M>(s, from, sums);
        for (int m = 0; m < M; ++m) {
            const size_t at = size_t(from + m) * s.stride;
            for (int half = 0; half < 2; ++half) {
                const int unit = half * kLanes;
                const V i = logistic(sums[m][0][half]), o = logistic(sums[m][1][half]), f = logistic(sums[m][2][half]);
                const V c = f * load(s.cells + at + unit) + i * hyperbolic_tangent(sums[m][3][half]);
                store(s.cells + at + unit, c);
                store(s.after + at + unit, o * hyperbolic_tangent(c));
            }
        }
    });
}

constexpr InstructionSet instruction_set(const char* name) {
    return {name, kUnits, multiply<3>, multiply<4>, step_gru, step_lstm};
}

}  // namespace
}  // namespace cir
