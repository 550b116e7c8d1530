// Streams and events.
#include "state.h"

namespace driver {

Stream* legacy_of(Context* context) {
    Stream*& found = state().legacy[context];
    if (found == nullptr) {
        found = new Stream(context, 0);
        found->legacy = true;
    }
    return found;
}

Stream* stream_of(void* handle, Context* context) {
    const auto number = reinterpret_cast<uintptr_t>(handle);
    if (number <= 1) return legacy_of(context);
    if (number == 2) {  // the thread's own
        Stream*& found = state().of_thread[{context, std::this_thread::get_id()}];
        if (found == nullptr) found = state().streams.add(Stream(context, 0));
        return found;
    }
    Stream* found = state().streams.find(handle);
    return found != nullptr && found->context == context ? found : nullptr;
}

// For what waits for a stream or asks after it.
static Status may_ask(Stream* stream, const char* name) {
    if (stream->capture != nullptr) {
        invalidate(*stream->capture, name);
        return kCaptureUnsupported;
    }
    const Status status = unsafe_for_legacy(stream);
    return status != kSuccess ? status : unsafe_call(name);
}

}  // namespace driver

using namespace driver;

CIR_API Status cuStreamCreate(void** handle, unsigned flags) {
    return in_context("cuStreamCreate", [&](Context* context) {
        if (flags > 1) return kInvalidValue;
        *handle = state().streams.add(Stream(context, flags));
        return kSuccess;
    });
}
CIR_API Status cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
CIR_API Status cuStreamDestroy_v2(void* handle) {
    return in_context("cuStreamDestroy", [&](Context* context) {
        Stream* stream = state().streams.find(handle);
        if (stream == nullptr || stream->context != context) return kInvalidHandle;
        if (stream->capture != nullptr) {
            complain("a stream is destroyed while it is captured");
            invalidate(*stream->capture, "cuStreamDestroy");
        }
        state().streams.drop(stream);  // what it still has to do gets done
        return kSuccess;
    });
}
CIR_API Status cuStreamSynchronize(void* handle) {
    return in_context("cuStreamSynchronize", [&](Context* context) {
        Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        const Status status = may_ask(stream, "cuStreamSynchronize");
        if (status != kSuccess) return status;
        return wait_for(stream->legacy ? mark(stream, "a wait for the legacy stream") : stream->last, context);
    });
}
CIR_API Status cuStreamQuery(void* handle) {
    return in_context("cuStreamQuery", [&](Context* context) {
        Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        const Status status = may_ask(stream, "cuStreamQuery");
        if (status != kSuccess) return status;
        const bool done = stream->last == nullptr || stream->last->done;
        if (!done) run_any();
        return done ? context->broken : kNotReady;
    });
}
CIR_API Status cuStreamGetFlags(void* handle, unsigned* flags) {
    return in_context("cuStreamGetFlags", [&](Context* context) {
        const Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        *flags = stream->flags;
        return kSuccess;
    });
}
CIR_API Status cuStreamGetCtx(void* handle, void** found) {
    return in_context("cuStreamGetCtx", [&](Context* context) {
        const Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        *found = stream->context;
        return kSuccess;
    });
}

CIR_API Status cuLaunchHostFunc(void* handle, HostFunction function, void* data) {
    return in_context("cuLaunchHostFunc", [&](Context* context) {
        Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        if (function == nullptr) return kInvalidValue;
        const auto act = [function, data] {
            function(data);
            return kSuccess;
        };
        return enqueue(stream, "a function of the host", act, {}, true);
    });
}

