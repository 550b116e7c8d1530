// Resampling of 8-bit pictures to the bytes that Pillow makes: integer weights of 22 bits, along the rows first, rounded
// to bytes, then down the columns. See README.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cir {

constexpr int kFraction = 22;  // bits of a weight, as Pillow has them: 8 for the byte and 2 to spare of 32
constexpr int32_t kHalf = 1 << (kFraction - 1);

enum class Filter { kBilinear, kBicubic };

// Rows of red, green and blue, with an unused byte after each of them where `pixel_bytes` is 4.
struct Picture {
    const uint8_t* pixels;
    int width, height;
    int pixel_bytes;
};

// The middle of a resized square that a picture and its border make.
struct Square {
    int left, top, right, bottom;  // pixels of border
    uint8_t fill;                  // of the border, in every channel
    float x0, y0, x1, y1;          // edges of the square in picture and border together, in Pillow's precision
    int size;                      // side to resize the square to
    int margin;                    // cut off on every side afterwards
    Filter filter;
};

// Writes 3 (size - 2 margin)^2 bytes. The machine's best instruction set, or the one named; false where it cannot run.
bool resize_square(const Picture& picture, const Square& square, const char* instruction_set, uint8_t* out);

// One source per instruction set. Lanes are bytes of pixels as (red, green, blue, unused).
struct Passes {
    const char* name;

    // RGB to four bytes a pixel.
    void (*widen)(const uint8_t* rgb, size_t pixels, uint8_t* out);

    // out pixel i: sum over 4 `groups` pixels from row + 4 first[i] of weights[i], which come four lanes a pixel.
    void (*along_row)(const uint8_t* row, const int32_t* first, const int32_t* weights, size_t groups, size_t count,
                      uint8_t* out);

    // out byte i: sum over t of weights[t] rows[t][i]; `bytes` is a multiple of 16.
    void (*down_columns)(const uint8_t* const* rows, const int32_t* weights, size_t taps, size_t bytes, uint8_t* out);
};

extern const Passes kPassesAvx2, kPassesBaseline;

}  // namespace cir
