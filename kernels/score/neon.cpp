#include "neon.h"

namespace cir {
namespace {
constexpr Kernels kTable = kernels_of<Neon>("neon");
}  // namespace
const Kernels* const kNeon = &kTable;
}  // namespace cir
