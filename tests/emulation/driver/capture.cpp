// Captures and graphs.
#include <algorithm>
#include <cstdio>
#include <set>

#include "state.h"

namespace driver {

void invalidate(Capture& capture, const char* why) {
    if (gpu().trace && !capture.invalid) std::fprintf(stderr, "      %s invalidates a capture\n", why);
    capture.invalid = true;
}

static void forget_ended() {
    auto& all = state().captures;
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& c) { return c->ended; }), all.end());
}

Status unsafe_call(const char* name) {
    if (capture_mode() == kRelaxed) return kSuccess;
    Status status = kSuccess;
    for (const auto& capture : state().captures) {
        const bool mine = capture->thread == std::this_thread::get_id() && capture->mode != kRelaxed;
        const bool of_all = capture->mode == kGlobal && capture_mode() == kGlobal;
        if (!mine && !of_all) continue;
        invalidate(*capture, name);
        status = kCaptureUnsupported;
    }
    return status;
}

// Whatever thread and mode: a wait for all of a context would wait for what is not even enqueued.
Status unsafe_for_captures_in(Context* context, const char* name) {
    Status status = kSuccess;
    for (const auto& capture : state().captures) {
        if (capture->origin->context != context) continue;
        invalidate(*capture, name);
        status = kCaptureUnsupported;
    }
    return status;
}

Status unsafe_for_legacy(Stream* stream) {
    if (!stream->legacy) return kSuccess;
    Status status = kSuccess;
    for (const auto& capture : state().captures) {
        const bool blocking = std::any_of(capture->streams.begin(), capture->streams.end(),
                                          [](const Stream* s) { return (s->flags & kStreamNonBlocking) == 0; });
        if (capture->origin->context != stream->context || !blocking) continue;
        invalidate(*capture, "the legacy stream");
        status = kCaptureImplicit;
    }
    return status;
}

Status capture_node(Stream* stream, std::string what, std::function<Status()> act, std::vector<Range> uses, bool of_host) {
    Capture& capture = *stream->capture;
    if (capture.invalid) return kCaptureInvalidated;
    auto made = std::make_unique<Node>();
    made->what = std::move(what);
    made->act = std::move(act);
    made->uses = std::move(uses);
    made->of_host = of_host;
    made->after = stream->tail;
    stream->tail = {made.get()};
    capture.nodes->all.push_back(std::move(made));
    return kSuccess;
}

static bool joined(const Capture& capture) {
    std::set<const Node*> reached;
    std::vector<const Node*> open(capture.origin->tail.begin(), capture.origin->tail.end());
    while (!open.empty()) {
        const Node* next = open.back();
        open.pop_back();
        if (reached.insert(next).second) open.insert(open.end(), next->after.begin(), next->after.end());
    }
    return reached.size() == capture.nodes->all.size();
}

// All work of one launch: a beginning on the stream, the nodes between as their order allows, and an end.
static void launch_nodes(GraphExec* exec, Stream* stream) {
    std::map<const Node*, WorkPointer> made;
    std::vector<WorkPointer> all;
    const WorkPointer begin = mark(stream, "the beginning of a graph", {exec->last});
    for (const auto& node : exec->nodes->all) {
        const auto work = std::make_shared<Work>();
        work->context = exec->context;
        work->what = node->what + " of a graph";
        work->act = node->act;
        work->of_host = node->of_host;
        work->uses = node->uses;
        work->after = {begin};
        for (const Node* before : node->after) work->after.push_back(made.at(before));
        made[node.get()] = work;
        all.push_back(work);
    }
    for (const WorkPointer& work : all) add_work(work);
    exec->last = mark(stream, "the end of a graph", all);
}

}  // namespace driver

using namespace driver;

