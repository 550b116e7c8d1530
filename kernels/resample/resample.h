// Resampling of 8-bit pictures to the bytes that Pillow makes: integer weights of 22 bits, along the rows first, rounded
// to bytes, then down the columns. See README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cir {

constexpr int kFraction = 22;  // bits of a weight, as Pillow has them: 8 for the byte and 2 to spare of 32
constexpr int32_t kHalf = 1 << (kFraction - 1);
constexpr int kWoven = 4;  // rows that are filtered together

enum class Filter { kBilinear, kBicubic };

// A part of what a picture and its border are resized to.
struct Part {
    int left, top, right, bottom;  // pixels of border
    uint8_t fill;                  // of the border, in every channel
    float x0, y0, x1, y1;          // edges of what is resized, in picture and border together, in Pillow's precision
    int width, height;             // to resize it to
    int x, y, columns, rows;       // the part of that
    Filter filter;
};

// One source per instruction set. Lanes are bytes of pixels as (red, green, blue, unused).
struct Passes {
    const char* name;

    // Four rows side by side: out + 16 i holds pixel i of each of them.
    void (*weave)(const uint8_t* const* rows, int pixel_bytes, size_t pixels, uint8_t* out);

    // Pixel i of each of the four rows: sum over t of weights[i taps + t] pixel first[i] + t of what was woven.
    void (*along_rows)(const uint8_t* woven, const int32_t* first, const int32_t* weights, size_t taps, size_t count,
                       uint8_t* const* out);

    // out byte i: sum over t of weights[t] rows[t][i]; `bytes` is a multiple of 16.
    void (*down_columns)(const uint8_t* const* rows, const int32_t* weights, size_t taps, size_t bytes, uint8_t* out);
};

extern const Passes kPassesAvx2, kPassesBaseline;

// The machine's best, or those named; null where it cannot run them.
const Passes* find_passes(const char* instruction_set);

// Which pixels each pixel of the answer is made of, and with what weights.
struct Taps {
    std::vector<int32_t> first, weights;  // `most` weights each, the rest of them 0
    int most = 0;

    // `length` pixels, whose part from `start` to `end` becomes `size`, of which `count` from `from` on are asked for.
    Taps(float start, float end, int length, int size, int from, int count, Filter filter);

    size_t count() const { return first.size(); }
    const int32_t* of(size_t i) const { return weights.data() + i * most; }
};

// Resizes a picture that comes some rows at a time.
class Resizing {
   public:
    // Of a picture of that size. `out` takes 3 bytes for each pixel of the part.
    Resizing(int width, int height, const Part& part, const Passes& passes, uint8_t* out);

    // The next rows: four, or a multiple, or all that are left. Pixels of red, green and blue, with an unused byte
    // after each where they are 4 bytes.
    void feed(const uint8_t* pixels, int pixel_bytes, int rows);

    int left() const { return height_ - end_; }  // rows to come

   private:
    const uint8_t* at(int number);
    void make(int y, uint8_t* out);

    const int width_, height_;
    const Part part_;
    const Passes& passes_;
    uint8_t* out_;
    const Taps down_;
    Taps along_;
    const int begin_;  // the first column that counts
    const size_t columns_, bytes_;
    const int fours_;                            // as many fours of rows are kept as one row of the answer may need
    std::vector<uint8_t> woven_, made_, border_, mixed_;
    std::vector<int> holds_;                     // which four lies in each place of `made_`
    std::vector<const uint8_t*> taken_;
    size_t next_ = 0;                            // row of the answer
    const uint8_t* pixels_ = nullptr;            // of what was fed last
    int pixel_bytes_ = 0, start_ = 0, end_ = 0;  // its rows
};

}  // namespace cir
