// The tile registers of kernels/score/tiles.h in plain C++, for processors without AMX: what Intel's manual says of each
// instruction, and an end with a message where a processor would raise an exception or tiles were not released.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cir {
namespace {

struct TileState {
    bool configured = false;
    TileConfig config;
    uint8_t data[8][16][64] = {};
};
thread_local TileState state;

struct Tiles {
    static void configure(const TileConfig& config) {
        must(!state.configured, "ldtilecfg: the tiles of the last call are still configured");
        must(config.palette == 1 && config.start_row == 0, "ldtilecfg: another palette, or a row to go on from");
        for (const uint8_t byte : config.zero) must(byte == 0, "ldtilecfg: reserved bytes");
        for (int t = 0; t < 16; ++t) {
            must(t < 8 || (config.rows[t] == 0 && config.row_bytes[t] == 0), "ldtilecfg: there are eight tiles");
            must(config.rows[t] <= 16 && config.row_bytes[t] <= 64, "ldtilecfg: a tile is too large");
            must((config.rows[t] == 0) == (config.row_bytes[t] == 0), "ldtilecfg: a tile without rows, or of no bytes");
        }
        state = TileState{};
        state.configured = true;
        state.config = config;
    }
    static void release() { state = TileState{}; }

    template <int T>
    static void zero() {
        used(T);
        std::memset(state.data[T], 0, sizeof state.data[T]);
    }
    template <int T>
    static void load(const void* from, ptrdiff_t stride) {
        used(T);
        std::memset(state.data[T], 0, sizeof state.data[T]);
        for (int r = 0; r < state.config.rows[T]; ++r) {
            std::memcpy(state.data[T][r], static_cast<const char*>(from) + r * stride, state.config.row_bytes[T]);
        }
    }
    template <int T>
    static void store(void* to, ptrdiff_t stride) {
        used(T);
        for (int r = 0; r < state.config.rows[T]; ++r) {
            std::memcpy(static_cast<char*>(to) + r * stride, state.data[T][r], state.config.row_bytes[T]);
        }
    }
    template <int Sum, int A, int B>
    static void dot() {
        static_assert(Sum != A && Sum != B && A != B, "tdpbsud: the same tile twice");
        used(Sum);
        used(A);
        used(B);
        const TileConfig& shape = state.config;
        must(shape.rows[Sum] == shape.rows[A] && shape.row_bytes[Sum] == shape.row_bytes[B] &&
                 shape.row_bytes[A] == 4 * shape.rows[B] && shape.row_bytes[Sum] % 4 == 0,
             "tdpbsud: tiles that do not fit each other");
        for (int m = 0; m < shape.rows[Sum]; ++m) {
            for (int n = 0; n < shape.row_bytes[Sum] / 4; ++n) {
                uint32_t sum;
                std::memcpy(&sum, &state.data[Sum][m][4 * n], sizeof sum);
                for (int k = 0; k < shape.rows[B]; ++k) {
                    for (int i = 0; i < 4; ++i) {
                        const int a = static_cast<int8_t>(state.data[A][m][4 * k + i]), b = state.data[B][k][4 * n + i];
                        sum += static_cast<uint32_t>(a * b);
                    }
                }
                std::memcpy(&state.data[Sum][m][4 * n], &sum, sizeof sum);
            }
        }
    }

private:
    static void must(bool holds, const char* why) {
        if (holds) return;
        std::fprintf(stderr, "%s\n", why);
        std::abort();
    }
    static void used(int tile) { must(state.configured && state.config.rows[tile] > 0, "a tile that is not configured"); }
};

}  // namespace
}  // namespace cir
