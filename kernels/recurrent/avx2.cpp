#define CIR_LANES 8
#define CIR_REGISTERS 16
#include "panels.h"

namespace cir {
const InstructionSet kAvx2 = instruction_set("avx2");
}
