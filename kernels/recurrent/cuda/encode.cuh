// A text in one launch: word vectors, a GRU or LSTM in one or two directions, pooling, a linear layer, unit length.
//
// Block (x, d) owns a run of hidden units of direction d for the whole text and keeps their recurrent weights in shared
// memory. All blocks are on the GPU at once, which a cooperative launch guarantees: each step they wait for one another.
#pragma once

#include "arguments.cuh"
#include "dots.cuh"

constexpr uint32_t kArrivalStride = 32;  // counts of their own cache lines
enum Arrival : uint32_t { kFirstDirection = 0, kPooled = 2, kProjected = 3 };

struct Run {
    uint32_t first, count;
};
// Part `index` of `parts` nearly equal parts of `total`.
CIR_DEVICE Run part_of(uint32_t total, uint32_t index, uint32_t parts) {
    const uint32_t each = total / parts, more = total % parts;
    return {index * each + (index < more ? index : more), each + (index < more ? 1 : 0)};
}

CIR_DEVICE uint32_t* arrival(const EncodeArguments& args, uint32_t which) { return args.arrivals + which * kArrivalStride; }

// Whatever the threads of this block have written is written for whoever sees the count: their writes come before the
// barrier, that before the fence of the one that counts, and the fence before the count.
CIR_DEVICE void arrive(const EncodeArguments& args, uint32_t which) {
    device::barrier();
    if (device::thread() == 0) {
        device::release();
        device::add(arrival(args, which), 1);
    }
}
// False if the others never come.
CIR_DEVICE bool all_arrived(const EncodeArguments& args, uint32_t which, uint32_t count) {
    return !device::barrier_or(device::thread() == 0 && !device::wait_for(arrival(args, which), count));
}

// A vector that other blocks have written, to shared memory, with zeros in its last 16 bytes.
CIR_DEVICE void fetch(float* to, const float* from, uint32_t count, uint32_t vectors) {
    for (uint32_t i = device::thread(); i < 4 * vectors; i += kThreads) to[i] = i < count ? device::load_fresh(from + i) : 0.0f;
}

CIR_DEVICE float sigmoid(float v) { return 1.0f / (1.0f + device::exponential(-v)); }

// The next hidden state of a unit; `held` is the state of a GRU, the cell of an LSTM.
template <int kGates>
CIR_DEVICE float next_state(const float (&x)[kGates], const float (&h)[kGates], float candidate_bias, float& held) {
    if constexpr (kGates == 3) {
        const float update = sigmoid(x[0] + h[0]), reset = sigmoid(x[1] + h[1]);
        const float candidate = device::hyperbolic_tangent(x[2] + reset * (h[2] + candidate_bias));
        held = candidate + update * (held - candidate);
        return held;
    } else {
        const float input = sigmoid(x[0] + h[0]), output = sigmoid(x[1] + h[1]), forget = sigmoid(x[2] + h[2]);
        held = forget * held + input * device::hyperbolic_tangent(x[3] + h[3]);
        return output * device::hyperbolic_tangent(held);
    }
}

// What a unit of this block takes from the inputs at one step.
template <int kGates>
struct Unit {
    float x[kGates];
    float candidate_bias;
};
template <int kGates>
CIR_DEVICE Unit<kGates> unit_at(const EncodeArguments& args, const float* inputs, uint32_t first_unit, uint32_t u) {
    Unit<kGates> unit;
#pragma unroll
    for (int g = 0; g < kGates; ++g) unit.x[g] = inputs[u * kGates + g];
    unit.candidate_bias = kGates == 3 ? device::load(args.candidate_bias + first_unit + u) : 0.0f;
    return unit;
}

