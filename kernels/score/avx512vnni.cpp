// What VNNI adds to AVX-512: integer products that accumulate in one instruction.
#include "avx512vnni.h"

namespace cir {

void avx512vnni_bounds(const int8_t* base, const float* scales, const int32_t* index, int count,
                       const BoundTerms& terms, float* out) {
    bounds<Avx512Vnni>(base, scales, index, count, terms, out);
}

extern const Screen kAvx512VnniScreen;
constexpr Screen kScreenTable = screen_of<Avx512Vnni>();
const Screen kAvx512VnniScreen = kScreenTable;

}  // namespace cir
