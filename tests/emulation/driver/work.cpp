// When the GPU does what it was asked for: as late or as early as CUDA allows, so that whoever forgot to wait reads
// the wrong bytes.
//
// Nothing runs when it is enqueued. A wait runs what it needs: under "late" that and nothing else, the newest work
// first; under "early" first all that it does not need, as far as that may go; under a number a random choice at every
// step, and now and then a step while work is enqueued.
//
// What events say of time is another matter: a GPU works beside the host, so a piece of work begins as soon as it was
// asked for and all before it has ended, whenever it is run here. It takes as long as it ran or, where calls have a time
// (gpu.h), as long as reading all the memory that it uses: then the times are the same on every machine.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "state.h"

namespace driver {
namespace {

std::vector<WorkPointer>& pending() {
    static auto& all = *new std::vector<WorkPointer>;
    return all;
}
std::condition_variable& finished() {
    static auto& one = *new std::condition_variable;
    return one;
}
std::mt19937& dice() {
    static auto& one = *new std::mt19937(static_cast<unsigned>(std::atoi(gpu().order.c_str())));
    return one;
}
bool at_random() { return gpu().order != "late" && gpu().order != "early"; }

double of_this_machine() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
bool counted() { return gpu().call_us > 0; }

double reading(const std::vector<Range>& uses) {
    std::set<const Memory*> used;
    for (const Range& range : uses) used.insert(memory_at(range.start, 1));
    size_t bytes = 0;
    for (const Memory* memory : used) bytes += memory == nullptr ? 0 : memory->bytes;
    return static_cast<double>(bytes) / gpu().rate;
}

void comes_after(Work& work, const Work& before) { work.begins = std::max(work.begins, before.done_at); }

bool ready(const Work& work) {
    return !work.running && std::all_of(work.after.begin(), work.after.end(), [](const auto& w) { return w->done; });
}

void run(const WorkPointer& work) {
    work->running = true;
    Status status = work->context->broken;
    const double begun = of_this_machine();
    if (status == kSuccess && work->act != nullptr) {
        if (gpu().trace) std::fprintf(stderr, "      runs %s\n", work->what.c_str());
        if (work->of_host) {
            state().lock.unlock();
            inside_host_function() = true;
            status = work->act();
            inside_host_function() = false;
            state().lock.lock();
        } else {
            status = work->act();
        }
    }
    if (status != kSuccess && work->context->broken == kSuccess) {
        complain(work->what + " failed with error " + std::to_string(status));
        work->context->broken = status;
    }
    work->done = true;
    for (const WorkPointer& before : work->after) comes_after(*work, *before);
    work->done_at = work->begins + (counted() ? work->takes : of_this_machine() - begun);
    work->after.clear();
    auto& all = pending();
    all.erase(std::remove(all.begin(), all.end(), work), all.end());
    finished().notify_all();
}

void collect(const WorkPointer& work, std::set<Work*>& needed) {
    std::vector<WorkPointer> open = {work};
    while (!open.empty()) {
        const WorkPointer next = open.back();
        open.pop_back();
        if (next->done || !needed.insert(next.get()).second) continue;
        open.insert(open.end(), next->after.begin(), next->after.end());
    }
}

// What to run next, so that `wanted` gets done; null if others are at it.
WorkPointer choose(const WorkPointer& wanted) {
    std::set<Work*> needed;
    collect(wanted, needed);
    std::vector<WorkPointer> ours, others;
    for (const WorkPointer& work : pending()) {
        if (ready(*work)) (needed.count(work.get()) != 0 ? ours : others).push_back(work);
    }
    if (at_random()) {
        ours.insert(ours.end(), others.begin(), others.end());
        return ours.empty() ? nullptr : ours[dice()() % ours.size()];
    }
    if (gpu().order == "early" && !others.empty()) return others.back();
    return ours.empty() ? nullptr : ours.back();
}

}  // namespace

void add_work(WorkPointer work) {
    work->begins = counted() ? state().host : of_this_machine();
    work->takes = reading(work->uses);
    for (const WorkPointer& before : work->after) {
        if (before != nullptr && before->done) comes_after(*work, *before);
    }
    work->after.erase(std::remove_if(work->after.begin(), work->after.end(),
                                     [](const WorkPointer& w) { return w == nullptr || w->done; }),
                      work->after.end());
    pending().push_back(std::move(work));
    if (at_random() && dice()() % 4 == 0) run_any();
}

void run_any() {
    std::vector<WorkPointer> all;
    for (const WorkPointer& work : pending()) {
        if (ready(*work)) all.push_back(work);
    }
    if (!all.empty()) run(all[dice()() % all.size()]);
}

Status wait_for(WorkPointer work, Context* context) {
    while (work != nullptr && !work->done) {
        const WorkPointer next = choose(work);
        if (next != nullptr) {
            run(next);
            continue;
        }
        std::unique_lock<std::mutex> lock(state().lock, std::adopt_lock);
        finished().wait(lock);
        lock.release();
    }
    if (work != nullptr) state().host = std::max(state().host, work->done_at);
    return context->broken;
}

Status wait_for_context(Context* context) {
    while (true) {
        WorkPointer left;
        for (const WorkPointer& work : pending()) {
            if (work->context == context) left = work;
        }
        if (left == nullptr) return context->broken;
        wait_for(left, context);
    }
}

void abandon_work_of(Context* context) {
    size_t left = 0;
    auto& all = pending();
    for (const WorkPointer& work : all) {
        left += work->context == context && work->act != nullptr;
        work->done |= work->context == context;
    }
    all.erase(std::remove_if(all.begin(), all.end(), [](const WorkPointer& w) { return w->done; }), all.end());
    if (left > 0) complain("a context ended with " + std::to_string(left) + " pieces of work that had not run");
}

std::string user_of(uintptr_t start, size_t bytes) {
    for (const WorkPointer& work : pending()) {
        for (const Range& range : work->uses) {
            if (range.start < start + bytes && start < range.start + std::max<size_t>(range.bytes, 1)) return work->what;
        }
    }
    return "";
}

static void place(Stream* stream, const WorkPointer& work) {
    work->after.push_back(stream->last);
    if (stream->legacy) {
        for (Stream* other : state().streams.live()) {
            if (other->context == stream->context && (other->flags & kStreamNonBlocking) == 0) work->after.push_back(other->last);
        }
    } else if ((stream->flags & kStreamNonBlocking) == 0) {
        work->after.push_back(legacy_of(stream->context)->last);
    }
    stream->last = work;
    add_work(work);
}

Status enqueue(Stream* stream, std::string what, std::function<Status()> act, std::vector<Range> uses, bool of_host) {
    if (stream->capture != nullptr) return capture_node(stream, std::move(what), std::move(act), std::move(uses), of_host);
    const Status status = unsafe_for_legacy(stream);
    if (status != kSuccess) return status;
    const auto work = std::make_shared<Work>();
    work->context = stream->context;
    work->what = std::move(what);
    work->act = std::move(act);
    work->of_host = of_host;
    work->uses = std::move(uses);
    place(stream, work);
    return kSuccess;
}

WorkPointer mark(Stream* stream, std::string what, std::vector<WorkPointer> also) {
    const auto work = std::make_shared<Work>();
    work->context = stream->context;
    work->what = std::move(what);
    work->after = std::move(also);
    place(stream, work);
    return work;
}

}  // namespace driver
