// One pass over new rows: what the shortlist must know of them, and their int8 shadow.
#pragma once

#include "arguments.cuh"
#include "exact_terms.cuh"

// Largest |value| over the ordinary and largest norm over the finite rows. A warp takes a row.
template <class Type>
CIR_DEVICE void survey(const SurveyArguments& args) {
    const uint32_t stride = device::grid_x() * (device::threads() / 32);
    float most = 0, most_norm = 0;
    for (uint32_t row = device::block_x() * (device::threads() / 32) + device::warp(); row < args.count; row += stride) {
        const auto* values = static_cast<const device::Vector16*>(args.rows) + static_cast<size_t>(row) * args.vectors;
        float largest = 0, sum = 0;
        for (uint32_t v = device::lane(); v < args.vectors; v += 32) {
            const device::Vector16 raw = device::load16(values + v);
#pragma unroll
            for (int part = 0; part < Type::kWidth / 4; ++part) {
                float x[4];
                Type::unpack(raw, part, x);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    largest = fmaxf(largest, fabsf(x[i]));
                    sum = fmaf(x[i], x[i], sum);
                }
            }
        }
        for (int step = 16; step > 0; step >>= 1) {
            largest = fmaxf(largest, device::from_lane_xor(largest, step));
            sum += device::from_lane_xor(sum, step);
        }
        const float scale = args.scales != nullptr ? fabsf(device::load(args.scales + row)) : 1.0f;
        if (!(largest <= kLargestFloat && sum == sum)) continue;
        // Rows whose squares leave float32 would spoil the scale for all others.
        if (sum <= kLargestSquare) most = fmaxf(most, largest);
        most_norm = fmaxf(most_norm, sqrtf(sum) * scale);  // infinite: no margin holds
    }
    if (device::lane() == 0) {
        device::raise(args.largest_value, device::bits(most));  // bits of floats >= 0 order as the floats do
        device::raise(args.largest_norm, device::bits(most_norm));
    }
}

// Rounds rows to int8, largest magnitude to 127. A row that holds NaN or infinity, or nothing but
// denormal-sized values, gets the scale NaN.
template <class Type>
CIR_DEVICE void quantise(const QuantiseArguments& args) {
    const uint32_t stride = device::grid_x() * (device::threads() / 32);
    for (uint32_t row = device::block_x() * (device::threads() / 32) + device::warp(); row < args.count; row += stride) {
        const auto* values = static_cast<const device::Vector16*>(args.rows) + static_cast<size_t>(row) * args.vectors;
        auto* out = static_cast<unsigned char*>(args.quantised) + static_cast<size_t>(row) * args.quantised_bytes;
        float largest = 0, poison = 0;
        for (uint32_t v = device::lane(); v < args.vectors; v += 32) {
            const device::Vector16 raw = device::load16(values + v);
#pragma unroll
            for (int part = 0; part < Type::kWidth / 4; ++part) {
                float x[4];
                Type::unpack(raw, part, x);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    largest = fmaxf(largest, fabsf(x[i]));
                    poison += x[i] - x[i];  // NaN where a value is not finite
                }
            }
        }
        for (int step = 16; step > 0; step >>= 1) {
            largest = fmaxf(largest, device::from_lane_xor(largest, step));
            poison += device::from_lane_xor(poison, step);
        }
        // Division before multiplication: 127 / largest is infinite for a row of denormals.
        const bool usable = poison == 0.0f;
        for (uint32_t group = device::lane(); group < args.quantised_bytes / 4; group += 32) {
            const uint32_t vector = group * 4 / Type::kWidth;
            uint32_t word = 0;
            if (usable && largest > 0 && vector < args.vectors) {
                const device::Vector16 raw = device::load16(values + vector);
                float x[4];
                // The part is a run-time value here, so each is unpacked and the right one kept.
#pragma unroll
                for (int part = 0; part < Type::kWidth / 4; ++part) {
                    float candidate[4];
                    Type::unpack(raw, part, candidate);
                    const bool right = part == static_cast<int>(group * 4 % Type::kWidth) / 4;
#pragma unroll
                    for (int i = 0; i < 4; ++i) x[i] = right || part == 0 ? candidate[i] : x[i];
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int rounded = static_cast<int>(rintf(x[i] / largest * 127.0f));
                    word |= (static_cast<uint32_t>(rounded) & 0xffu) << (8 * i);
                }
            }
            *reinterpret_cast<uint32_t*>(out + group * 4) = word;
        }
        if (device::lane() == 0) {
            // The error bound counts in units of the scale, so a scale that loses bits is no scale.
            const bool precise = usable && (largest == 0 || largest >= kSmallestSquare);
            args.scales[row] = precise ? largest / 127.0f : device::from_bits(0x7fc00000u);
        }
    }
}

CIR_KERNEL(survey_f32, SurveyArguments, 256, 2) { survey<Float32>(args); }
CIR_KERNEL(survey_f16, SurveyArguments, 256, 2) { survey<Float16>(args); }
CIR_KERNEL(survey_i8, SurveyArguments, 256, 2) { survey<Int8>(args); }
CIR_KERNEL(quantise_f32, QuantiseArguments, 256, 2) { quantise<Float32>(args); }
CIR_KERNEL(quantise_f16, QuantiseArguments, 256, 2) { quantise<Float16>(args); }
