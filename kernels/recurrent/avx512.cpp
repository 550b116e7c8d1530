#define CIR_LANES 16
#define CIR_REGISTERS 32
#include "panels.h"

namespace cir {
const InstructionSet kAvx512 = instruction_set("avx512");
}