// The inputs' share of this block's gates for all steps: each row of weights is read once for four words at a time.
CIR_DEVICE void project_words(const EncodeArguments& args, uint32_t first_row, uint32_t rows, uint32_t all_rows) {
    const uint32_t vectors = args.input_vectors;
    const auto* words = reinterpret_cast<const device::Vector16*>(args.words);
    const auto* weights = reinterpret_cast<const device::Vector16*>(args.input_weights);
    for (uint32_t row = first_row + device::warp(); row < first_row + rows; row += kWarps) {
        const device::Vector16* weight = weights + static_cast<size_t>(row) * vectors;
        const float bias = device::load(args.input_bias + row);
        for (uint32_t step = 0; step < args.steps; step += 4) {
            const device::Vector16* word[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                const uint32_t at = step + i < args.steps ? step + i : args.steps - 1;
                word[i] = words + static_cast<size_t>(device::load(args.tokens + at)) * vectors;
            }
            float sums[4] = {};
            for (uint32_t v = device::lane(); v < vectors; v += 32) {
                const device::Vector16 w = device::load16(weight + v);
#pragma unroll
                for (int i = 0; i < 4; ++i) add_products(sums[i], w, device::load16(word[i] + v));
            }
            const float sum = sum_of_lanes(sums);
            const uint32_t mine = step + device::lane() / 8;
            if (device::lane() % 8 == 0 && mine < args.steps) args.inputs[static_cast<size_t>(mine) * all_rows + row] = sum + bias;
        }
    }
}

// Unit length where it is asked for, and the text goes to the host; by one block, the last one that is needed.
CIR_DEVICE void finish(const EncodeArguments& args, const float* values, float* partial) {
    float scale = 1.0f;
    if (args.least_square >= 0.0f) {
        float square = 0.0f;
        for (uint32_t i = device::thread(); i < args.out; i += kThreads) {
            const float v = device::load_fresh(values + i);
            square += v * v;
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) square += device::from_lane_xor(square, mask);
        if (device::lane() == 0) partial[device::warp()] = square;
        device::barrier();
        float total = 0.0f;
        for (uint32_t w = 0; w < kWarps; ++w) total += partial[w];
        scale = 1.0f / sqrt(total > args.least_square ? total : args.least_square);
    }
    for (uint32_t i = device::thread(); i < args.out; i += kThreads) args.text[i] = device::load_fresh(values + i) * scale;
    if (device::thread() == 0) {
        // Every block has passed all its waits before it arrived here last.
        for (uint32_t which = 0; which <= kProjected; ++which) *arrival(args, which) = 0;
        *args.done = 1;
    }
}

