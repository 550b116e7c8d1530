// Memory that vectors are loaded from, and memory for a copy of a gallery: the latter in large pages where the system has them, as reading it is then not slowed down by
// the translation of addresses (int8 rows, 400,000 x 512: a fifth of the time).
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cir {

// A load that crosses a cache line counts twice, so what is loaded all the time starts on one.
template <class T>
struct OnCacheLines {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    OnCacheLines() = default;
    template <class U>
    OnCacheLines(const OnCacheLines<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
    template <class U>
    bool operator==(const OnCacheLines<U>&) const {
        return true;
    }
    template <class U>
    bool operator!=(const OnCacheLines<U>&) const {
        return false;
    }
};
template <class T>
using LineVector = std::vector<T, OnCacheLines<T>>;

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using LargeArray = std::unique_ptr<T[], Freed>;

template <class T>
LargeArray<T> large_array(size_t count) {
    constexpr size_t kPage = size_t{2} << 20;
    const size_t bytes = count * sizeof(T);
    const size_t alignment = bytes >= kPage ? kPage : 64;
    const size_t size = (bytes / alignment + 1) * alignment;
    void* memory = std::aligned_alloc(alignment, size);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= kPage) madvise(memory, size, MADV_HUGEPAGE);  // advice: nothing depends on its success
#endif
    return LargeArray<T>(static_cast<T*>(memory));
}

}  // namespace cir
