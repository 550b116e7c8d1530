#include "avx512.h"

namespace cir {

void avx512vnni_bounds(const int8_t* base, const float* scales, const int32_t* index, int count,
                       const BoundTerms& terms, float* out);  // avx512vnni.cpp
extern const Screen kAvx512VnniScreen;
extern const Screen kAvx512AmxScreen;  // avx512amx.cpp

namespace {

constexpr Kernels kTable = kernels_of<Avx512>("avx512");

constexpr Kernels with_vnni() {
    Kernels table = kTable;
    table.name = "avx512vnni";
    table.bounds = avx512vnni_bounds;
    table.screen = &kAvx512VnniScreen;
    return table;
}
constexpr Kernels kVnniTable = with_vnni();

#ifdef CIR_HAS_AMX
constexpr Kernels with_amx() {
    Kernels table = kVnniTable;
    table.name = "avx512amx";
    table.screen = &kAvx512AmxScreen;
    return table;
}
constexpr Kernels kAmxTable = with_amx();
#endif

}  // namespace

const Kernels* const kAvx512 = &kTable;
const Kernels* const kAvx512Vnni = &kVnniTable;
#ifdef CIR_HAS_AMX
const Kernels* const kAvx512Amx = &kAmxTable;
#endif

}  // namespace cir
