// Threads of one call, and whether it is to give up.
#pragma once

#include <atomic>
#include <chrono>

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

}  // namespace cir
