#include "avx512.h"

namespace cir {
namespace {

// Multiply pairs and accumulate in one instruction.
struct Avx512Vnni : Avx512 {
    static I madd(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
};

constexpr Kernels kTable = kernels_of<Avx512Vnni>("avx512vnni");
}  // namespace
const Kernels* const kAvx512Vnni = &kTable;
}  // namespace cir
