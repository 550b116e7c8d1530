// Everything the driver knows. One lock guards all of it; objects are never given back, so that a stale handle is
// known for what it is.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "api.h"
#include "gpu.h"

namespace driver {

struct Range {
    uintptr_t start;
    size_t bytes;
};

struct Context {
    bool primary;
    bool alive = true;
    Status broken = kSuccess;  // the first fault; every later call answers it
};

// Something for the GPU to do, once all of `after` is done.
struct Work {
    Context* context;
    std::string what;
    std::function<Status()> act;  // null: a mark
    bool of_host = false;         // a function of the host, which runs without the lock
    std::vector<Range> uses;
    std::vector<std::shared_ptr<Work>> after;
    bool running = false, done = false;
    double begins = 0, takes = 0, done_at = 0;  // microseconds of the clock of work.cpp
};
using WorkPointer = std::shared_ptr<Work>;

// What a capture recorded instead of running it.
struct Node {
    std::string what;
    std::function<Status()> act;
    bool of_host;
    std::vector<Range> uses;
    std::vector<Node*> after;
};
struct Nodes {
    std::vector<std::unique_ptr<Node>> all;
};
struct Stream;
struct Capture {
    Stream* origin;
    CaptureMode mode;
    std::thread::id thread;
    std::shared_ptr<Nodes> nodes = std::make_shared<Nodes>();
    std::set<Stream*> streams;
    bool invalid = false, ended = false;
};

struct Stream {
    Stream(Context* context, unsigned flags) : context(context), flags(flags) {}
    Context* context;
    unsigned flags;
    bool legacy = false;
    WorkPointer last;
    std::shared_ptr<Capture> capture;
    std::vector<Node*> tail;  // what the next node of the capture comes after
};
struct Event {
    Context* context;
    unsigned flags;
    WorkPointer work;
    std::shared_ptr<Capture> capture;
    std::vector<Node*> nodes;
};
struct Graph {
    std::shared_ptr<Nodes> nodes;
};
struct GraphExec {
    Context* context;
    std::shared_ptr<Nodes> nodes;
    WorkPointer last;  // a graph does not run beside itself
};

enum class Kind { device, pinned, registered };
struct Memory {
    Kind kind;
    uintptr_t start;
    size_t bytes;
    Context* context;
    unsigned flags;
};

struct KernelFacts {
    std::string name;
    size_t argument_bytes;
    int threads;
    int registers;
    size_t shared;  // static
};
struct Module {
    Context* context;
    std::map<std::string, KernelFacts> kernels;
};
struct Function {
    Module* module;
    KernelFacts facts;
    size_t most_dynamic_shared;
};

template <class T>
class Handles {
   public:
    T* add(T&& made) { return *live_.insert(new T(std::move(made))).first; }
    T* find(void* handle) const {
        const auto found = live_.find(static_cast<T*>(handle));
        return found == live_.end() ? nullptr : *found;
    }
    bool drop(T* handle) { return live_.erase(handle) == 1; }
    const std::unordered_set<T*>& live() const { return live_; }

   private:
    std::unordered_set<T*> live_;
};

struct State {
    std::mutex lock;
    bool initialised = false;
    double host = 0;  // microseconds that the host has spent in calls, where they are counted
    Handles<Context> contexts;
    Context* primary = nullptr;
    int primary_retained = 0;
    Handles<Stream> streams;
    std::map<Context*, Stream*> legacy;
    std::map<std::pair<Context*, std::thread::id>, Stream*> of_thread;
    Handles<Event> events;
    Handles<Graph> graphs;
    Handles<GraphExec> execs;
    Handles<Module> modules;
    Handles<Function> functions;
    std::map<uintptr_t, Memory> memory;  // by start
    std::vector<std::shared_ptr<Capture>> captures;
    std::vector<std::string> complaints, left;
};
State& state();

// Of this thread.
std::vector<Context*>& stack();
CaptureMode& capture_mode();
bool& inside_host_function();

// What a driver lets pass, or crashes at, and no program should do.
void complain(const std::string& what);
// What a context took with it, which is no mistake, and a leak where it grows.
void note_left(const std::string& what);

// ---- memory.cpp ----
// The live memory that holds all of a range, or null.
Memory* memory_at(uintptr_t start, size_t bytes);
// Whether the GPU reaches all of a range, in this context.
bool reachable(uintptr_t start, size_t bytes, Context* context);
void note_written(uintptr_t start, size_t bytes);
void forget_memory_of(Context* context);
size_t used_bytes();

// ---- work.cpp ----
// Puts work on a stream, or into its capture.
Status enqueue(Stream* stream, std::string what, std::function<Status()> act, std::vector<Range> uses, bool of_host = false);
// Puts a mark on a stream that is not captured, which also waits for other work.
WorkPointer mark(Stream* stream, std::string what, std::vector<WorkPointer> also = {});
// Runs what has to be, until work is done. The lock is held once.
Status wait_for(WorkPointer work, Context* context);
Status wait_for_context(Context* context);
// Runs one piece of work, whichever, if one is ready.
void run_any();
void add_work(WorkPointer work);
void abandon_work_of(Context* context);
// What still has to run and uses a range: its name, or "".
std::string user_of(uintptr_t start, size_t bytes);

// ---- streams.cpp ----
Stream* stream_of(void* handle, Context* context);  // null: no such stream
Stream* legacy_of(Context* context);

// ---- capture.cpp ----
// For calls that a capture does not see: kSuccess, or the error, after which captures of this thread are invalid.
Status unsafe_call(const char* name);
// For waiting for a whole context.
Status unsafe_for_captures_in(Context* context, const char* name);
// Before the legacy stream is used.
Status unsafe_for_legacy(Stream* stream);
Status capture_node(Stream* stream, std::string what, std::function<Status()> act, std::vector<Range> uses, bool of_host);
void invalidate(Capture& capture, const char* why);

// ---- cubin.cpp ----
// The kernels of an image for this GPU.
Status read_image(const void* image, std::map<std::string, KernelFacts>& kernels);

// ---- calls ----
// Runs a call: the driver must be initialised, a context current, and nothing broken.
Status called(const char* name, const std::function<Status()>& act);               // needs nothing
Status in_context(const char* name, const std::function<Status(Context*)>& act);   // needs a context

}  // namespace driver
