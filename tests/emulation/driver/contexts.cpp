// Starting, devices, contexts, and the names of errors.
#include <cstring>
#include <map>

#include "state.h"

using namespace driver;

namespace {

struct Named {
    const char *name, *text;
};
const std::map<int, Named> kNames = {
    {0, {"CUDA_SUCCESS", "no error"}},
    {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {3, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {100, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {201, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {222, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."}},
    {400, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {401, {"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"}},
    {500, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {600, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
    {709, {"CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"}},
    {712, {"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"}},
    {713, {"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"}},
    {719, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {720, {"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"}},
    {800, {"CUDA_ERROR_NOT_PERMITTED", "operation not permitted"}},
    {801, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
    {803, {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"}},
    {900, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    {901, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
    {902, {"CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"}},
    {903, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"}},
    {904, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
    {905, {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
    {906, {"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"}},
    {907, {"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"}},
    {908, {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"}},
};

bool is_device(int device) { return device >= 0 && device < gpu().devices; }

// All that belongs to it goes with it.
void destroy(Context* context) {
    abandon_work_of(context);
    for (const auto& capture : state().captures) {
        if (capture->origin->context == context) capture->invalid = true;
    }
    size_t streams = 0, events = 0, execs = 0;
    const auto all_streams = state().streams.live();
    for (Stream* stream : all_streams) streams += stream->context == context && state().streams.drop(stream);
    const auto all_events = state().events.live();
    for (Event* event : all_events) events += event->context == context && state().events.drop(event);
    const auto all_execs = state().execs.live();
    for (GraphExec* exec : all_execs) execs += exec->context == context && state().execs.drop(exec);
    const auto all_modules = state().modules.live();
    for (Module* module : all_modules) {
        if (module->context == context) state().modules.drop(module);
    }
    const auto all_functions = state().functions.live();
    for (Function* function : all_functions) {
        if (function->module->context == context) state().functions.drop(function);
    }
    if (streams > 0) note_left(std::to_string(streams) + " streams");
    if (events > 0) note_left(std::to_string(events) + " events");
    if (execs > 0) note_left(std::to_string(execs) + " graphs");
    forget_memory_of(context);
    context->alive = false;
    state().contexts.drop(context);
}

}  // namespace

CIR_API Status cuInit(unsigned flags) {
    const std::lock_guard<std::mutex> lock(state().lock);
    if (flags != 0) return kInvalidValue;
    if (gpu().init_error != 0) return static_cast<Status>(gpu().init_error);
    if (gpu().devices == 0) return kNoDevice;
    state().initialised = true;
    return kSuccess;
}

CIR_API Status cuDriverGetVersion(int* version) {
    if (version == nullptr) return kInvalidValue;
    *version = gpu().version;
    return kSuccess;
}

CIR_API Status cuGetErrorName(int status, const char** name) {
    const auto found = kNames.find(status);
    *name = found == kNames.end() ? nullptr : found->second.name;
    return found == kNames.end() ? kInvalidValue : kSuccess;
}
CIR_API Status cuGetErrorString(int status, const char** text) {
    const auto found = kNames.find(status);
    *text = found == kNames.end() ? nullptr : found->second.text;
    return found == kNames.end() ? kInvalidValue : kSuccess;
}

CIR_API Status cuDeviceGetCount(int* count) {
    return called("cuDeviceGetCount", [&] {
        *count = gpu().devices;
        return kSuccess;
    });
}
CIR_API Status cuDeviceGet(int* device, int ordinal) {
    return called("cuDeviceGet", [&] {
        if (!is_device(ordinal)) return kInvalidDevice;
        *device = ordinal;
        return kSuccess;
    });
}
CIR_API Status cuDeviceGetName(char* name, int room, int device) {
    return called("cuDeviceGetName", [&] {
        if (!is_device(device)) return kInvalidDevice;
        if (name == nullptr || room <= 0) return kInvalidValue;
        std::strncpy(name, gpu().name().c_str(), static_cast<size_t>(room) - 1);
        name[room - 1] = 0;
        return kSuccess;
    });
}
CIR_API Status cuDeviceGetAttribute(int* value, int attribute, int device) {
    return called("cuDeviceGetAttribute", [&] {
        if (!is_device(device)) return kInvalidDevice;
        const int found = attribute_of_gpu(attribute);
        if (value == nullptr || found < 0) return kInvalidValue;
        *value = found;
        return kSuccess;
    });
}
CIR_API Status cuDeviceComputeCapability(int* major, int* minor, int device) {
    return called("cuDeviceComputeCapability", [&] {
        if (!is_device(device)) return kInvalidDevice;
        *major = gpu().architecture / 10;
        *minor = gpu().architecture % 10;
        return kSuccess;
    });
}
CIR_API Status cuDeviceTotalMem_v2(size_t* bytes, int device) {
    return called("cuDeviceTotalMem", [&] {
        if (!is_device(device)) return kInvalidDevice;
        *bytes = gpu().memory;
        return kSuccess;
    });
}
CIR_API Status cuDeviceGetPCIBusId(char* text, int room, int device) {
    return called("cuDeviceGetPCIBusId", [&] {
        if (!is_device(device)) return kInvalidDevice;
        if (room < 13) return kInvalidValue;
        std::strcpy(text, "0000:00:00.0");
        return kSuccess;
    });
}

CIR_API Status cuDevicePrimaryCtxRetain(void** context, int device) {
    return called("cuDevicePrimaryCtxRetain", [&] {
        if (!is_device(device)) return kInvalidDevice;
        if (state().primary == nullptr) state().primary = state().contexts.add(Context{true});
        ++state().primary_retained;
        *context = state().primary;
        return kSuccess;
    });
}
CIR_API Status cuDevicePrimaryCtxRelease_v2(int device) {
    return called("cuDevicePrimaryCtxRelease", [&] {
        if (!is_device(device)) return kInvalidDevice;
        if (state().primary_retained == 0) return kInvalidContext;
        if (--state().primary_retained == 0) {
            destroy(state().primary);
            state().primary = nullptr;
        }
        return kSuccess;
    });
}
CIR_API Status cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    return called("cuDevicePrimaryCtxGetState", [&] {
        if (!is_device(device)) return kInvalidDevice;
        *flags = 0;
        *active = state().primary != nullptr;
        return kSuccess;
    });
}

CIR_API Status cuCtxCreate_v2(void** context, unsigned, int device) {
    return called("cuCtxCreate", [&] {
        if (!is_device(device)) return kInvalidDevice;
        Context* made = state().contexts.add(Context{false});
        stack().push_back(made);
        *context = made;
        return kSuccess;
    });
}
CIR_API Status cuCtxCreate_v4(void** context, const void*, unsigned flags, int device) {
    return cuCtxCreate_v2(context, flags, device);
}
CIR_API Status cuCtxDestroy_v2(void* handle) {
    return called("cuCtxDestroy", [&] {
        Context* context = state().contexts.find(handle);
        if (context == nullptr || context->primary) return kInvalidContext;
        if (!stack().empty() && stack().back() == context) stack().pop_back();
        destroy(context);
        return kSuccess;
    });
}
CIR_API Status cuCtxDetach(void* context) { return cuCtxDestroy_v2(context); }

CIR_API Status cuCtxPushCurrent_v2(void* handle) {
    return called("cuCtxPushCurrent", [&] {
        Context* context = state().contexts.find(handle);
        if (context == nullptr) return kInvalidContext;
        stack().push_back(context);
        return kSuccess;
    });
}
CIR_API Status cuCtxPopCurrent_v2(void** handle) {
    return called("cuCtxPopCurrent", [&] {
        if (stack().empty()) return kInvalidContext;
        if (handle != nullptr) *handle = stack().back();
        stack().pop_back();
        return kSuccess;
    });
}
CIR_API Status cuCtxSetCurrent(void* handle) {
    return called("cuCtxSetCurrent", [&] {
        Context* context = handle == nullptr ? nullptr : state().contexts.find(handle);
        if (handle != nullptr && context == nullptr) return kInvalidContext;
        if (!stack().empty()) stack().pop_back();
        if (context != nullptr) stack().push_back(context);
        return kSuccess;
    });
}
CIR_API Status cuCtxGetCurrent(void** handle) {
    return called("cuCtxGetCurrent", [&] {
        *handle = stack().empty() ? nullptr : stack().back();
        return kSuccess;
    });
}
CIR_API Status cuCtxGetDevice(int* device) {
    return in_context("cuCtxGetDevice", [&](Context*) {
        *device = 0;
        return kSuccess;
    });
}
CIR_API Status cuCtxGetApiVersion(void* handle, unsigned* version) {
    return called("cuCtxGetApiVersion", [&] {
        if (state().contexts.find(handle) == nullptr) return kInvalidContext;
        *version = 3020;
        return kSuccess;
    });
}
CIR_API Status cuCtxSynchronize() {
    return in_context("cuCtxSynchronize", [&](Context* context) {
        const Status status = unsafe_for_captures_in(context, "cuCtxSynchronize");
        return status != kSuccess ? status : wait_for_context(context);
    });
}
