// What Armv8.2's dot products add to NEON: four products of bytes to a sum in one instruction (Cortex-A55 and newer, Jetson
// Orin, Raspberry Pi 5, Graviton 2 and newer, Apple M1 and newer).
#include "micro_screen.h"
#include "neon.h"

namespace cir {
namespace {

struct NeonDot : Neon {
    using Bytes = int32x4_t;
    static constexpr int kByteVectors = 2, kByteSums = 24, kBias = 0;

    static V abs(V v) { return vabsq_f32(v); }
    static V max(V a, V b) { return vmaxq_f32(a, b); }
    static V add(V a, V b) { return vaddq_f32(a, b); }
    static V sub(V a, V b) { return vsubq_f32(a, b); }
    static V fms(V a, V b, V c) { return vfmaq_f32(vnegq_f32(c), a, b); }
    static V with_sign(V size, V sign) {
        const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(sign), vdupq_n_u32(0x80000000u));
        return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(size), bits));
    }
    static V inverse_root(V v) { return vdivq_f32(vdupq_n_f32(1), vsqrtq_f32(v)); }
    static V if_greater(V a, V b, V v) {
        return vbslq_f32(vcgtq_f32(a, b), v, vdupq_n_f32(std::numeric_limits<float>::quiet_NaN()));
    }
    static uint64_t not_at_most(V a, V b) {
        const uint32x4_t bit = {1, 2, 4, 8};
        return vaddvq_u32(vbicq_u32(bit, vcleq_f32(a, b)));
    }

    static Bytes to_int(V v) { return vcvtnq_s32_f32(v); }
    static V from_int(Bytes v) { return vcvtq_f32_s32(v); }
    static V narrow(const Bytes* v) {
        const int16x8_t words = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
        const int16x8_t more = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
        return vreinterpretq_f32_s8(vcombine_s8(vqmovn_s16(words), vqmovn_s16(more)));
    }
    static V narrow_unsigned(const Bytes* v) {
        const int16x8_t words = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
        const int16x8_t more = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
        return vreinterpretq_f32_u8(vcombine_u8(vqmovun_s16(words), vqmovun_s16(more)));
    }

    static Bytes no_bytes() { return vdupq_n_s32(0); }
    static Bytes load_bytes(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
    static Bytes set_bytes(int32_t four) { return vdupq_n_s32(four); }
    static Bytes subtract(Bytes a, Bytes b) { return vsubq_s32(a, b); }
    static Bytes add_128(Bytes sum, Bytes v) { return vaddq_s32(sum, vshlq_n_s32(v, 7)); }
    // As assembly, because compilers do not agree on the flag that allows the intrinsics.
    static Bytes dot(Bytes sum, Bytes row, Bytes term) {
        __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(row), "w"(term));
        return sum;
    }
    static void totals(const Bytes* v, int32_t* out) {
        vst1q_s32(out, vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])));
    }
    // Neither squares nor weights are negative.
    static Bytes dot_squares(Bytes sum, Bytes row, Bytes term) {
        __asm__(".arch armv8.2-a+dotprod\n\tudot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(row), "w"(term));
        return sum;
    }
};

constexpr Screen kScreen = screen_of<NeonDot>();

constexpr Kernels with_bytes() {
    Kernels table = kernels_of<Neon>("neondot");
    table.screen = &kScreen;
    return table;
}
constexpr Kernels kTable = with_bytes();

}  // namespace

const Kernels* const kNeonDot = &kTable;

}  // namespace cir
