// Four dot products at a time by one warp.
#pragma once

#include <cooperation.cuh>

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / 32;

// Four sums over the lanes in six shuffles: sum i is in lanes 8 i to 8 i + 7.
CIR_DEVICE float sum_of_lanes(const float (&v)[4]) {
    const bool upper = (device::lane() & 16) != 0, odd = (device::lane() & 8) != 0;
    float a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
    a += device::from_lane_xor(upper ? v[0] : v[2], 16);
    b += device::from_lane_xor(upper ? v[1] : v[3], 16);
    float sum = odd ? b : a;
    sum += device::from_lane_xor(odd ? a : b, 8);
    sum += device::from_lane_xor(sum, 4);
    sum += device::from_lane_xor(sum, 2);
    return sum + device::from_lane_xor(sum, 1);
}

CIR_DEVICE void add_products(float& sum, const device::Vector16& a, const device::Vector16& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += device::from_bits(a.word[i]) * device::from_bits(b.word[i]);
}

// Products of four rows with a vector in shared memory. The rows lie in shared memory as well, or where no one writes.
template <bool kResident>
CIR_DEVICE float dots_of_rows(const device::Vector16* const (&rows)[4], const device::Vector16* vector, uint32_t vectors) {
    float sums[4] = {};
#pragma unroll 2
    for (uint32_t v = device::lane(); v < vectors; v += 32) {
        const device::Vector16 x = device::load16_shared(vector + v);
        device::Vector16 y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = kResident ? device::load16_shared(rows[i] + v) : device::load16(rows[i] + v);
#pragma unroll
        for (int i = 0; i < 4; ++i) add_products(sums[i], x, y[i]);
    }
    return sum_of_lanes(sums);
}

// Rows `first` to `first` + 3 of a matrix; beyond its end the last one again.
CIR_DEVICE void four_rows(const device::Vector16* (&rows)[4], const device::Vector16* matrix, uint32_t first, uint32_t count,
                          uint32_t vectors) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        rows[i] = matrix + static_cast<size_t>(first + i < count ? first + i : count - 1) * vectors;
    }
}
