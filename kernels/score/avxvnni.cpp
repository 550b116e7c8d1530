// What AVX-VNNI adds to AVX2: products of bytes that accumulate in one instruction (Alder Lake, Sierra Forest, Zen 5 and newer).
#include <immintrin.h>

#include <limits>

#include "avx2.h"
#include "micro_screen.h"

namespace cir {
namespace {

struct AvxVnni : Avx2 {
    using Bytes = I;
    // The instruction multiplies unsigned bytes of rows by signed ones of terms.
    static constexpr int kByteVectors = 1, kByteSums = 12, kBias = 128;

    static V abs(V v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
    static V max(V a, V b) { return _mm256_max_ps(a, b); }
    static V add(V a, V b) { return _mm256_add_ps(a, b); }
    static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static V fms(V a, V b, V c) { return _mm256_fmsub_ps(a, b, c); }
    static V with_sign(V size, V sign) {
        return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
    }
    static V inverse_root(V v) { return _mm256_div_ps(_mm256_set1_ps(1), _mm256_sqrt_ps(v)); }
    static V if_greater(V a, V b, V v) {
        const V nan = _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN());
        return _mm256_blendv_ps(nan, v, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
    }
    static uint64_t not_at_most(V a, V b) {
        return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)));
    }

    static Bytes to_int(V v) { return _mm256_cvtps_epi32(v); }
    static V from_int(Bytes v) { return _mm256_cvtepi32_ps(v); }
    static V narrow(const Bytes* v) {
        const I words = _mm256_packs_epi32(v[0], v[1]), more = _mm256_packs_epi32(v[2], v[3]);
        const I bytes = _mm256_packs_epi16(words, more);
        return _mm256_castsi256_ps(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
    }
    static V narrow_unsigned(const Bytes* v) {
        const I words = _mm256_packs_epi32(v[0], v[1]), more = _mm256_packs_epi32(v[2], v[3]);
        return _mm256_castsi256_ps(_mm256_packus_epi16(words, more));
    }

    static Bytes no_bytes() { return _mm256_setzero_si256(); }
    static Bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Bytes set_bytes(int32_t four) { return _mm256_set1_epi32(four); }
    static Bytes subtract(Bytes a, Bytes b) { return _mm256_sub_epi32(a, b); }
    static Bytes add_128(Bytes sum, Bytes v) { return _mm256_add_epi32(sum, _mm256_slli_epi32(v, 7)); }
    static Bytes dot(Bytes sum, Bytes row, Bytes term) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(term));
        return sum;
    }
    static void totals(const Bytes* v, int32_t* out) {
        const I all = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
    }
    static Bytes dot_squares(Bytes sum, Bytes row, Bytes term) { return dot(sum, row, term); }
};

constexpr Screen kScreen = screen_of<AvxVnni>();

constexpr Kernels with_bytes() {
    Kernels table = kernels_of<Avx2>("avxvnni");
    table.screen = &kScreen;
    return table;
}
constexpr Kernels kTable = with_bytes();

}  // namespace

const Kernels* const kAvxVnni = &kTable;

}  // namespace cir
