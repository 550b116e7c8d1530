// Modules, functions and launches.
#include <algorithm>
#include <cstring>

#include "state.h"

extern "C" const char* machine_launch(const char* name, unsigned grid_x, unsigned grid_y, size_t shared_bytes,
                                      const void* arguments, size_t argument_bytes, unsigned schedule, bool together);

namespace driver {
namespace {

constexpr size_t kUnaskedShared = 48 << 10;

// Blocks of a kernel that a multiprocessor holds at once (CUDA Occupancy Calculator).
int blocks_at_once(const Function& function, int threads, size_t dynamic) {
    const Gpu& g = gpu();
    const int warps = (threads + 31) / 32;
    const int registers_of_warp = (std::max(function.facts.registers, 1) * 32 + 255) / 256 * 256;
    const int by_registers = 65536 / registers_of_warp / 4 * 4 / warps;
    const size_t taken = (function.facts.shared + dynamic + (g.architecture >= 80 ? 1024 : 0) + 127) / 128 * 128;
    if (function.facts.shared + dynamic > g.most_shared) return 0;
    const int by_shared = taken == 0 ? g.blocks : static_cast<int>(g.shared / taken);
    return std::min({g.blocks, g.warps / warps, by_registers, by_shared});
}

struct Shape {
    unsigned grid[3], block[3], shared;
};

// What a driver refuses at once.
Status check_shape(const Function& function, const Shape& shape, bool together) {
    static const unsigned most_grid[3] = {2147483647, 65535, 65535}, most_block[3] = {1024, 1024, 64};
    for (int i = 0; i < 3; ++i) {
        if (shape.grid[i] == 0 || shape.grid[i] > most_grid[i]) return kInvalidValue;
        if (shape.block[i] == 0 || shape.block[i] > most_block[i]) return kInvalidValue;
    }
    const unsigned threads = shape.block[0] * shape.block[1] * shape.block[2];
    if (threads > 1024) return kInvalidValue;
    if (static_cast<int>(threads) > function.facts.threads) return kLaunchOutOfResources;
    if (shape.shared > function.most_dynamic_shared) return kInvalidValue;
    const int at_once = blocks_at_once(function, static_cast<int>(threads), shape.shared);
    if (at_once == 0) return kLaunchOutOfResources;
    const size_t blocks = static_cast<size_t>(shape.grid[0]) * shape.grid[1] * shape.grid[2];
    if (together && blocks > static_cast<size_t>(at_once) * static_cast<size_t>(gpu().multiprocessors)) {
        return kCooperativeLaunchTooLarge;
    }
    return kSuccess;
}

// Where the arguments may point to: what looks like an address of memory that is there.
std::vector<Range> uses_of(const std::vector<unsigned char>& arguments) {
    std::vector<Range> found;
    for (size_t at = 0; at + 8 <= arguments.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, arguments.data() + at, 8);
        if (memory_at(word, 1) != nullptr) found.push_back({word, 1});
    }
    return found;
}

Status read_arguments(void** parameters, void** extra, size_t bytes, std::vector<unsigned char>& arguments) {
    if (parameters != nullptr && extra != nullptr) return kInvalidValue;
    if (parameters != nullptr) {
        // Our kernels take one structure.
        if (parameters[0] == nullptr) return kInvalidValue;
        const auto* from = static_cast<const unsigned char*>(parameters[0]);
        arguments.assign(from, from + bytes);
        return kSuccess;
    }
    if (extra == nullptr) return kInvalidValue;
    const unsigned char* buffer = nullptr;
    size_t size = 0;
    for (; *extra != nullptr; extra += 2) {
        if (extra[0] == reinterpret_cast<void*>(1)) buffer = static_cast<const unsigned char*>(extra[1]);
        else if (extra[0] == reinterpret_cast<void*>(2)) size = *static_cast<const size_t*>(extra[1]);
        else return kInvalidValue;
    }
    if (buffer == nullptr || size != bytes) return kInvalidValue;
    arguments.assign(buffer, buffer + size);
    return kSuccess;
}

Status launch(void* handle, const Shape& shape, void* stream_handle, void** parameters, void** extra, bool together,
              Context* context) {
    const Function* function = state().functions.find(handle);
    Stream* stream = stream_of(stream_handle, context);
    if (function == nullptr || stream == nullptr || function->module->context != context) return kInvalidHandle;
    Status status = check_shape(*function, shape, together);
    if (status != kSuccess) return status;
    if (shape.grid[2] != 1 || static_cast<int>(shape.block[0]) != function->facts.threads) {
        complain("the machine has no such shape for " + function->facts.name);
        return kNotSupported;
    }
    std::vector<unsigned char> arguments;
    status = read_arguments(parameters, extra, function->facts.argument_bytes, arguments);
    if (status != kSuccess) return status;
    std::vector<Range> uses = uses_of(arguments);
    const std::string name = function->facts.name;
    static unsigned launches = 0;
    const unsigned schedule = launches++ % 4;
    const auto act = [=]() -> Status {
        const char* said = machine_launch(name.c_str(), shape.grid[0], shape.grid[1], shape.shared, arguments.data(),
                                          arguments.size(), schedule, together);
        if (*said == 0) return kSuccess;
        complain(said);
        return std::strstr(said, "outside of memory") != nullptr ? kIllegalAddress : kLaunchFailed;
    };
    return enqueue(stream, name, act, std::move(uses));
}

Status load(void** handle, const void* image, Context* context) {
    if (image == nullptr) return kInvalidValue;
    const Status unsafe = unsafe_call("cuModuleLoadData");
    if (unsafe != kSuccess) return unsafe;
    Module made{context, {}};
    const Status status = read_image(image, made.kernels);
    if (status == kSuccess) *handle = state().modules.add(std::move(made));
    return status;
}

}  // namespace
}  // namespace driver

