// What VNNI adds to AVX-512: integer products that accumulate in one instruction.
#include "avx512.h"

namespace cir {
namespace {

struct Avx512Vnni : Avx512 {
    // As assembly, because GCC 12 surrounds the intrinsic with copies of its accumulators.
    static I madd(I sum, I a, I b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
};

}  // namespace

void avx512vnni_bounds(const int8_t* base, const float* scales, const int32_t* index, int count,
                       const BoundTerms& terms, float* out) {
    bounds<Avx512Vnni>(base, scales, index, count, terms, out);
}

}  // namespace cir
