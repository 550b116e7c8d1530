#include "state.h"

#include <cstdio>

#include <unistd.h>

namespace driver {

// Nothing of a driver survives a fork.
static const pid_t process = getpid();
static bool is_forked() { return getpid() != process; }

State& state() {
    static State& only = *new State;
    return only;
}
std::vector<Context*>& stack() {
    thread_local auto& mine = *new std::vector<Context*>;
    return mine;
}
CaptureMode& capture_mode() {
    thread_local CaptureMode mine = kGlobal;
    return mine;
}
bool& inside_host_function() {
    thread_local bool mine = false;
    return mine;
}

void complain(const std::string& what) {
    state().complaints.push_back(what);
    std::fprintf(stderr, "the emulated driver: %s\n", what.c_str());
}

void note_left(const std::string& what) { state().left.push_back(what); }

static Status traced(const char* name, Status answer) {
    if (gpu().trace) {
        const size_t thread = std::hash<std::thread::id>()(std::this_thread::get_id()) % 1000;
        std::fprintf(stderr, "[%03zu] %s: %d\n", thread, name, answer);
    }
    return answer;
}

Status called(const char* name, const std::function<Status()>& act) {
    if (inside_host_function()) return traced(name, kNotPermitted);
    const std::lock_guard<std::mutex> lock(state().lock);
    if (!state().initialised || is_forked()) return traced(name, kNotInitialized);
    state().host += gpu().call_us;
    return traced(name, act());
}

Status in_context(const char* name, const std::function<Status(Context*)>& act) {
    return called(name, [&]() -> Status {
        if (stack().empty() || stack().back() == nullptr) return kInvalidContext;
        Context* context = stack().back();
        if (!context->alive) return kContextIsDestroyed;
        if (context->broken != kSuccess) return context->broken;
        return act(context);
    });
}

// What is left, for whoever asked for a report.
__attribute__((destructor)) static void report() {
    const std::string& path = gpu().report;
    if (path.empty() || is_forked()) return;
    std::FILE* file = std::fopen(path.c_str(), "a");
    if (file == nullptr) return;
    for (const std::string& complaint : state().complaints) std::fprintf(file, "complaint: %s\n", complaint.c_str());
    for (const std::string& what : state().left) std::fprintf(file, "left: %s\n", what.c_str());
    if (state().primary_retained != 0) {
        std::fprintf(file, "left: the primary context, retained %d times\n", state().primary_retained);
    }
    for (const auto& [start, memory] : state().memory) {
        std::fprintf(file, "left: %zu bytes of %s memory\n", memory.bytes,
                     memory.kind == Kind::device ? "device" : memory.kind == Kind::pinned ? "page-locked" : "registered");
    }
    std::fclose(file);
}

}  // namespace driver
