// Every kernel of the CUDA scorer, one translation unit and one fatbin. Read README.md beside this first.
#include "gallery.cuh"
#include "roofline.cuh"
#include "scan.cuh"
#include "shortlist.cuh"
