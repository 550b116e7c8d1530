#include "avx512.h"

namespace cir {
namespace {
constexpr Kernels kTable = kernels_of<Avx512>("avx512");
}
const Kernels* const kAvx512 = &kTable;
}  // namespace cir
