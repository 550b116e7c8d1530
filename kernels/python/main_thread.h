// Python's main thread, told without running any code of Python.
#pragma once

#include <Python.h>

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace cir {

// Code of Python that frames of C++ call may lose the interpreter's lock to other threads. If the interpreter ends then, a
// daemon thread is unwound where it asks for the lock again, and such frames end the process. So this is noted once.
inline std::atomic<unsigned long> main_thread{0};

// To be called as a module is made, by code that may run Python.
inline void note_main_thread(unsigned long identifier) {
    main_thread.store(identifier);
#if !defined(_WIN32)
    // In a forked child it is the thread that forked.
    pthread_atfork(nullptr, nullptr, [] { main_thread.store(PyThread_get_thread_ident()); });
#endif
}

inline bool in_main_thread() { return PyThread_get_thread_ident() == main_thread.load(std::memory_order_relaxed); }

}  // namespace cir
