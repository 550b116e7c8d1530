// Vector operations of AVX2 with FMA and F16C, what x86-64 machines have had since 2013 (v3 of the psABI), shared by avx2.cpp
// and avxvnni.cpp.
#pragma once

#include <immintrin.h>

#include "micro.h"

namespace cir {
namespace {

struct Avx2 {
    using V = __m256;
    using I = __m256i;
    struct Half {
        uint16_t bits;
    };
    static constexpr int kWidth = 8, kRows = 2, kTileVectors = 2;
    static constexpr int kMaxPairsWeighted = 2, kMaxPairsPlain = 5;
    static constexpr int kIntegerWidth = 16, kIntegerLanes = 8;

    static V zero() { return _mm256_setzero_ps(); }
    static V set1(float x) { return _mm256_set1_ps(x); }
    static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static void store(float* p, V v) { _mm256_storeu_ps(p, v); }

    static V load(const float* p) { return _mm256_loadu_ps(p); }
    static V load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static V load(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    template <class T>
    static V load_part(const T* p, int n) {
        T copy[kWidth] = {};
        std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
        return load(copy);
    }

    static void sum_rows(const V* v, float* out) {
        const __m256 pairs = _mm256_hadd_ps(v[0], v[1]);
        const __m128 half = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        const __m128 both = _mm_hadd_ps(half, half);
        _mm_storel_pi(reinterpret_cast<__m64*>(out), both);
    }

    static void transpose(V* v) {
        V a[8];
        for (int i = 0; i < 4; ++i) {
            a[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        V b[8];
        for (int i = 0; i < 2; ++i) {
            b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
            b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
            b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
            b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
            v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
        }
    }

    struct D {
        __m256d low, high;
    };
    static D dzero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
    static D dload(const float* p) {
        return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
    }
    static D dload(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
    static D dmul(D a, D b) { return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)}; }
    static D dadd(D a, D b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
    static double sum_of_four(__m256d v) {
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }
    static double dsum(D v) { return sum_of_four(_mm256_add_pd(v.low, v.high)); }

    static I izero() { return _mm256_setzero_si256(); }
    static I iload(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static I load16(const int8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static I square16(I v) { return _mm256_mullo_epi16(v, v); }
    static I madd(I sum, I a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
    static V to_float(I v) { return _mm256_cvtepi32_ps(v); }

    using Words = I;
    static I add_words(I sum, const char* p) {
        return _mm256_add_epi32(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Words words(I v) { return v; }
};

}  // namespace
}  // namespace cir
