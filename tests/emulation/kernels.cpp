// The kernels of one folder as they are, compiled for the machine.
#include CIR_KERNELS
