#include <immintrin.h>

#include <cstring>

#include "resample.h"

namespace cir {
namespace {

struct Sums {
    __m256i low = _mm256_set1_epi32(kHalf), high = low;

    static __m256i bytes(const uint8_t* from) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    }
    void add(const uint8_t* from, int32_t weight) {
        const __m256i w = _mm256_set1_epi32(weight);
        low = _mm256_add_epi32(low, _mm256_mullo_epi32(bytes(from), w));
        high = _mm256_add_epi32(high, _mm256_mullo_epi32(bytes(from + 8), w));
    }
    __m128i rounded() const {
        // Packing works within halves: 0-3 8-11 | 4-7 12-15.
        const __m256i words =
            _mm256_packus_epi32(_mm256_srai_epi32(low, kFraction), _mm256_srai_epi32(high, kFraction));
        const __m256i packed = _mm256_packus_epi16(words, words);
        return _mm256_castsi256_si128(
            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5)));
    }
    void store(uint8_t* out) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(out), rounded()); }
    void store_apart(uint8_t* const* out, size_t at) const {
        const __m128i pixels = rounded();
        const int of_rows[kWoven] = {_mm_extract_epi32(pixels, 0), _mm_extract_epi32(pixels, 1),
                                     _mm_extract_epi32(pixels, 2), _mm_extract_epi32(pixels, 3)};
        for (int row = 0; row < kWoven; ++row) std::memcpy(out[row] + at, of_rows + row, sizeof(int));
    }
};

// Four pixels with four bytes each, of which 16 bytes are read.
template <int kBytes>
__m128i four(const uint8_t* from) {
    const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (kBytes == 4) return in;
    return _mm_shuffle_epi8(in, _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
}

template <int kBytes>
void weave_pixels(const uint8_t* const* rows, size_t pixels, uint8_t* out) {
    size_t i = 0;
    // Four pixels may be 12 bytes, read as 16.
    for (; kBytes * i + 16 <= kBytes * pixels; i += 4) {
        const __m128i a = four<kBytes>(rows[0] + kBytes * i), b = four<kBytes>(rows[1] + kBytes * i),
                      c = four<kBytes>(rows[2] + kBytes * i), d = four<kBytes>(rows[3] + kBytes * i);
        const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d), ab_high = _mm_unpackhi_epi32(a, b),
                      cd_high = _mm_unpackhi_epi32(c, d);
        auto* to = reinterpret_cast<__m128i*>(out + 16 * i);
        _mm_storeu_si128(to, _mm_unpacklo_epi64(ab, cd));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi64(ab, cd));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi64(ab_high, cd_high));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi64(ab_high, cd_high));
    }
    for (; i < pixels; ++i) {
        for (int row = 0; row < kWoven; ++row) std::memcpy(out + 16 * i + 4 * row, rows[row] + kBytes * i, kBytes);
    }
}

void weave(const uint8_t* const* rows, int pixel_bytes, size_t pixels, uint8_t* out) {
    pixel_bytes == 4 ? weave_pixels<4>(rows, pixels, out) : weave_pixels<3>(rows, pixels, out);
}

}  // namespace
}  // namespace cir

#include "passes.h"

namespace cir {

const Passes kPassesAvx2 = {"avx2", weave, along_rows, down_columns};

}  // namespace cir
