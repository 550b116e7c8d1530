// Reads bytes and does nothing with them: what the benchmark holds the scans against.
#pragma once

#include "arguments.cuh"
#include "selection.cuh"

CIR_KERNEL(read_bytes, ReadArguments, kThreads, 4) {
    const auto* from = static_cast<const device::Vector16*>(args.data);
    const uint32_t stride = device::grid_x() * kThreads;
    uint32_t mixed = 0;
    uint32_t i = device::block_x() * kThreads + device::thread();
    for (; i + 7 * stride < args.vectors; i += 8 * stride) {
        device::Vector16 v[8];
#pragma unroll
        for (int u = 0; u < 8; ++u) v[u] = device::load16(from + i + u * stride);
#pragma unroll
        for (int u = 0; u < 8; ++u) mixed ^= v[u].word[0] ^ v[u].word[1] ^ v[u].word[2] ^ v[u].word[3];
    }
    for (; i < args.vectors; i += stride) {
        const device::Vector16 v = device::load16(from + i);
        mixed ^= v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
    }
    args.mixed[device::block_x() * kThreads + device::thread()] = mixed;  // or the compiler would read nothing
}
