// Vector operations of AVX-512 (F, BW, DQ, VL), shared by avx512.cpp and avx512vnni.cpp.
#pragma once

#include <immintrin.h>

#include "micro.h"

namespace cir {
namespace {

struct Avx512 {
    using V = __m512;
    using I = __m512i;
    struct Half {
        uint16_t bits;
    };
    static constexpr int kWidth = 16, kRows = 4, kTileVectors = 2;
    static constexpr int kMaxPairsWeighted = 6, kMaxPairsPlain = 12;
    static constexpr int kIntegerWidth = 32, kIntegerLanes = 16;

    static V zero() { return _mm512_setzero_ps(); }
    static V set1(float x) { return _mm512_set1_ps(x); }
    static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static void store(float* p, V v) { _mm512_storeu_ps(p, v); }

    static V load(const float* p) { return _mm512_loadu_ps(p); }
    static V load(const Half* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static V load(const int8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static V load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static V load_part(const Half* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
    static V load_part(const int8_t* p, int n) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
    }

    static void sum_rows(const V* v, float* out) {
        __m256 h[4];
        for (int r = 0; r < 4; ++r) {
            h[r] = _mm256_add_ps(_mm512_castps512_ps256(v[r]), _mm512_extractf32x8_ps(v[r], 1));
        }
        const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(h[0], h[1]), _mm256_unpackhi_ps(h[0], h[1]));
        const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(h[2], h[3]), _mm256_unpackhi_ps(h[2], h[3]));
        const __m256d ad = _mm256_castps_pd(a), bd = _mm256_castps_pd(b);
        const __m256 c = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ad, bd)),
                                       _mm256_castpd_ps(_mm256_unpackhi_pd(ad, bd)));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
    }

    static void transpose(V* v) {
        V a[16];
        for (int i = 0; i < 8; ++i) {
            a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        V b[16];
        for (int i = 0; i < 4; ++i) {
            const __m512d p = _mm512_castps_pd(a[4 * i]), q = _mm512_castps_pd(a[4 * i + 1]);
            const __m512d r = _mm512_castps_pd(a[4 * i + 2]), s = _mm512_castps_pd(a[4 * i + 3]);
            b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, r));
            b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, r));
            b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(q, s));
            b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(q, s));
        }
        for (int i = 0; i < 4; ++i) {
            const V p = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), q = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
            const V r = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
            const V s = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
            v[i] = _mm512_shuffle_f32x4(p, r, 0x88);
            v[i + 4] = _mm512_shuffle_f32x4(q, s, 0x88);
            v[i + 8] = _mm512_shuffle_f32x4(p, r, 0xdd);
            v[i + 12] = _mm512_shuffle_f32x4(q, s, 0xdd);
        }
    }

    using D = __m512d;
    static D dzero() { return _mm512_setzero_pd(); }
    static D dload(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
    static D dload(const double* p) { return _mm512_loadu_pd(p); }
    static D dmul(D a, D b) { return _mm512_mul_pd(a, b); }
    static D dadd(D a, D b) { return _mm512_add_pd(a, b); }
    static double dsum(D v) {
        const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }

    static I izero() { return _mm512_setzero_si512(); }
    static I iload(const int16_t* p) { return _mm512_loadu_si512(p); }
    static I load16(const int8_t* p) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static I square16(I v) { return _mm512_mullo_epi16(v, v); }
    static I madd(I sum, I a, I b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
    static V to_float(I v) { return _mm512_cvtepi32_ps(v); }

    using Words = I;
    static I add_words(I sum, const char* p) { return _mm512_add_epi32(sum, _mm512_loadu_si512(p)); }
    static Words words(I v) { return v; }
};

}  // namespace
}  // namespace cir
