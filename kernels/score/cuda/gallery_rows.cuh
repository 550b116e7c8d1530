// Rows of the gallery by their numbers: where they lie, and their exact scores.
#pragma once

#include "arguments.cuh"
#include "exact_terms.cuh"

struct Row {
    const device::Vector16* values;
    float scale;
};

template <class Type>
CIR_DEVICE Row row_of_segment(const Segment& segment, uint32_t number, uint32_t vectors) {
    const uint32_t local = number - segment.first;
    const auto* values = static_cast<const device::Vector16*>(segment.rows) + static_cast<size_t>(local) * vectors;
    const float scale = Type::kScaled && segment.scales != nullptr ? device::load(segment.scales + local) : 1.0f;
    return {values, scale};
}

template <class Type>
CIR_DEVICE Row find_row(const ScanArguments& args, uint32_t number) {
    uint32_t s = 0;
    while (s + 1 < args.segment_count && number >= args.segments[s + 1].first) ++s;
    return row_of_segment<Type>(args.segments[s], number, args.vectors);
}

// A row by its number, which is mostly one of the segment that is scanned.
template <class Type>
CIR_DEVICE Row row_of_number(const ScanArguments& args, uint32_t number) {
    const Segment& here = args.segments[args.segment];
    return number - here.first < here.count ? row_of_segment<Type>(here, number, args.vectors) : find_row<Type>(args, number);
}

// Four rows by what lane 8 r knows of row r.
CIR_DEVICE void share_rows(const Row& mine, const device::Vector16* (&rows)[kRowsOfWarp]) {
    const auto address = reinterpret_cast<unsigned long long>(mine.values);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
        rows[r] = reinterpret_cast<const device::Vector16*>(device::from_lane(address, 8 * r));
    }
}

// The exact score of a row by its number, for four rows at once as `exact_score` takes them. All that it needs it finds for
// itself: a caller in the hot loop has no registers to spare.
template <class Type, bool kWeighted>
CIR_DEVICE_ONCE float exact_of(const ScanArguments& args, uint32_t number, uint32_t* terms) {
    const size_t first = static_cast<size_t>(device::block_y()) * args.term_count * args.dimension;
    const Row row = row_of_number<Type>(args, number);
    return exact_score<Type, kWeighted>(args.numerators + first, kWeighted ? args.weights + first : nullptr, static_cast<int>(args.term_count),
                                        static_cast<int>(args.dimension), row.values, row.scale, terms);
}
