// Answers scoring cases on a machine that has no Python: an emulator that runs the conformance suite. The format is private
// to this file and tests/scoring/test_other_machine.py: little-endian
//     int64  row type, dimension, blocks, queries, terms, k, weighted, masked, exact from int8,
//            threads, first list, vectors of an item, 0 for rows, products (a cir::Products), bounds
//     then per block int64 count, rows, scales (int8); numerators, weights, mask
// and back: scores, rows, terms as in `Answer`, and of items the tokens. Where bounds are asked for (1 in one digit, 2 those
// brought closer, 3 in two), four double shares of the margins follow, and back come the upper bounds of all rows alone.
#include "../cases.h"

#include <algorithm>
#include <vector>

#include "chunks.h"
#include "score.h"

namespace {

void answer_case(const cir::Kernels* kernels) {
    const std::vector<int64_t> head = cir::read_case<int64_t>(14);
    cir::Gallery gallery{static_cast<cir::RowType>(head[0]), static_cast<int>(head[1]), {}};
    gallery.items = head[11] > 0;
    gallery.vectors = static_cast<int>(std::max<int64_t>(head[11], 1));
    const size_t queries = static_cast<size_t>(head[3]), terms = static_cast<size_t>(head[4]);
    const size_t k = static_cast<size_t>(head[5]), length = static_cast<size_t>(head[1]);
    std::vector<std::vector<char>> rows;
    std::vector<std::vector<float>> scales;
    for (int64_t b = 0; b < head[2]; ++b) {
        const int64_t count = cir::read_case<int64_t>(1)[0];
        rows.push_back(cir::read_case<char>(static_cast<size_t>(count) * cir::item_bytes(gallery)));
        scales.push_back(
            cir::read_case<float>(gallery.type == cir::kInt8 ? static_cast<size_t>(count * gallery.vectors) : 0));
        gallery.blocks.push_back(
            {rows.back().data(), gallery.type == cir::kInt8 ? scales.back().data() : nullptr, count,
             !std::all_of(scales.back().begin(), scales.back().end(), cir::ordinary_scale)});
    }
    const std::vector<float> numerators = cir::read_case<float>(queries * terms * length);
    const std::vector<float> weights = cir::read_case<float>(head[6] ? queries * terms * length : 0);
    const std::vector<uint8_t> allow =
        cir::read_case<uint8_t>(head[7] ? static_cast<size_t>(gallery.count() + 7) / 8 : 0);

    const cir::Query query{numerators.data(), head[6] ? weights.data() : nullptr, head[3], static_cast<int>(terms)};
    if (head[13]) {
        const std::vector<double> shares = cir::read_case<double>(4);
        std::vector<float> bounds(queries * static_cast<size_t>(gallery.count()));
        cir::upper_bounds(gallery, query, *kernels, head[13] == 3 ? 2 : 1, head[13] == 2, shares.data(), bounds.data());
        cir::write_answer(bounds);
        return;
    }

    std::vector<float> scores(queries * k), by_term(queries * k * terms);
    std::vector<int64_t> best(queries * k);
    std::vector<int32_t> tokens(gallery.items ? by_term.size() : 0);
    cir::Options options{kernels, static_cast<int>(head[9]), head[7] ? allow.data() : nullptr};
    options.products = static_cast<cir::Products>(head[12]);
    const cir::Answer answer{scores.data(), best.data(), by_term.data(), gallery.items ? tokens.data() : nullptr};
    if (head[8]) {
        cir::Int8Index(gallery, options).topk(query, head[5], head[10], options, answer);
    } else {
        cir::topk(gallery, query, head[5], options, answer);
    }
    cir::write_answer(scores);
    cir::write_answer(best);
    cir::write_answer(by_term);
    cir::write_answer(tokens);
}

}  // namespace

int main(int argc, char** argv) {
    const cir::Kernels* kernels = argc > 1 ? cir::kernels_by_name(argv[1]) : cir::available_kernels().front();
    if (!kernels) cir::fail_case("this machine cannot run that instruction set\n");
    cir::answer_cases([&] { answer_case(kernels); });
    return 0;
}
