// Exact top-k of query terms over gallery rows: the interface of the native scorer.
//
// Everything here is plain memory that the caller owns. Calls are independent of each other and may run at once.
// Errors of shape and type are the caller's to find; what cannot be (memory) is thrown as std::bad_alloc.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace cir {

struct Block {
    const void* rows;     // [count][vectors][dimension] of the gallery's type
    const float* scales;  // [count][vectors] for int8, else null
    int64_t count;        // of rows: of items where they are several vectors
    bool odd_scales = false;  // whether some scale is not ordinary
};

// Scales that leave an int8 row's ratios as they are and its values finite; rows of others are looked at one by one.
inline bool ordinary_scale(float scale) { return scale > 0 && scale <= 1e36f; }

struct Gallery {
    RowType type;
    int dimension;
    std::vector<Block> blocks;
    int vectors = 1;     // of an item, whose terms are the largest over them
    bool items = false;  // whether answers say which vector that was

    int64_t count() const;
    Gallery flat() const;  // every vector as a row
};

struct Query {
    const float* numerators;  // [queries][terms][dimension]
    const float* weights;     // the same shape, or null
    int64_t queries;
    int terms;
};

struct Answer {
    float* scores;  // [queries][k], -inf where fewer rows qualify
    int64_t* rows;  // [queries][k], -1 there
    float* terms;   // [queries][k][terms], NaN there
    int32_t* tokens = nullptr;  // of items, [queries][k][terms]: the vector of each term, -1 there
};

// What a batch of queries multiplies: what is measured to be fastest as it goes, float32 alone, or bytes wherever there
// are such kernels.
enum class Products { kFastest, kFloat32, kBytes };

// What batches did so far, in pairs of a row and a query.
struct BatchStatistics {
    std::atomic<int64_t> multiplied{0};  // scored by products in float32
    std::atomic<int64_t> bounded{0};     // bounded by products of bytes
    std::atomic<int64_t> listed{0};      // of these, scored after all
    std::atomic<int64_t> again{0};       // queries of which a sample had expected too much
};

// An int8 copy of a gallery, block for block. A row that is not zero in the copy is t = scale * (q + e), max |q_i| = 127.
struct Copy {
    const Gallery* rows;
    double error_norm, error_max;  // of every row: |e| and max |e_i| are no more
};

struct Options {
    const Kernels* kernels;
    int threads;           // at least 1
    const uint8_t* allow;  // bit r % 8 of byte r / 8, or null
    // Asked some times a second, in the calling thread, whether to give up; may be empty.
    std::function<bool()> interrupted = {};
    Products products = Products::kFastest;
    BatchStatistics* statistics = nullptr;  // may be null
    const Copy* copy = nullptr;  // of the gallery: where bytes are multiplied, they are its
};

// Thrown by a call that was told to give up; its answer is not complete.
struct Interrupted : std::exception {};

// The instruction sets that this machine can run, best first; and one of them by name, null if it cannot.
std::vector<const Kernels*> available_kernels();
const Kernels* kernels_by_name(const std::string& name);

inline int64_t products_a_row(const Query& query, int64_t queries) { return queries * query.terms * (query.weights ? 2 : 1); }

// Whether products of bytes may tell `topk` which rows matter to so many queries at once. Items of several vectors, and
// sums that leave 32 bits, are not for them.
bool screens(const Gallery& gallery, const Query& query, int64_t queries, const Options& options);

// Reads every row (that is allowed) in its stored type.
void topk(const Gallery& gallery, const Query& query, int64_t k, const Options& options, const Answer& answer);

// [queries][rows]: what no exact score passes by products of bytes in one digit, then `closer` by the second, or in two
// at once; NaN where nothing is known; with `kernels.screen`. Of the four margins (screen_terms.h) it keeps these shares: a
// test shows what less than all is worth. With a copy, `gallery` is its rows.
void upper_bounds(const Gallery& gallery, const Query& query, const Kernels& kernels, int digits, bool closer,
                  const double* shares, float* out, const Copy* copy = nullptr);

struct IntegerTerms;
class Watch;

// An int8 copy of a gallery together with what is known of its error. `topk` scans the copy and scores a short list in
// the gallery itself; where no proof says that the list was long enough, a second scan scores all that may belong to it.
class Int8Index {
public:
    struct Statistics {
        int64_t queries;    // answered
        int64_t extended;   // for which the first list was too short
        int64_t exhaustive; // for which the gallery itself was scanned
        int64_t rescored;   // rows read from the gallery
    };

    // Copies the rows. An int8 gallery is its own copy.
    Int8Index(const Gallery& gallery, const Options& options);

    // `list` rows, at most all, are scored first; 0 chooses by k, and gives a small gallery to a plain scan.
    void topk(const Query& query, int64_t k, int64_t list, const Options& options, const Answer& answer);
    const Gallery& gallery() const { return gallery_; }
    // Of a gallery that is not int8 itself.
    Copy copy() const { return {&copy_, std::sqrt(errors_.error_norm2), errors_.error_max}; }
    Statistics statistics() const;
    int64_t bytes() const;  // of the copy

    // What holds for every row t = scale * (q + e), |q_i| <= 127:
    struct Errors {
        double error_norm2;     // sum e_i^2
        double error_spread;    // | e^2 - mean(e^2) |
        double error_max;       // max |e_i|
        double norm2;           // sum q_i^2
        double square_spread;   // | q^2 - mean(q^2) |
    };

private:
    struct Scan;
    void listed(const Query& query, const std::vector<int64_t>& queries, const std::vector<const IntegerTerms*>& terms,
                int64_t k, int64_t list, const Options& options, Watch& watch, const Answer& answer);

    Gallery gallery_, copy_;
    std::vector<LargeArray<int8_t>> values_;
    std::vector<LargeArray<float>> scales_;
    Errors errors_{};
    std::atomic<int64_t> queries_{0}, extended_{0}, exhaustive_{0}, rescored_{0};
};

// Sums all bytes of the gallery: what reading it once costs.
uint64_t read_all(const Gallery& gallery, const Options& options);

}  // namespace cir
