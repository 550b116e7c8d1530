// What AMX adds to AVX-512 with VNNI (Sapphire Rapids and newer): products of a tile of terms and a tile of rows, 16 x 64 by
// 64 x 16 bytes, in one instruction.
//
// A tile of rows in bytes is what the instruction takes as its second factor, as it lies; the first is 64 bytes of each of 16
// terms. By Intel's optimisation manual a product keeps the unit busy for 16 cycles and is ready after 52, and a load from the
// first-level cache takes its ports 8. Two tiles of terms by two of rows are four products for four loads, half of what the
// ports can do meanwhile; their four sums come round again after 64 cycles; and they just take all eight registers. One by
// four would be five loads. Terms and squares come one after the other, since both at once would leave one tile of terms for
// each: six loads. What is summed up goes through memory, 12 KB at most, to the vectors that make bounds of it. Tiles of 64
// rows would read the terms half as often, but their 64 KB of values and squares at 512 dimensions would leave that cache.
#include <algorithm>

#include "avx512vnni.h"
#include "tiles.h"

namespace cir {

extern const Screen kAvx512AmxScreen;

namespace {

// Rows and bytes of a tile; values of a row in one step of products.
constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int kRowTiles = Avx512Vnni::kByteVectors, kRows = kRowTiles * kTileRows, kMostPairs = 2 * kTileRows;
static_assert(kRowTiles == 2 && kRows == kRowTiles * Avx512Vnni::kWidth && kPad % kTileBytes == 0, "what `products` takes");

enum { kSums = 0, kTerms = 4, kRowBytes = 6 };  // tile registers

void configure(int pairs) {
    const int first = std::min(pairs, kTileRows), second = pairs - first;
    alignas(64) TileConfig config;
    const auto shape = [&](int tile, int rows) {
        config.rows[tile] = static_cast<uint8_t>(rows);
        config.row_bytes[tile] = rows ? kTileBytes : 0;
    };
    for (int t = 0; t < kRowTiles; ++t) {
        shape(kSums + t, first);
        shape(kSums + kRowTiles + t, second);
        shape(kRowBytes + t, kTileBytes / 4);
    }
    shape(kTerms, first);
    shape(kTerms + 1, second);
    Tiles::configure(config);
}

// sums[pair][row] of terms, of which the first byte is at `terms`, those of the next pair `stride` further and those of the next
// step `step` further.
template <bool kMore>
void products(const int8_t* terms, ptrdiff_t stride, ptrdiff_t step, const uint8_t* rows, int steps, int32_t* sums) {
    constexpr ptrdiff_t kRowStride = kRows * 4;
    Tiles::zero<kSums>();
    Tiles::zero<kSums + 1>();
    if constexpr (kMore) {
        Tiles::zero<kSums + 2>();
        Tiles::zero<kSums + 3>();
    }
    for (int s = 0; s < steps; ++s) {
        Tiles::load<kRowBytes>(rows, kRowStride);
        Tiles::load<kTerms>(terms, stride);
        Tiles::dot<kSums, kTerms, kRowBytes>();
        Tiles::load<kRowBytes + 1>(rows + kTileBytes, kRowStride);
        Tiles::dot<kSums + 1, kTerms, kRowBytes + 1>();
        if constexpr (kMore) {
            Tiles::load<kTerms + 1>(terms + kTileRows * stride, stride);
            Tiles::dot<kSums + 2, kTerms + 1, kRowBytes>();
            Tiles::dot<kSums + 3, kTerms + 1, kRowBytes + 1>();
        }
        terms += step;
        rows += kTileBytes / 4 * kRowStride;
    }
    Tiles::store<kSums>(sums, kRowStride);
    Tiles::store<kSums + 1>(sums + kTileRows, kRowStride);
    if constexpr (kMore) {
        Tiles::store<kSums + 2>(sums + kTileRows * kRows, kRowStride);
        Tiles::store<kSums + 3>(sums + kTileRows * kRows + kTileRows, kRowStride);
    }
}

template <int kDigits, bool kWeighted>
void tile_bounds(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots) {
    constexpr int kColumns = kDigits + (kWeighted ? 1 : 0);
    constexpr ptrdiff_t kStride = kColumns * kTileBytes;
    alignas(64) int32_t sums[kColumns][kMostPairs * kRows];
    const int8_t* packed = reinterpret_cast<const int8_t*>(terms.packed);
    configure(terms.pairs);
    for (int c = 0; c < kColumns; ++c) {
        (terms.pairs > kTileRows ? products<true> : products<false>)(
            packed + c * kTileBytes, kStride, terms.pairs * kStride, c < kDigits ? rows.values : rows.squares,
            terms.padded / kTileBytes, sums[c]);
    }
    Tiles::release();
    for (int p = 0; p < terms.pairs; ++p) {
        Avx512Vnni::Bytes sum[kRowTiles][kColumns];
        for (int m = 0; m < kRowTiles; ++m) {
            for (int c = 0; c < kColumns; ++c) sum[m][c] = _mm512_load_si512(&sums[c][p * kRows + m * kTileRows]);
        }
        bound_of_sums<Avx512Vnni, kDigits, kWeighted>(rows, terms, p, sum, out, inverse_roots);
    }
}

void bounds_of_tiles(const ByteRows& rows, const ByteTerms& terms, float* out, float* inverse_roots) {
    if (terms.digits == 1) {
        (terms.weighted ? tile_bounds<1, true> : tile_bounds<1, false>)(rows, terms, out, inverse_roots);
    } else {
        (terms.weighted ? tile_bounds<2, true> : tile_bounds<2, false>)(rows, terms, out, inverse_roots);
    }
}

constexpr int kMost[2][2] = {{kMostPairs, kMostPairs}, {kMostPairs, kMostPairs}};
constexpr Screen kScreenTable = screen_with<Avx512Vnni>(kTileBytes, kMost, bounds_of_tiles);

}  // namespace

const Screen kAvx512AmxScreen = kScreenTable;

}  // namespace cir
