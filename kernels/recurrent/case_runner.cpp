// Encodes texts on a machine that has no Python: an emulator that runs tests/runtime/recurrent/test_processor.py. The format is
// private to this file and that test: little-endian
//     int32  gates, directions, hidden, width, vocabulary, over_time, out, projected, count, steps;  float  least_square
//     then the arrays in the order of RecurrentText as far as they are there, tokens and lengths; and back the texts.
#include "../cases.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "recurrent.h"

namespace {

void answer_case(const char* name) {
    const std::vector<int32_t> head = cir::read_case<int32_t>(10);
    const float least = cir::read_case<float>(1)[0];
    const int G = head[0], D = head[1], H = head[2], I = head[3], out = head[6];
    const auto floats = [](size_t count) { return cir::read_case<float>(count); };
    const auto words = floats(size_t(head[4]) * I), input = floats(size_t(D) * G * H * I), recurrent = floats(size_t(D) * G * H * H),
               bias = floats(size_t(D) * G * H), candidate = floats(G == 3 ? size_t(D) * H : 0),
               projection = floats(head[7] ? size_t(out) * D * H : 0), projection_bias = floats(head[7] ? out : 0);
    const auto tokens = cir::read_case<int32_t>(size_t(head[8]) * head[9]), lengths = cir::read_case<int32_t>(head[8]);
    const cir::RecurrentText text{G, D, H, I, head[4], words.data(), input.data(), recurrent.data(), bias.data(),
                                  G == 3 ? candidate.data() : nullptr, head[5] != 0, out,
                                  head[7] ? projection.data() : nullptr, projection_bias.data(), least};
    for (const cir::InstructionSet* set : cir::available_sets()) {
        if (std::strcmp(cir::name_of(*set), name) != 0) continue;
        std::vector<float> found(size_t(head[8]) * out);
        cir::Encoder(text, *set).encode({tokens.data(), lengths.data(), head[8], head[9]}, 2, found.data());
        return cir::write_answer(found);
    }
    cir::fail_case("this machine cannot run that instruction set\n");
}

}  // namespace

int main(int argc, char** argv) {
    cir::answer_cases([&] { answer_case(argc > 1 ? argv[1] : "baseline"); });
    return 0;
}
