// Resizes pictures on a machine that has no Python: an emulator that runs tests/runtime/test_resampling.py. The format is
// private to this file and that test: little-endian
//     int32  width, height, bytes a pixel, left, top, right, bottom, fill, then to which width and height, of which the
//     columns and rows from x, y on: x, y, columns, rows, and whether cubic;  float  x0, y0, x1, y1
//     then the pixels; and back the bytes of the answer.
#include "../cases.h"

#include <vector>

#include "resample.h"

namespace {

void answer_case(const char* instruction_set) {
    const std::vector<int32_t> head = cir::read_case<int32_t>(15);
    const std::vector<float> box = cir::read_case<float>(4);
    const std::vector<uint8_t> pixels = cir::read_case<uint8_t>(static_cast<size_t>(head[0]) * head[1] * head[2]);
    const cir::Part part{head[3],  head[4],  head[5],  head[6],  static_cast<uint8_t>(head[7]),
                         box[0],   box[1],   box[2],   box[3],   head[8],
                         head[9],  head[10], head[11], head[12], head[13],
                         head[14] ? cir::Filter::kBicubic : cir::Filter::kBilinear};
    const cir::Passes* passes = cir::find_passes(instruction_set);
    if (!passes) cir::fail_case("this machine cannot run that instruction set\n");
    std::vector<uint8_t> out(static_cast<size_t>(part.columns) * part.rows * 3);
    cir::Resizing resizing(head[0], head[1], part, *passes, out.data());
    resizing.feed(pixels.data(), head[2], head[1]);
    cir::write_answer(out);
}

}  // namespace

int main(int argc, char** argv) {
    cir::answer_cases([&] { answer_case(argc > 1 ? argv[1] : ""); });
    return 0;
}
