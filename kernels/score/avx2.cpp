#include "avx2.h"

namespace cir {
namespace {
constexpr Kernels kTable = kernels_of<Avx2>("avx2");
}  // namespace
const Kernels* const kAvx2 = &kTable;
}  // namespace cir
