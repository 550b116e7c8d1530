#include <immintrin.h>

#include <cstring>

#include "resample.h"

namespace cir {
namespace {

struct Sums {
    __m256i low, high;

    explicit Sums(int32_t start) : low(_mm256_set1_epi32(start)), high(low) {}

    static __m256i bytes(const uint8_t* from) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    }
    void add(__m256i low_product, __m256i high_product) {
        low = _mm256_add_epi32(low, low_product);
        high = _mm256_add_epi32(high, high_product);
    }
    void add(const uint8_t* from, const int32_t* weights) {
        const auto* w = reinterpret_cast<const __m256i*>(weights);
        add(_mm256_mullo_epi32(bytes(from), _mm256_loadu_si256(w)),
            _mm256_mullo_epi32(bytes(from + 8), _mm256_loadu_si256(w + 1)));
    }
    void add(const uint8_t* from, int32_t weight) {
        const __m256i w = _mm256_set1_epi32(weight);
        add(_mm256_mullo_epi32(bytes(from), w), _mm256_mullo_epi32(bytes(from + 8), w));
    }
    void store_bytes(uint8_t* out) const {
        // Packing works within halves: 0-3 8-11 | 4-7 12-15.
        const __m256i words =
            _mm256_packus_epi32(_mm256_srai_epi32(low, kFraction), _mm256_srai_epi32(high, kFraction));
        const __m256i packed = _mm256_packus_epi16(words, words);
        const __m256i order = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(order));
    }
    void store_pixel(uint8_t* out) const {
        const __m256i half = _mm256_add_epi32(low, high);
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kFraction);
        sum = _mm_packus_epi16(_mm_packus_epi32(sum, sum), sum);
        const int pixel = _mm_cvtsi128_si32(sum);
        std::memcpy(out, &pixel, sizeof pixel);
    }
};

void widen(const uint8_t* rgb, size_t pixels, uint8_t* out) {
    const __m128i apart = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    size_t i = 0;
    for (; i + 6 <= pixels; i += 4) {  // four pixels are 12 bytes, read as 16
        const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rgb + 3 * i));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4 * i), _mm_shuffle_epi8(in, apart));
    }
    for (; i < pixels; ++i) std::memcpy(out + 4 * i, rgb + 3 * i, 3);
}

}  // namespace
}  // namespace cir

#include "passes.h"

namespace cir {

const Passes kPassesAvx2 = {"avx2", widen, along_row, down_columns};

}  // namespace cir
