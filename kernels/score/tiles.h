// The tile registers of AMX and what is done with them here: eight of up to 16 rows of 64 bytes, configured before they
// are used and released behind. Assembly, because GCC's intrinsics are that too, and those of GCC 12 do not say that they read
// all of a configuration. Where CIR_TILES names a file, that has them in C++: tests/emulation/tiles.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cir {
namespace {

struct TileConfig {
    uint8_t palette = 1, start_row = 0, zero[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

}  // namespace
}  // namespace cir

#ifdef CIR_TILES
#include CIR_TILES
#else
namespace cir {
namespace {

struct Tiles {
    static void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }
    static void release() { __asm__ volatile("tilerelease"); }

    template <int T>
    static void zero() {
        __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
    }
    template <int T>
    static void load(const void* from, ptrdiff_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* to, ptrdiff_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
    }
    // Sum's value n of row m += the products of signed byte i of row m of A and unsigned byte 4 n + i % 4 of row i / 4 of B.
    template <int Sum, int A, int B>
    static void dot() {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
    }
};

}  // namespace
}  // namespace cir
#endif