CIR_API Status cuStreamBeginCapture_v2(void* handle, int mode) {
    return in_context("cuStreamBeginCapture", [&](Context* context) {
        Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        if (mode < kGlobal || mode > kRelaxed) return kInvalidValue;
        if (stream->legacy) return kCaptureUnsupported;
        if (stream->capture != nullptr) return kIllegalState;
        const auto made = std::make_shared<Capture>();
        made->origin = stream;
        made->mode = static_cast<CaptureMode>(mode);
        made->thread = std::this_thread::get_id();
        made->streams = {stream};
        stream->capture = made;
        stream->tail.clear();
        state().captures.push_back(made);
        return kSuccess;
    });
}
CIR_API Status cuStreamBeginCapture(void* handle) { return cuStreamBeginCapture_v2(handle, kGlobal); }

CIR_API Status cuStreamEndCapture(void* handle, void** graph) {
    return in_context("cuStreamEndCapture", [&](Context* context) {
        *graph = nullptr;
        Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        const std::shared_ptr<Capture> capture = stream->capture;
        if (capture == nullptr) return kIllegalState;
        if (capture->origin != stream) {
            invalidate(*capture, "cuStreamEndCapture of another stream");
            return kCaptureUnmatched;
        }
        if (capture->mode != kRelaxed && capture->thread != std::this_thread::get_id()) return kCaptureWrongThread;
        const bool whole = joined(*capture);
        for (Stream* member : capture->streams) {
            member->capture = nullptr;
            member->tail.clear();
        }
        capture->ended = true;
        forget_ended();
        if (capture->invalid) return kCaptureInvalidated;
        if (!whole) return kCaptureUnjoined;
        *graph = state().graphs.add(Graph{capture->nodes});
        return kSuccess;
    });
}
CIR_API Status cuStreamIsCapturing(void* handle, int* found) {
    return in_context("cuStreamIsCapturing", [&](Context* context) {
        const Stream* stream = stream_of(handle, context);
        if (stream == nullptr) return kInvalidHandle;
        *found = stream->capture == nullptr ? 0 : stream->capture->invalid ? 2 : 1;
        return kSuccess;
    });
}
CIR_API Status cuThreadExchangeStreamCaptureMode(int* mode) {
    return called("cuThreadExchangeStreamCaptureMode", [&] {
        if (*mode < kGlobal || *mode > kRelaxed) return kInvalidValue;
        const CaptureMode before = capture_mode();
        capture_mode() = static_cast<CaptureMode>(*mode);
        *mode = before;
        return kSuccess;
    });
}

CIR_API Status cuGraphInstantiateWithFlags(void** exec, void* handle, unsigned long long flags) {
    return in_context("cuGraphInstantiateWithFlags", [&](Context* context) {
        const Graph* graph = state().graphs.find(handle);
        if (graph == nullptr) return kInvalidHandle;
        if (flags != 0) return kInvalidValue;
        *exec = state().execs.add(GraphExec{context, graph->nodes, nullptr});
        return kSuccess;
    });
}
CIR_API Status cuGraphDestroy(void* handle) {
    return called("cuGraphDestroy", [&] {
        Graph* graph = state().graphs.find(handle);
        return graph != nullptr && state().graphs.drop(graph) ? kSuccess : kInvalidHandle;
    });
}
CIR_API Status cuGraphLaunch(void* handle, void* stream_handle) {
    return in_context("cuGraphLaunch", [&](Context* context) {
        GraphExec* exec = state().execs.find(handle);
        Stream* stream = stream_of(stream_handle, context);
        if (exec == nullptr || stream == nullptr || exec->context != context) return kInvalidHandle;
        if (stream->capture != nullptr) {
            invalidate(*stream->capture, "cuGraphLaunch");  // a child graph, which nothing here asks for
            return kCaptureUnsupported;
        }
        const Status status = unsafe_for_legacy(stream);
        if (status == kSuccess) launch_nodes(exec, stream);
        return status;
    });
}
CIR_API Status cuGraphExecDestroy(void* handle) {
    return in_context("cuGraphExecDestroy", [&](Context*) {
        GraphExec* exec = state().execs.find(handle);
        if (exec == nullptr) return kInvalidHandle;
        if (exec->last != nullptr && !exec->last->done) complain("a graph is destroyed while it runs");
        state().execs.drop(exec);
        return kSuccess;
    });
}
