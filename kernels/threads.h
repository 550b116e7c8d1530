// Threads of one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <new>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#else
#include <system_error>
#include <thread>
#endif

namespace cir {

// Helpers that were let go before they began, and have not ended yet. On cores that others keep for long they would pile up
// at the rate of calls, so from so many on a call starts none. A forked child has none of them.
inline std::atomic<int> let_go{0};
constexpr int kMostLetGo = 64;
#if !defined(_WIN32)
inline const int let_go_of_child = pthread_atfork(nullptr, nullptr, [] { let_go.store(0, std::memory_order_relaxed); });
#endif

// A thread that runs f(i), unless it has not begun by the time that its maker has no use for it any more: then it ends
// without having touched anything, and nobody waits for it. On a core that others are using it may wait for its turn
// for milliseconds, in which its maker does all the work.
//
// It is not started on the core of its maker. Left alone, the scheduler puts one call in ten on it, measured on two
// cores, and moves it away milliseconds later: by then a scan is over, on one core.
template <class F>
class Helper {
public:
    Helper(const F& f, int i) : call_(new (std::nothrow) Call{&f, i}) {}
    Helper(const Helper&) = delete;
    Helper& operator=(const Helper&) = delete;

#if defined(__linux__)
    bool start(const cpu_set_t* elsewhere) {
        pthread_attr_t attributes;
        if (!call_ || pthread_attr_init(&attributes) != 0) return false;
        if (elsewhere) pthread_attr_setaffinity_np(&attributes, sizeof *elsewhere, elsewhere);
        // A core may be taken from the process in between: then anywhere will do.
        started_ = pthread_create(&thread_, &attributes, run, call_) == 0 || pthread_create(&thread_, nullptr, run, call_) == 0;
        pthread_attr_destroy(&attributes);
        return started_;
    }
#else
    bool start() {
        if (!call_) return false;
        try {
            thread_ = std::thread(run, call_);
        } catch (const std::system_error&) {
            return false;
        }
        started_ = true;
        return true;
    }
#endif

    ~Helper() {
        if (!started_) {
            delete call_;
            return;
        }
        if (call_->claim(kDropped)) {
            let_go.fetch_add(1, std::memory_order_relaxed);
            detach();
        } else {
            join();
        }
        call_->release();
    }

private:
    enum State { kWaiting, kBegun, kDropped };

    // Belongs to both threads, of which either may be the last to look at it.
    struct Call {
        const F* f;
        int i;
        std::atomic<int> state{kWaiting}, owners{2};

        Call(const F* f, int i) : f(f), i(i) {}

        bool claim(State wanted) {
            int expected = kWaiting;
            return state.compare_exchange_strong(expected, wanted, std::memory_order_acq_rel);
        }

        void release() {
            if (owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
        }
    };

    static void* run(void* given) {
        Call* call = static_cast<Call*>(given);
        if (call->claim(kBegun)) {
            (*call->f)(call->i);
        } else {
            let_go.fetch_sub(1, std::memory_order_relaxed);  // for a moment it may be before its maker counts it
        }
        call->release();
        return nullptr;
    }

    Call* call_;
    bool started_ = false;
#if defined(__linux__)
    void detach() { pthread_detach(thread_); }
    void join() { pthread_join(thread_, nullptr); }
    pthread_t thread_{};
#else
    void detach() { thread_.detach(); }
    void join() { thread_.join(); }
    std::thread thread_;
#endif
};

// f(0), f(1) ... f(threads - 1) at once, f(0) in the caller. A thread costs some 20 microseconds to start, and a
// call that needs more than one takes far longer than that; in return there is no pool to own, to share between
// concurrent calls, or to lose in a fork. Where there are no more threads, or one does not begin before f(0) is done, the
// others take its share: f(i) has to leave nothing undone that f(0) would not do in its place.
// `f` must not throw.
template <class F>
void in_parallel(int threads, const F& f) {
    std::deque<Helper<F>> others;  // destroyed, i.e. joined, after f(0)
#if defined(__linux__)
    cpu_set_t cores;
    const int here = sched_getcpu();
    const bool known = threads > 1 && here >= 0 && here < CPU_SETSIZE &&
                       sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) > 1;
    if (known) CPU_CLR(here, &cores);
#endif
    for (int i = 1; i < threads && let_go.load(std::memory_order_relaxed) < kMostLetGo; ++i) {
        others.emplace_back(f, i);
#if defined(__linux__)
        if (!others.back().start(known ? &cores : nullptr)) break;
#else
        if (!others.back().start()) break;
#endif
    }
    f(0);
}

// As many threads as have work for some tens of microseconds.
inline int useful_threads(int threads, double multiplications) {
    return static_cast<int>(std::clamp(multiplications / 500e3, 1.0, static_cast<double>(std::max(threads, 1))));
}

}  // namespace cir
