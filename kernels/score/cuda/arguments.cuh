// What the launcher hands to a kernel. cir_infer/scoring/cuda/arguments.py mirrors these structures field by field;
// pointers come first and every other field has 4 bytes, so that neither side pads.
#pragma once

#include <cstdint>

// A run of consecutive gallery rows in memory the GPU can read.
struct Segment {
    const void* rows;     // (count, vectors * 16 bytes)
    const float* scales;  // see ScanArguments::scales
    uint32_t first;       // number of its first row
    uint32_t count;
};

// The exact kernel: top k of every query over a range of rows, or over each query's own list of rows.
struct ScanArguments {
    const Segment* segments;   // (segment_count,) where any row can be found again, ordered by `first`
    const float* numerators;   // (Q, J, D)
    const float* weights;      // (Q, J, D), or null: plain dot products
    const uint8_t* allow;      // bit r % 8 of byte r / 8, or null: every row
    const uint32_t* lists;     // (Q, list_capacity) row numbers, or null: the rows of `segment`
    uint32_t* list_counts;     // (Q,) how many were meant to be listed; reset here
    uint32_t* overflowed;      // (Q,) set where a list was too short for its query; cleared by the rescue
    uint32_t* rescued;         // (1,) counts queries that needed the rescue
    uint64_t* keys;            // (Q, key_capacity) survivors of the blocks and of earlier launches
    uint32_t* key_terms;       // (Q, key_capacity, J) bits of their terms
    uint32_t* key_counts;      // (Q,)
    uint32_t* tickets;         // (Q,) blocks that have finished
    uint64_t* floors;          // (Q,) a key that k rows are known to reach; 0: none yet
    uint64_t* ceilings;        // (Q,) only keys below count; the last launch leaves its smallest key here
    uint32_t* slacks;          // (Q,) bits of how far the keys of earlier launches may be off, where kLoose says so
    uint64_t* peaks;           // (Q, grid_x) a key that so many rows of a block reach as block_keys.cuh says; 0: none yet
    float* scores;             // (Q, out_stride)
    int64_t* rows;             // (Q, out_stride)
    float* terms;              // (Q, out_stride, J)
    uint32_t segment;          // the segment to scan
    uint32_t segment_count;
    uint32_t dimension;        // D
    uint32_t vectors;          // 16-byte vectors of a row
    uint32_t term_count;       // J
    uint32_t k;                // at most 1024
    uint32_t out_stride;
    uint32_t list_capacity;
    uint32_t key_capacity;
    uint32_t buffer;           // keys that a block holds in shared memory
    uint32_t run;              // rows that a block takes between two barriers; all share what is left for the last time
    uint32_t flags;            // ScanFlags
};

enum ScanFlags : uint32_t {
    kFinish = 1,       // write the answer and leave the state clean; else keep the k best for the next launch
    kRescue = 2,       // only queries whose list overflowed, from scratch
    kLoose = 8,        // a block that has its query to itself may leave keys that are not exact to the next launch
    kBelow = 4,        // only keys below ceilings[q]: the second and later 1024 of a larger k
};

// The tensor-core kernel: appends to each query's list every row that could be among its k best.
struct ShortlistArguments {
    const void* rows;          // of the first row of the range
    const float* scales;       // of the first row of the range, or null
    const void* operands;      // from pack: float16 in fragment order
    const float* constants;    // (Q, J, 4) from pack: factor, slack, trust, margin; J = 1 for plain dot products
    const uint64_t* floors;    // (Q,)
    const uint8_t* allow;
    uint32_t* lists;
    uint32_t* list_counts;
    uint32_t first;            // number of the first row of the range
    uint32_t count;            // rows in the range
    uint32_t queries;          // Q
    uint32_t vectors;
    uint32_t k_steps;          // of 16 values
    uint32_t list_capacity;
    uint32_t column_warps;     // warps that share rows and take different queries: 1, 2 or 4
    float row_scale;           // power of two that brings the largest value of the gallery near 2^7
};

// float32 terms to the shortlist's operands and error bounds.
struct PackArguments {
    const float* numerators;   // (Q, J, D)
    const float* weights;      // (Q, J, D) or null
    void* operands;            // (groups, k_steps, tiles, 32 lanes, 4) float16
    float* constants;
    uint32_t queries;
    uint32_t term_count;       // J
    uint32_t dimension;
    uint32_t k_steps;
    uint32_t quad_values;      // consecutive values of a row that one lane loads: 16 bytes of the scanned type
    float row_scale;
    float largest_norm;        // of any row, scale included; plain dot products only
    float row_rounding;        // relative error of turning a row value into float16: 0 or 2^-11
    float quantisation;        // bound on |exact value - scanned value| in units of the row's scale: 0 or 0.5
};

// One pass over new rows.
struct SurveyArguments {
    const void* rows;
    const float* scales;
    uint32_t* largest_value;   // bits of a float32, raised
    uint32_t* largest_norm;    // bits of a float32, raised
    uint32_t count;
    uint32_t vectors;
};

struct QuantiseArguments {
    const void* rows;
    void* quantised;           // int8 (count, ceil(D / 16) * 16)
    float* scales;             // (count,)
    uint32_t count;
    uint32_t vectors;
    uint32_t quantised_bytes;  // of a row
};

struct ReadArguments {
    const void* data;
    uint32_t* mixed;           // (blocks * 256,)
    uint32_t vectors;          // of 16 bytes; below 2^31
};
