#include "gpu.h"

#include <cstdlib>
#include <map>

namespace driver {
namespace {

std::string text(const char* name, const char* otherwise) {
    const char* given = std::getenv(name);
    return given == nullptr || *given == 0 ? otherwise : given;
}
long long number(const char* name, long long otherwise) {
    const char* given = std::getenv(name);
    return given == nullptr || *given == 0 ? otherwise : std::atoll(given);
}

// Warps, blocks and KiB of shared memory of a multiprocessor, and KiB of a block: CUDA C++ Programming Guide. 130 stands
// for what comes later.
struct Limits {
    int warps, blocks, shared, most_shared;
};
const std::map<int, Limits> kLimits = {
    {61, {64, 32, 96, 48}},   {75, {32, 16, 64, 64}},    {80, {64, 32, 164, 163}},  {86, {48, 16, 100, 99}},
    {87, {48, 16, 164, 163}}, {89, {48, 24, 100, 99}},   {90, {64, 32, 228, 227}},  {100, {64, 32, 228, 227}},
    {130, {64, 32, 228, 227}}, {110, {48, 24, 228, 227}}, {120, {48, 24, 100, 99}},
};

Gpu read() {
    Gpu made;
    made.architecture = std::atoi(text("CIR_EMULATED_GPU", "sm_75").c_str() + 3);
    const auto found = kLimits.find(made.architecture);
    if (found == kLimits.end()) std::abort();
    const Limits& limits = found->second;
    made.multiprocessors = static_cast<int>(number("CIR_EMULATED_MULTIPROCESSORS", 4));
    made.memory = static_cast<size_t>(number("CIR_EMULATED_MEMORY", 8ll << 30));
    made.devices = static_cast<int>(number("CIR_EMULATED_DEVICES", 1));
    made.version = static_cast<int>(number("CIR_EMULATED_VERSION", 13000));
    made.init_error = static_cast<int>(number("CIR_EMULATED_INIT", 0));
    made.integrated = made.architecture == 87 || made.architecture == 110;
    made.registers_read_only = number("CIR_EMULATED_READ_ONLY", 1) != 0;
    made.warps = limits.warps;
    made.blocks = limits.blocks;
    made.shared = static_cast<size_t>(limits.shared) << 10;
    made.most_shared = static_cast<size_t>(limits.most_shared) << 10;
    made.order = text("CIR_EMULATED_ORDER", "0");
    made.call_us = static_cast<double>(number("CIR_EMULATED_CALL", 0));
    made.rate = static_cast<double>(number("CIR_EMULATED_RATE", 1000));
    made.trace = number("CIR_EMULATED_TRACE", 0) != 0;
    made.report = text("CIR_EMULATED_REPORT", "");
    return made;
}

}  // namespace

const Gpu& gpu() {
    static const Gpu& only = *new Gpu(read());
    return only;
}

int attribute_of_gpu(int attribute) {
    const Gpu& g = gpu();
    switch (attribute) {
        case 1: return 1024;                                     // threads of a block
        case 2: case 3: return 1024;                             // block
        case 4: return 64;
        case 5: return 2147483647;                               // grid
        case 6: case 7: return 65535;
        case 8: return 48 << 10;                                 // shared memory of a block, unasked
        case 9: return 64 << 10;                                 // constant memory
        case 10: return 32;                                      // warp
        case 12: case 82: return 65536;                          // registers of a block, of a multiprocessor
        case 13: return 1590000;                                 // kHz
        case 16: return g.multiprocessors;
        case 17: return 0;                                       // time limit
        case 18: return g.integrated;
        case 19: return 1;                                       // maps memory of the host
        case 20: return 0;                                       // compute mode
        case 31: return 1;                                       // concurrent kernels
        case 32: return 0;                                       // ECC
        case 33: case 34: case 50: return 0;                     // PCI
        case 36: return 5001000;                                 // kHz of the memory
        case 37: return 256;                                     // bits of its bus
        case 38: return 4 << 20;                                 // second-level cache
        case 39: return 32 * g.warps;
        case 40: return 2;                                       // copy engines
        case 41: return 1;                                       // unified addresses
        case 75: return g.architecture / 10;
        case 76: return g.architecture % 10;
        case 78: return 1;                                       // priorities
        case 81: return static_cast<int>(g.shared);
        case 83: return 1;                                       // managed memory
        case 88: case 100: return 0;                             // pageable memory is not reached
        case 91: return !g.integrated;                           // registered memory under the host's address
        case 95: return g.architecture >= 60;                    // cooperative launches
        case 97: return static_cast<int>(g.most_shared);
        case 99: return 1;                                       // registers memory of the host
        case 106: return g.blocks;
        case 111: return g.architecture >= 80 ? 1024 : 0;        // shared memory that the system takes of a block
        case 113: return g.registers_read_only;
        case 115: return 1;                                      // memory pools
        default: return -1;
    }
}

}  // namespace driver