using namespace driver;

CIR_API Status cuModuleLoadData(void** handle, const void* image) {
    return in_context("cuModuleLoadData", [&](Context* context) { return load(handle, image, context); });
}
CIR_API Status cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) {
    return in_context("cuModuleLoadDataEx", [&](Context* context) { return load(handle, image, context); });
}
CIR_API Status cuModuleLoadFatBinary(void** handle, const void* image) {
    return in_context("cuModuleLoadFatBinary", [&](Context* context) { return load(handle, image, context); });
}
CIR_API Status cuModuleUnload(void* handle) {
    return in_context("cuModuleUnload", [&](Context*) {
        Module* module = state().modules.find(handle);
        if (module == nullptr) return kInvalidHandle;
        const Status status = unsafe_call("cuModuleUnload");
        if (status != kSuccess) return status;
        const auto all = state().functions.live();
        for (Function* function : all) {
            if (function->module == module) state().functions.drop(function);
        }
        state().modules.drop(module);
        return kSuccess;
    });
}
CIR_API Status cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    return in_context("cuModuleGetFunction", [&](Context*) {
        Module* module = state().modules.find(module_handle);
        if (module == nullptr) return kInvalidHandle;
        const auto found = module->kernels.find(name);
        if (found == module->kernels.end()) return kNotFound;
        const Status status = unsafe_call("cuModuleGetFunction");  // it may load the code
        if (status != kSuccess) return status;
        *handle = state().functions.add(Function{module, found->second, kUnaskedShared - found->second.shared});
        return kSuccess;
    });
}

CIR_API Status cuFuncSetAttribute(void* handle, int attribute, int value) {
    return in_context("cuFuncSetAttribute", [&](Context*) {
        Function* function = state().functions.find(handle);
        if (function == nullptr) return kInvalidHandle;
        if (attribute == 9) return kSuccess;  // the preferred carveout
        if (attribute != kFunctionDynamicShared || value < 0) return kInvalidValue;
        if (static_cast<size_t>(value) + function->facts.shared > gpu().most_shared) return kInvalidValue;
        function->most_dynamic_shared = static_cast<size_t>(value);
        return kSuccess;
    });
}
CIR_API Status cuFuncGetAttribute(int* value, int attribute, void* handle) {
    return in_context("cuFuncGetAttribute", [&](Context*) {
        const Function* function = state().functions.find(handle);
        if (function == nullptr) return kInvalidHandle;
        switch (attribute) {
            case kFunctionMaxThreads: *value = function->facts.threads; return kSuccess;
            case kFunctionShared: *value = static_cast<int>(function->facts.shared); return kSuccess;
            case kFunctionLocal: *value = 0; return kSuccess;
            case kFunctionRegisters: *value = function->facts.registers; return kSuccess;
            case kFunctionBinaryVersion: *value = gpu().architecture; return kSuccess;
            case kFunctionDynamicShared: *value = static_cast<int>(function->most_dynamic_shared); return kSuccess;
            default: return kInvalidValue;
        }
    });
}
// Hints, and what PyCUDA still sets before every launch, which the launch says itself.
static Status take_note(const char* name, void* handle) {
    return in_context(name, [&](Context*) { return state().functions.find(handle) == nullptr ? kInvalidHandle : kSuccess; });
}
CIR_API Status cuFuncSetCacheConfig(void* handle, int) { return take_note("cuFuncSetCacheConfig", handle); }
CIR_API Status cuFuncSetSharedSize(void* handle, unsigned) { return take_note("cuFuncSetSharedSize", handle); }
CIR_API Status cuFuncSetBlockShape(void* handle, int x, int y, int z) {
    return x <= 0 || y <= 0 || z <= 0 ? kInvalidValue : take_note("cuFuncSetBlockShape", handle);
}
CIR_API Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t shared) {
    return in_context("cuOccupancyMaxActiveBlocksPerMultiprocessor", [&](Context*) {
        const Function* function = state().functions.find(handle);
        if (function == nullptr) return kInvalidHandle;
        if (blocks == nullptr || threads <= 0) return kInvalidValue;
        const bool fits = threads <= function->facts.threads && shared <= function->most_dynamic_shared;
        *blocks = fits ? blocks_at_once(*function, threads, shared) : 0;
        return kSuccess;
    });
}

CIR_API Status cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                              void** extra) {
    return in_context("cuLaunchKernel", [&](Context* context) {
        const Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
        return launch(function, shape, stream, parameters, extra, false, context);
    });
}
CIR_API Status cuLaunchCooperativeKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                         unsigned block_y, unsigned block_z, unsigned shared, void* stream,
                                         void** parameters) {
    return in_context("cuLaunchCooperativeKernel", [&](Context* context) {
        const Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
        return launch(function, shape, stream, parameters, nullptr, true, context);
    });
}
