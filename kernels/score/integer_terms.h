// Query terms in integers, and the upper bounds that they give for rows of which only an int8 copy is read.
//
// A row is t = scale * (q + e) with integers q and an error e of which `Errors` tells the largest norms. A weighted
// term does not change with the scale. With A = sqrt(w) and M = | n / A |, it is M times the cosine between n / A and
// A o (q + e); moving the second vector by A o e turns it by at most asin(rho), rho = | A o e | / | A o q |, and so
// moves the term by at most M * 2 sin(asin(rho) / 2) <= 1.0081 * M * rho for rho <= 1/4. Nothing is first order.
//
//   | A o e |^2 = sum w e^2 <= mean(w) sum e^2 + | w - mean(w) | * | e^2 - mean(e^2) |       (Cauchy-Schwarz, centred)
//
// n and w are themselves rounded to integers n', w' (units d_n, d_w):
//
//   | (n - n') . q | <= | n - n' | * | q |           | (w - w') . q^2 | <= the same centred bound =: D
//
// So the true term is at most T / sqrt(w' . q^2 -+ D), the sign that of T, with
//
//   T = n' . q  +  | n - n' | | q |  +  1.0081 M | A o e |
//
// which costs the scan two additions a row and term. Rounding in float32, of the bounds and of the exact scores that they
// are compared with, is covered by `slack`.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "score.h"

namespace cir {

// J terms of a query in integers, and what they prove.
struct IntegerTerms {
    LineVector<int16_t> n, w;
    std::vector<float> factor, margin, doubt, least;
    double slack = 0;
    bool usable = true;
    BoundTerms view{};
};

IntegerTerms integer_terms(const Query& query, int64_t q, int dimension, const Int8Index::Errors& errors,
                           const Kernels& kernels);

}  // namespace cir
