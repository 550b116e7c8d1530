// Answers one scoring case from standard input on standard output, for machines that have no Python: an emulator that
// runs the conformance suite. The format is private to this file and tests/scoring/emulated.py: little-endian
//     int64  row type, dimension, blocks, queries, terms, k, weighted, masked, exact from int8,
//            threads, first list, vectors of an item, 0 for rows, products (a cir::Products)
//     then per block int64 count, rows, scales (int8); numerators, weights, mask
// and back: scores, rows, terms as in `Answer`, and of items the tokens.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "chunks.h"
#include "score.h"

namespace {

template <class T>
std::vector<T> read(size_t count) {
    std::vector<T> out(count);
    if (count && std::fread(out.data(), sizeof(T), count, stdin) != count) {
        std::fputs("the case ends early\n", stderr);
        std::exit(1);
    }
    return out;
}

template <class T>
void write(const std::vector<T>& values) {
    if (std::fwrite(values.data(), sizeof(T), values.size(), stdout) != values.size()) std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
    const cir::Kernels* kernels = argc > 1 ? cir::kernels_by_name(argv[1]) : cir::available_kernels().front();
    if (!kernels) {
        std::fputs("this machine cannot run that instruction set\n", stderr);
        return 1;
    }
    const std::vector<int64_t> head = read<int64_t>(13);
    cir::Gallery gallery{static_cast<cir::RowType>(head[0]), static_cast<int>(head[1]), {}};
    gallery.items = head[11] > 0;
    gallery.vectors = static_cast<int>(std::max<int64_t>(head[11], 1));
    const size_t queries = static_cast<size_t>(head[3]), terms = static_cast<size_t>(head[4]);
    const size_t k = static_cast<size_t>(head[5]), length = static_cast<size_t>(head[1]);
    std::vector<std::vector<char>> rows;
    std::vector<std::vector<float>> scales;
    for (int64_t b = 0; b < head[2]; ++b) {
        const int64_t count = read<int64_t>(1)[0];
        rows.push_back(read<char>(static_cast<size_t>(count) * cir::item_bytes(gallery)));
        scales.push_back(read<float>(gallery.type == cir::kInt8 ? static_cast<size_t>(count * gallery.vectors) : 0));
        gallery.blocks.push_back(
            {rows.back().data(), gallery.type == cir::kInt8 ? scales.back().data() : nullptr, count,
             !std::all_of(scales.back().begin(), scales.back().end(), cir::ordinary_scale)});
    }
    const std::vector<float> numerators = read<float>(queries * terms * length);
    const std::vector<float> weights = read<float>(head[6] ? queries * terms * length : 0);
    const std::vector<uint8_t> allow = read<uint8_t>(head[7] ? static_cast<size_t>(gallery.count() + 7) / 8 : 0);

    std::vector<float> scores(queries * k), by_term(queries * k * terms);
    std::vector<int64_t> best(queries * k);
    std::vector<int32_t> tokens(gallery.items ? by_term.size() : 0);
    const cir::Query query{numerators.data(), head[6] ? weights.data() : nullptr, head[3], static_cast<int>(terms)};
    cir::Options options{kernels, static_cast<int>(head[9]), head[7] ? allow.data() : nullptr};
    options.products = static_cast<cir::Products>(head[12]);
    const cir::Answer answer{scores.data(), best.data(), by_term.data(), gallery.items ? tokens.data() : nullptr};
    if (head[8]) {
        cir::Int8Index(gallery, options).topk(query, head[5], head[10], options, answer);
    } else {
        cir::topk(gallery, query, head[5], options, answer);
    }
    write(scores);
    write(best);
    write(by_term);
    write(tokens);
    return 0;
}