CIR_API Status cuEventCreate(void** handle, unsigned flags) {
    return in_context("cuEventCreate", [&](Context* context) {
        if (flags > 7) return kInvalidValue;
        *handle = state().events.add(Event{context, flags, nullptr, nullptr, {}});
        return kSuccess;
    });
}
CIR_API Status cuEventDestroy_v2(void* handle) {
    return in_context("cuEventDestroy", [&](Context*) {
        Event* event = state().events.find(handle);
        if (event == nullptr) return kInvalidHandle;
        state().events.drop(event);
        return kSuccess;
    });
}
CIR_API Status cuEventRecord(void* handle, void* stream_handle) {
    return in_context("cuEventRecord", [&](Context* context) {
        Event* event = state().events.find(handle);
        Stream* stream = stream_of(stream_handle, context);
        if (event == nullptr || stream == nullptr || event->context != context) return kInvalidHandle;
        if (stream->capture != nullptr) {
            if (stream->capture->invalid) return kCaptureInvalidated;
            event->work = nullptr;
            event->capture = stream->capture;
            event->nodes = stream->tail;
            return kSuccess;
        }
        const Status status = unsafe_for_legacy(stream);
        if (status != kSuccess) return status;
        event->capture = nullptr;
        event->nodes.clear();
        event->work = mark(stream, "an event");
        return kSuccess;
    });
}
CIR_API Status cuStreamWaitEvent(void* stream_handle, void* handle, unsigned flags) {
    return in_context("cuStreamWaitEvent", [&](Context* context) {
        Event* event = state().events.find(handle);
        Stream* stream = stream_of(stream_handle, context);
        if (event == nullptr || stream == nullptr) return kInvalidHandle;
        if (flags != 0) return kInvalidValue;
        const bool captured = event->capture != nullptr && !event->capture->ended;
        if (event->capture != nullptr && event->capture->ended) return kCapturedEvent;  // it has no work to wait for
        if (stream->capture == nullptr && !captured) {
            const Status status = unsafe_for_legacy(stream);
            if (status != kSuccess) return status;
            if (event->work != nullptr) mark(stream, "a wait for an event", {event->work});
            return kSuccess;
        }
        if (stream->capture != nullptr && stream->capture->invalid) return kCaptureInvalidated;
        if (stream->capture != nullptr && !captured) {
            if (event->work == nullptr) return kSuccess;  // never recorded
            invalidate(*stream->capture, "cuStreamWaitEvent for work outside");
            return kCaptureIsolation;
        }
        if (event->capture->invalid) return kCaptureInvalidated;
        if (stream->capture == nullptr) {
            if (stream->legacy) {
                invalidate(*event->capture, "cuStreamWaitEvent by the legacy stream");
                return kCaptureImplicit;
            }
            stream->capture = event->capture;
            stream->capture->streams.insert(stream);
            stream->tail = event->nodes;
            return kSuccess;
        }
        if (stream->capture != event->capture) {
            invalidate(*stream->capture, "cuStreamWaitEvent for another capture");
            invalidate(*event->capture, "cuStreamWaitEvent by another capture");
            return kCaptureMerge;
        }
        stream->tail.insert(stream->tail.end(), event->nodes.begin(), event->nodes.end());
        return kSuccess;
    });
}

// For what waits for an event or asks after it.
static Status may_ask(const Event* event, const char* name) {
    if (event->capture != nullptr) {
        invalidate(*event->capture, name);
        return kCapturedEvent;
    }
    return unsafe_call(name);
}
CIR_API Status cuEventSynchronize(void* handle) {
    return in_context("cuEventSynchronize", [&](Context* context) {
        Event* event = state().events.find(handle);
        if (event == nullptr) return kInvalidHandle;
        const Status status = may_ask(event, "cuEventSynchronize");
        return status != kSuccess ? status : wait_for(event->work, context);
    });
}
CIR_API Status cuEventQuery(void* handle) {
    return in_context("cuEventQuery", [&](Context* context) {
        Event* event = state().events.find(handle);
        if (event == nullptr) return kInvalidHandle;
        const Status status = may_ask(event, "cuEventQuery");
        if (status != kSuccess) return status;
        const bool done = event->work == nullptr || event->work->done;
        if (!done) run_any();
        return done ? context->broken : kNotReady;
    });
}
CIR_API Status cuEventElapsedTime_v2(float* milliseconds, void* start_handle, void* end_handle) {
    return in_context("cuEventElapsedTime", [&](Context*) {
        const Event *start = state().events.find(start_handle), *end = state().events.find(end_handle);
        if (start == nullptr || end == nullptr || start->work == nullptr || end->work == nullptr) return kInvalidHandle;
        if (((start->flags | end->flags) & kEventDisableTiming) != 0) return kInvalidHandle;
        if (!start->work->done || !end->work->done) return kNotReady;
        *milliseconds = static_cast<float>((end->work->done_at - start->work->done_at) / 1e3);
        return kSuccess;
    });
}
CIR_API Status cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
