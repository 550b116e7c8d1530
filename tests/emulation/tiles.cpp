// In place of dispatch.cpp: AMX as a program has it whose tiles are C++ (tiles.h), and what is there to compare it with.
#include "score.h"

namespace cir {

std::vector<const Kernels*> available_kernels() { return {kAvx512Amx, kAvx512Vnni}; }

const Kernels* kernels_by_name(const std::string& name) {
    for (const Kernels* kernels : available_kernels()) {
        if (kernels->name == name) return kernels;
    }
    return nullptr;
}

}  // namespace cir