template <int kGates>
CIR_DEVICE void encode(const EncodeArguments& args) {
    const uint32_t direction = device::block_y(), blocks = device::grid_x(), all_blocks = blocks * args.directions;
    const uint32_t hidden = args.hidden, vectors = args.hidden_vectors, thread = device::thread();
    const Run units = part_of(hidden, device::block_x(), blocks);
    const uint32_t first_unit = direction * hidden + units.first;
    const uint32_t rows = units.count * kGates, first_row = first_unit * kGates, all_rows = args.directions * hidden * kGates;

    const uint32_t widest = vectors > args.pooled_vectors ? vectors : args.pooled_vectors;
    auto* weights = reinterpret_cast<device::Vector16*>(device::shared());
    auto* state = reinterpret_cast<float*>(weights + static_cast<size_t>(args.resident_rows) * vectors);
    float* sums = state + 4 * widest;              // (block_units, G)
    float* held = sums + args.block_units * kGates;
    float* pooled = held + args.block_units;

    const auto* all_weights = reinterpret_cast<const device::Vector16*>(args.recurrent_weights);
    const device::Vector16* own_weights = all_weights + static_cast<size_t>(first_row) * vectors;
    const uint32_t resident = rows < args.resident_rows ? rows : args.resident_rows;
    for (uint32_t i = thread; i < resident * vectors; i += kThreads) weights[i] = device::load16(own_weights + i);
    for (uint32_t u = thread; u < units.count; u += kThreads) {
        held[u] = 0.0f;
        pooled[u] = 0.0f;
    }
    project_words(args, first_row, rows, all_rows);
    device::barrier();

    const auto* shared_state = reinterpret_cast<const device::Vector16*>(state);
    for (uint32_t step = 0; step < args.steps; ++step) {
        const uint32_t word = direction == 0 ? step : args.steps - 1 - step;
        const float* inputs = args.inputs + static_cast<size_t>(word) * all_rows + first_row;
        // What does not depend on the other blocks is under way before they are waited for.
        Unit<kGates> unit;
        if (thread < units.count) unit = unit_at<kGates>(args, inputs, first_unit, thread);
        if (step > 0) {
            if (!all_arrived(args, kFirstDirection + direction, step * blocks)) return;
            fetch(state, args.states + (static_cast<size_t>(step - 1) * args.directions + direction) * hidden, hidden, vectors);
            device::barrier();
            for (uint32_t row = 4 * device::warp(); row < rows; row += 4 * kWarps) {
                const device::Vector16* four[4];
                float sum;
                if (row < resident) {
                    four_rows(four, weights, row, rows, vectors);
                    sum = dots_of_rows<true>(four, shared_state, vectors);
                } else {
                    four_rows(four, own_weights, row, rows, vectors);
                    sum = dots_of_rows<false>(four, shared_state, vectors);
                }
                const uint32_t mine = row + device::lane() / 8;
                if (device::lane() % 8 == 0 && mine < rows) sums[mine] = sum;
            }
            device::barrier();
        }
        for (uint32_t u = thread; u < units.count; u += kThreads) {
            if (u >= kThreads) unit = unit_at<kGates>(args, inputs, first_unit, u);
            float h[kGates];
#pragma unroll
            for (int g = 0; g < kGates; ++g) h[g] = step > 0 ? sums[u * kGates + g] : 0.0f;  // the first state is zero
            const float value = next_state<kGates>(unit.x, h, unit.candidate_bias, held[u]);
            pooled[u] = args.over_time && step > 0 && pooled[u] > value ? pooled[u] : value;
            if (step + 1 == args.steps) {
                args.pooled[first_unit + u] = pooled[u];
            } else {
                args.states[(static_cast<size_t>(step) * args.directions + direction) * hidden + units.first + u] = value;
            }
        }
        arrive(args, step + 1 == args.steps ? kPooled : kFirstDirection + direction);
    }

    uint32_t last = kPooled;
    if (args.projection != nullptr) {
        if (!all_arrived(args, kPooled, all_blocks)) return;
        fetch(state, args.pooled, args.directions * hidden, args.pooled_vectors);
        device::barrier();
        const Run out = part_of(args.out, direction * blocks + device::block_x(), all_blocks);
        const auto* matrix = reinterpret_cast<const device::Vector16*>(args.projection);
        for (uint32_t row = 4 * device::warp(); row < out.count; row += 4 * kWarps) {
            const device::Vector16* four[4];
            four_rows(four, matrix + static_cast<size_t>(out.first) * args.pooled_vectors, row, out.count, args.pooled_vectors);
            const float sum = dots_of_rows<false>(four, shared_state, args.pooled_vectors);
            const uint32_t mine = row + device::lane() / 8;
            if (device::lane() % 8 == 0 && mine < out.count) {
                args.projected[out.first + mine] = sum + device::load(args.projection_bias + out.first + mine);
            }
        }
        last = kProjected;
        arrive(args, kProjected);
    }
    if (device::block_x() + device::block_y() > 0) return;
    if (!all_arrived(args, last, all_blocks)) return;
    finish(args, args.projection != nullptr ? args.projected : args.pooled, sums);
}

CIR_KERNEL(encode_gru, EncodeArguments, kThreads, 1) { encode<3>(args); }
CIR_KERNEL(encode_lstm, EncodeArguments, kThreads, 1) { encode<4>(args); }
