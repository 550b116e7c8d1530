// The GPU that is emulated, and how: all from the environment.
#pragma once

#include <cstddef>
#include <string>

namespace driver {

struct Gpu {
    int architecture;           // CIR_EMULATED_GPU, e.g. "sm_75"
    int multiprocessors;        // CIR_EMULATED_MULTIPROCESSORS
    size_t memory;              // CIR_EMULATED_MEMORY, bytes
    int devices;                // CIR_EMULATED_DEVICES
    int version;                // CIR_EMULATED_VERSION: the CUDA version of the driver, e.g. 12060
    int init_error;             // CIR_EMULATED_INIT: what cuInit answers
    bool integrated;            // host and GPU share their memory, as on a Jetson
    bool registers_read_only;   // CIR_EMULATED_READ_ONLY: takes read-only memory of the host
    int warps, blocks;          // of a multiprocessor
    size_t shared, most_shared; // of a multiprocessor, and of one of its blocks
    std::string order;          // CIR_EMULATED_ORDER: "late", "early" or a number; see work.cpp
    double call_us;             // CIR_EMULATED_CALL: microseconds of the host for a call, in place of this machine's clock
    double rate;                // CIR_EMULATED_RATE: bytes a microsecond then, of all memory that work uses
    bool trace;                 // CIR_EMULATED_TRACE: every call and its answer on stderr
    std::string report;         // CIR_EMULATED_REPORT: a file for complaints and leaks
    std::string name() const { return "Emulated sm_" + std::to_string(architecture); }
};

const Gpu& gpu();

// The answer to cuDeviceGetAttribute, or -1 for one that is not known.
int attribute_of_gpu(int attribute);

}  // namespace driver
