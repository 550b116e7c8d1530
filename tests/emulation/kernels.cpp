// The CUDA scorer as it is, compiled for the machine.
#include "score.cu"
