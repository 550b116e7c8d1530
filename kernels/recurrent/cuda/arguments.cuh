// What the launcher hands to a kernel. cir_infer/runtime/recurrent/arguments.py mirrors this structure field by field;
// pointers come first and every other field has 4 bytes, so that neither side pads.
#pragma once

#include <cstdint>

// One text. Rows of weights are padded with zeros to 16 bytes; G gates, 3 of a GRU (z, r, h) and 4 of an LSTM
// (i, o, f, c), lie side by side for each hidden unit.
struct EncodeArguments {
    const int32_t* tokens;           // (steps,) numbers of words
    const float* words;              // (vocabulary, input_vectors * 4)
    const float* input_weights;      // (directions, hidden, G, input_vectors * 4)
    const float* input_bias;         // (directions, hidden, G): all that is added before the reset gate
    const float* recurrent_weights;  // (directions, hidden, G, hidden_vectors * 4)
    const float* candidate_bias;     // (directions, hidden): what the reset gate of a GRU multiplies; null for an LSTM
    const float* projection;         // (out, pooled_vectors * 4), or null: the pooled state is the text
    const float* projection_bias;    // (out,)
    float* inputs;                   // (steps, directions, hidden, G) the inputs' share of the gates
    float* states;                   // (steps, directions, hidden) hidden states, in the order of the steps
    float* pooled;                   // (directions * hidden,)
    float* projected;                // (out,)
    uint32_t* arrivals;              // four counts, 32 apart: blocks of a direction, pooled, projected; 0 between texts
    float* text;                     // (out,) in memory of the host
    uint32_t* done;                  // 1 once the text is complete; in memory of the host
    uint32_t steps;                  // of this text, at least 1
    uint32_t directions;             // 1, or 2: the second one reads from the last word on
    uint32_t hidden;
    uint32_t out;                    // values of the text
    uint32_t input_vectors;          // 16-byte vectors of a row
    uint32_t hidden_vectors;
    uint32_t pooled_vectors;
    uint32_t block_units;            // most hidden units of one block
    uint32_t resident_rows;          // rows of recurrent weights that a block holds in shared memory: a multiple of 4
    uint32_t over_time;              // pooled: 0 the last state, 1 the maximum over the steps
    float least_square;              // of a norm; below 0: the text is not divided by its norm
    uint32_t unused;
};
