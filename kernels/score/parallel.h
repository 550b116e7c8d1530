// Threads of one call, and whether it is to give up.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "../threads.h"
#include "score.h"

namespace cir {

// Whether a call is to give up. Only the thread that called asks, and the others see it.
class Watch {
public:
    explicit Watch(const Options& options) : options_(options) {}

    bool stopped(int thread) {
        if (thread == 0 && options_.interrupted && !stopped_.load(std::memory_order_relaxed)) {
            const auto now = std::chrono::steady_clock::now();
            if (now - asked_ >= std::chrono::milliseconds(50)) {
                asked_ = now;
                if (options_.interrupted()) stopped_.store(true, std::memory_order_relaxed);
            }
        }
        return stopped_.load(std::memory_order_relaxed);
    }

    // After the threads have ended.
    void check() const {
        if (stopped_.load()) throw Interrupted();
    }

private:
    const Options& options_;
    std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
    std::atomic<bool> stopped_{false};
};

// Long pieces of work that threads take. The thread that called waits for the others' here: where it only joined them,
// nobody would ask meanwhile whether the call is to give up.
class Remaining {
public:
    explicit Remaining(int64_t pieces) : pieces_(pieces) {}

    void one_less() { add(-1); }
    // One failed, and no more are taken.
    void none() { add(-kAll); }

    template <class Stopped>
    void wait(const Stopped& stopped) {
        for (std::unique_lock<std::mutex> lock(mutex_); pieces_ > 0;) {
            lock.unlock();
            if (stopped()) return;
            lock.lock();
            if (pieces_ > 0) changed_.wait_for(lock, std::chrono::milliseconds(50));
        }
    }

private:
    static constexpr int64_t kAll = int64_t{1} << 60;

    void add(int64_t pieces) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            pieces_ += pieces;
        }
        changed_.notify_one();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t pieces_;
};

}  // namespace cir
