// What an instruction set provides: products of panels with vectors, and a step of a layer.
#pragma once

#include <cstddef>

namespace cir {

// Of a linear layer, whose panels have as many parts as an LSTM's.
constexpr int kLinearParts = 4;

// A panel of a linear map: for each input the weights of `parts` times `units` values, side by side.
struct Product {
    const float* panel;
    int inputs;
    const float* bias;         // (parts, units)
    const float* const* rows;  // `count` vectors of `inputs` values
    int count;
    float* out;     // of each vector (parts, units), `stride` values apart
    size_t stride;
};

// One panel's units of several texts, one step on.
struct Step {
    const float* panel;           // (hidden, gates, units): recurrent weights
    int hidden;
    const float* candidate_bias;  // (units), of a GRU
    const float* const* inputs;   // of each text (gates, units): the input's share
    int count;
    const float* states;  // of each text its whole state, `stride` values apart
    const float* before;  // of each text its state before, of these units
    float* after;         // and after
    float* cells;         // and an LSTM's cells, before and after
    size_t stride;
};

struct InstructionSet {
    const char* name;
    int units;  // of a panel
    void (*multiply3)(const Product&);  // panels of three parts: a GRU's gates
    void (*multiply4)(const Product&);
    void (*step_gru)(const Step&);
    void (*step_lstm)(const Step&);
};

extern const InstructionSet kBaseline, kAvx2, kAvx512;

}  // namespace cir
