// Vector operations of AVX-512 with VNNI, shared by avx512vnni.cpp and avx512amx.cpp.
#pragma once

#include "avx512.h"
#include "micro_screen.h"

namespace cir {
namespace {

struct Avx512Vnni : Avx512 {
    // As assembly, because GCC 12 surrounds the intrinsic with copies of its accumulators.
    static I madd(I sum, I a, I b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }

    using Bytes = I;
    // The instruction multiplies unsigned bytes of rows by signed ones of terms.
    static constexpr int kByteVectors = 2, kByteSums = 24, kBias = 128;

    static V abs(V v) { return _mm512_abs_ps(v); }
    static V max(V a, V b) { return _mm512_max_ps(a, b); }
    static V add(V a, V b) { return _mm512_add_ps(a, b); }
    static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static V fms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }
    static V with_sign(V size, V sign) {
        return _mm512_or_ps(size, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
    }
    static V inverse_root(V v) { return _mm512_rsqrt14_ps(v); }  // within 2^-14
    static V if_greater(V a, V b, V v) {
        const V nan = _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN());
        return _mm512_mask_mov_ps(nan, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), v);
    }
    static uint64_t not_at_most(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }

    static Bytes to_int(V v) { return _mm512_cvtps_epi32(v); }
    static V from_int(Bytes v) { return _mm512_cvtepi32_ps(v); }
    static V narrow(const Bytes* v) {
        const I words = _mm512_packs_epi32(v[0], v[1]), more = _mm512_packs_epi32(v[2], v[3]);
        const I bytes = _mm512_packs_epi16(words, more);
        return _mm512_castsi512_ps(_mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
    }
    static V narrow_unsigned(const Bytes* v) {
        const I words = _mm512_packs_epi32(v[0], v[1]), more = _mm512_packs_epi32(v[2], v[3]);
        return _mm512_castsi512_ps(_mm512_packus_epi16(words, more));
    }

    static Bytes no_bytes() { return _mm512_setzero_si512(); }
    static Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static Bytes set_bytes(int32_t four) { return _mm512_set1_epi32(four); }
    static Bytes subtract(Bytes a, Bytes b) { return _mm512_sub_epi32(a, b); }
    static Bytes add_128(Bytes sum, Bytes v) { return _mm512_add_epi32(sum, _mm512_slli_epi32(v, 7)); }
    static Bytes dot(Bytes sum, Bytes row, Bytes term) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(term));
        return sum;
    }
    static void totals(const Bytes* v, int32_t* out) {
        const I a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        const I b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        const I all = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
    }
    static Bytes dot_squares(Bytes sum, Bytes row, Bytes term) { return dot(sum, row, term); }
};

}  // namespace
}  // namespace cir
