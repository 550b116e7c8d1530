// Which instruction sets were compiled in, and which of them this machine can run.
#include "kernels.h"
#include "recurrent.h"

namespace cir {

std::vector<const InstructionSet*> available_sets() {
    std::vector<const InstructionSet*> out;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f")) out.push_back(&kAvx512);
    if (avx2) out.push_back(&kAvx2);
#endif
    out.push_back(&kBaseline);
    return out;
}

const char* name_of(const InstructionSet& set) { return set.name; }

}  // namespace cir
