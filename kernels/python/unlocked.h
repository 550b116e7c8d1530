// Native work without the interpreter's lock, in any thread and at any moment of a process's life.
#pragma once

#include <Python.h>

#include <chrono>
#include <exception>
#include <thread>

namespace cir {

class Unlocked {
public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

    // Not by a destructor, which must not throw: a daemon thread that takes the lock while the interpreter ends is
    // ended by it, in most versions of Python by an unwinding of its stack, and frames above that must not be left so
    // end the process. Such a thread waits here for the end of the process, as Python 3.14 lets it do.
    void retake() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

    // Whether the user has interrupted the program; then Python holds its exception. For the main thread only.
    bool interrupted() {
        retake();
        const bool signalled = PyErr_CheckSignals() != 0;
        state_ = PyEval_SaveThread();
        return signalled;
    }

private:
    PyThreadState* state_;
};

// work(unlocked), and what it throws once the lock is back.
template <class F>
void unlocked(const F& work) {
    Unlocked lock;
    std::exception_ptr failure;
    try {
        work(lock);
    } catch (...) {
        failure = std::current_exception();
    }
    lock.retake();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace cir
