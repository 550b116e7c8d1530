// Vector operations of NEON, which every AArch64 machine has: Jetson, Raspberry Pi 3 and newer, phones, Graviton, Apple.
#pragma once

#include <arm_neon.h>

#include "micro.h"

namespace cir {
namespace {

struct Neon {
    using V = float32x4_t;
    struct I {
        int16x8_t half;   // 8 values, or
        int32x4_t whole;  // 4 sums
    };
    struct Half {
        uint16_t bits;
    };
    static constexpr int kWidth = 4, kRows = 4, kTileVectors = 2;
    static constexpr int kMaxPairsWeighted = 5, kMaxPairsPlain = 10;
    static constexpr int kIntegerWidth = 8, kIntegerLanes = 4;

    static V zero() { return vdupq_n_f32(0); }
    static V set1(float x) { return vdupq_n_f32(x); }
    static V mul(V a, V b) { return vmulq_f32(a, b); }
    static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
    static void store(float* p, V v) { vst1q_f32(p, v); }

    static V load(const float* p) { return vld1q_f32(p); }
    static V load(const Half* p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
    }
    static V load(const int8_t* p) {
        uint32_t four;
        std::memcpy(&four, p, sizeof four);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    }
    template <class T>
    static V load_part(const T* p, int n) {
        T copy[kWidth] = {};
        std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
        return load(copy);
    }

    static void sum_rows(const V* v, float* out) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
    }

    static void transpose(V* v) {
        const float32x4x2_t a = vtrnq_f32(v[0], v[1]), b = vtrnq_f32(v[2], v[3]);
        v[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
        v[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
        v[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
        v[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
    }

    struct D {
        float64x2_t two[4];
    };
    static D dzero() { return {{vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)}}; }
    static D dload(const float* p) {
        const float32x4_t low = vld1q_f32(p), high = vld1q_f32(p + 4);
        return {{vcvt_f64_f32(vget_low_f32(low)), vcvt_high_f64_f32(low), vcvt_f64_f32(vget_low_f32(high)),
                 vcvt_high_f64_f32(high)}};
    }
    static D dload(const double* p) { return {{vld1q_f64(p), vld1q_f64(p + 2), vld1q_f64(p + 4), vld1q_f64(p + 6)}}; }
    static D dmul(const D& a, const D& b) {
        D v;
        for (int i = 0; i < 4; ++i) v.two[i] = vmulq_f64(a.two[i], b.two[i]);
        return v;
    }
    static D dadd(const D& a, const D& b) {
        D v;
        for (int i = 0; i < 4; ++i) v.two[i] = vaddq_f64(a.two[i], b.two[i]);
        return v;
    }
    static double dsum(const D& v) {
        const float64x2_t even = vaddq_f64(v.two[0], v.two[2]), odd = vaddq_f64(v.two[1], v.two[3]);
        const float64x2_t both = vaddq_f64(even, odd);
        return vgetq_lane_f64(both, 0) + vgetq_lane_f64(both, 1);
    }

    static I izero() { return {vdupq_n_s16(0), vdupq_n_s32(0)}; }
    static I iload(const int16_t* p) { return {vld1q_s16(p), vdupq_n_s32(0)}; }
    static I load16(const int8_t* p) { return {vmovl_s8(vld1_s8(p)), vdupq_n_s32(0)}; }
    static I square16(I v) { return {vmulq_s16(v.half, v.half), v.whole}; }
    static I madd(I sum, I a, I b) {
        const int32x4_t low = vmlal_s16(sum.whole, vget_low_s16(a.half), vget_low_s16(b.half));
        return {sum.half, vmlal_high_s16(low, a.half, b.half)};
    }
    static V to_float(I v) { return vcvtq_f32_s32(v.whole); }

    using Words = int32x4_t;
    static I add_words(I sum, const char* p) {
        return {sum.half, vaddq_s32(sum.whole, vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(p))))};
    }
    static Words words(I v) { return v.whole; }
};

}  // namespace
}  // namespace cir
