// Every kernel of the recurrent text encoder, one translation unit and one fatbin. Read README.md beside this first.
#include "encode.cuh"
