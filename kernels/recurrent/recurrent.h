// A recurrent text encoder: word vectors, a GRU or an LSTM in one direction or two, the last state or the maximum over the
// steps, a linear layer, unit length. The formulas are in README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cir {

// An encoder as its ONNX graph holds it: float32, row by row. Gates in ONNX' order: z, r, h of a GRU; i, o, f, c of an LSTM.
struct RecurrentText {
    int gates;                     // 3 is a GRU, 4 an LSTM
    int directions, hidden, width; // `width` values of a word
    int64_t vocabulary;
    const float* words;             // (vocabulary, width): kept, and not copied
    const float* input_weights;     // (directions, gates, hidden, width)
    const float* recurrent_weights; // (directions, gates, hidden, hidden)
    const float* input_bias;        // (directions, gates, hidden)
    const float* candidate_bias;    // (directions, hidden), inside of a GRU's reset gate; null for an LSTM
    bool over_time;                 // the maximum over the steps, else the last state
    int out;                        // values of a text
    const float* projection;        // (out, directions * hidden), or null
    const float* projection_bias;   // (out), with a projection
    float least_square;             // a text is divided by the root of its sum of squares, at least this; not where it is negative
};

// Texts to encode, token by token, padded to `steps`.
struct Texts {
    const int32_t* tokens;   // (count, steps)
    const int32_t* lengths;  // (count), each in 1 .. steps
    int64_t count, steps;
};

struct InstructionSet;

// Those that this machine runs, the best first.
std::vector<const InstructionSet*> available_sets();
const char* name_of(const InstructionSet& set);

// An encoder with its weights in the order of one instruction set.
class Encoder {
public:
    Encoder(const RecurrentText& text, const InstructionSet& set);

    // `out` (texts.count, RecurrentText::out). Tokens are below the vocabulary. Several threads may call at once.
    void encode(const Texts& texts, int threads, float* out) const;

private:
    // The weights of one direction.
    struct Direction {
        std::vector<float> input, recurrence, bias, candidate_bias;
    };
    struct Group;
    struct Scratch;

    std::vector<Group> grouped(const Texts& texts, const std::vector<int64_t>& order) const;
    void run(const Texts& texts, const Group& group, int d, Scratch& mine, float* pooled) const;
    void finish(const float* pooled, int count, float* out) const;

    const InstructionSet& set_;
    RecurrentText shape_;  // without the arrays but the words
    int panels_;
    std::vector<Direction> directions_;
    std::vector<float> projection_, projection_bias_;
};

}  // namespace cir
