// What every processor of an architecture has: SSE2, NEON.
#define CIR_LANES 4
#if defined(__aarch64__)
#define CIR_REGISTERS 32
#else
#define CIR_REGISTERS 16
#endif
#include "panels.h"

namespace cir {
const InstructionSet kBaseline = instruction_set("baseline");
}
