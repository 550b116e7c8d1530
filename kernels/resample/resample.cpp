#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace cir {
namespace {

const Passes* passes(const char* name) {
    const Passes* offered[] = {
#if defined(__x86_64__)
        __builtin_cpu_supports("avx2") ? &kPassesAvx2 : nullptr,
#endif
        &kPassesBaseline,
    };
    for (const Passes* each : offered) {
        if (each && (!*name || !std::strcmp(each->name, name))) return each;
    }
    return nullptr;
}

double weight(Filter filter, double x) {
    x = std::fabs(x);
    if (filter == Filter::kBilinear) return x < 1 ? 1 - x : 0;
    constexpr double a = -0.5;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Which pixels each pixel of the answer is made of, and with what weights.
struct Taps {
    std::vector<int32_t> first, weights;  // `most` weights each, the rest of them 0
    int most = 0;

    // `length` pixels, whose part from `start` to `end` becomes `size`; the first and last `margin` are not asked for.
    Taps(float start, float end, int length, int size, int margin, Filter filter) {
        const double scale = static_cast<double>(end - start) / size, stretch = std::max(scale, 1.0);
        const double support = (filter == Filter::kBilinear ? 1 : 2) * stretch, shrink = 1 / stretch;
        const size_t count = static_cast<size_t>(size - 2 * margin);
        std::vector<int> numbers(count);
        first.resize(count);
        const auto center = [&](size_t i) { return start + (static_cast<int>(i) + margin + 0.5) * scale; };
        for (size_t i = 0; i < count; ++i) {
            first[i] = std::max(static_cast<int>(center(i) - support + 0.5), 0);
            numbers[i] = std::min(static_cast<int>(center(i) + support + 0.5), length) - first[i];
            most = std::max(most, numbers[i]);
        }
        weights.assign(count * static_cast<size_t>(most), 0);
        std::vector<double> exact(static_cast<size_t>(most));
        for (size_t i = 0; i < count; ++i) {
            double sum = 0;
            for (int x = 0; x < numbers[i]; ++x) {
                sum += exact[x] = weight(filter, (x + first[i] - center(i) + 0.5) * shrink);
            }
            for (int x = 0; x < numbers[i]; ++x) {
                const double share = (sum != 0 ? exact[x] / sum : exact[x]) * (1 << kFraction);
                weights[i * most + x] = static_cast<int32_t>(share < 0 ? share - 0.5 : share + 0.5);
            }
        }
    }

    size_t count() const { return first.size(); }
    const int32_t* of(size_t i) const { return weights.data() + i * most; }
};

// Rows of the picture and its border, after the first pass; the last few that were asked for are kept.
class Rows {
   public:
    Rows(const Picture& picture, const Square& square, const Passes& passes, int kept)
        : picture_(picture),
          square_(square),
          passes_(passes),
          taps_(square.x0, square.x1, square.left + picture.width + square.right, square.size, square.margin,
                square.filter),
          begin_(taps_.first.front()),
          groups_((taps_.most + 3) / 4),
          width_(taps_.first.back() + 4 * groups_ - begin_),
          bytes_((4 * taps_.count() + 15) / 16 * 16),
          kept_(kept),
          weights_(taps_.count() * groups_ * 16),
          row_(4 * width_, square.fill),
          made_(kept * bytes_),
          border_(bytes_, square.fill),
          holds_(kept, -1) {
        for (size_t i = 0; i < taps_.count(); ++i) {
            for (int t = 0; t < taps_.most; ++t) {
                for (int lane = 0; lane < 4; ++lane) weights_[(i * groups_ * 4 + t) * 4 + lane] = taps_.of(i)[t];
            }
            taps_.first[i] -= begin_;
        }
    }

    size_t bytes() const { return bytes_; }

    // A row by its number in picture and border together.
    const uint8_t* at(int number) {
        const int y = number - square_.top;
        if (y < 0 || y >= picture_.height) return border_.data();
        uint8_t* out = made_.data() + number % kept_ * bytes_;
        if (holds_[number % kept_] != number) {
            make(y, out);
            holds_[number % kept_] = number;
        }
        return out;
    }

   private:
    void make(int y, uint8_t* out) {
        // Columns of the scratch row that lie in the picture; the border around them stays as it is.
        const int from = std::max(begin_ - square_.left, 0);
        const int to = std::min<int>(begin_ - square_.left + static_cast<int>(width_), picture_.width);
        if (from < to) {
            const size_t row = static_cast<size_t>(y) * picture_.width + from, pixels = static_cast<size_t>(to - from);
            const uint8_t* source = picture_.pixels + picture_.pixel_bytes * row;
            uint8_t* target = row_.data() + 4 * static_cast<size_t>(from + square_.left - begin_);
            if (picture_.pixel_bytes == 4) {
                std::memcpy(target, source, 4 * pixels);
            } else {
                passes_.widen(source, pixels, target);
            }
        }
        passes_.along_row(row_.data(), taps_.first.data(), weights_.data(), groups_, taps_.count(), out);
    }

    const Picture& picture_;
    const Square& square_;
    const Passes& passes_;
    Taps taps_;
    int begin_;  // the first column that counts
    size_t groups_, width_, bytes_;
    int kept_;
    std::vector<int32_t> weights_;
    std::vector<uint8_t> row_, made_, border_;
    std::vector<int> holds_;
};

}  // namespace

bool resize_square(const Picture& picture, const Square& square, const char* instruction_set, uint8_t* out) {
    const Passes* chosen = passes(instruction_set);
    if (!chosen) return false;
    const Taps down(square.y0, square.y1, square.top + picture.height + square.bottom, square.size, square.margin,
                    square.filter);
    Rows rows(picture, square, *chosen, down.most);
    std::vector<uint8_t> mixed(rows.bytes());
    std::vector<const uint8_t*> taken(down.most);
    const int end = square.top + picture.height + square.bottom;
    for (size_t i = 0; i < down.count(); ++i) {
        const int number = std::min(down.most, end - down.first[i]);
        for (int t = 0; t < number; ++t) taken[t] = rows.at(down.first[i] + t);
        chosen->down_columns(taken.data(), down.of(i), number, rows.bytes(), mixed.data());
        for (size_t x = 0; x < down.count(); ++x, out += 3) std::memcpy(out, mixed.data() + 4 * x, 3);
    }
    return true;
}

}  // namespace cir
