#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cir {
namespace {

double weight(Filter filter, double x) {
    x = std::fabs(x);
    if (filter == Filter::kBilinear) return x < 1 ? 1 - x : 0;
    constexpr double a = -0.5;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

}  // namespace

const Passes* find_passes(const char* instruction_set) {
    const Passes* offered[] = {
#if defined(__x86_64__)
        __builtin_cpu_supports("avx2") ? &kPassesAvx2 : nullptr,
#endif
        &kPassesBaseline,
    };
    for (const Passes* each : offered) {
        if (each && (!*instruction_set || !std::strcmp(each->name, instruction_set))) return each;
    }
    return nullptr;
}

Taps::Taps(float start, float end, int length, int size, int from, int count, Filter filter) {
    const double scale = static_cast<double>(end - start) / size, stretch = std::max(scale, 1.0);
    const double support = (filter == Filter::kBilinear ? 1 : 2) * stretch, shrink = 1 / stretch;
    std::vector<int> numbers(count);
    first.resize(count);
    const auto center = [&](int i) { return start + (i + from + 0.5) * scale; };
    for (int i = 0; i < count; ++i) {
        first[i] = std::max(static_cast<int>(center(i) - support + 0.5), 0);
        numbers[i] = std::min(static_cast<int>(center(i) + support + 0.5), length) - first[i];
        most = std::max(most, numbers[i]);
    }
    weights.assign(static_cast<size_t>(count) * most, 0);
    std::vector<double> exact(most);
    for (int i = 0; i < count; ++i) {
        double sum = 0;
        for (int x = 0; x < numbers[i]; ++x) {
            sum += exact[x] = weight(filter, (x + first[i] - center(i) + 0.5) * shrink);
        }
        int32_t* rounded = weights.data() + static_cast<size_t>(i) * most;
        for (int x = 0; x < numbers[i]; ++x) {
            const double share = (sum != 0 ? exact[x] / sum : exact[x]) * (1 << kFraction);
            rounded[x] = static_cast<int32_t>(share < 0 ? share - 0.5 : share + 0.5);
        }
    }
}

Resizing::Resizing(int width, int height, const Part& part, const Passes& passes, uint8_t* out)
    : width_(width),
      height_(height),
      part_(part),
      passes_(passes),
      out_(out),
      down_(part.y0, part.y1, part.top + height + part.bottom, part.height, part.y, part.rows, part.filter),
      along_(part.x0, part.x1, part.left + width + part.right, part.width, part.x, part.columns, part.filter),
      begin_(along_.first.front()),
      columns_(along_.first.back() + along_.most - begin_),
      bytes_((4 * along_.count() + 15) / 16 * 16),
      fours_((down_.most + kWoven - 2) / kWoven + 1),
      woven_(4 * kWoven * columns_, part.fill),
      made_(kWoven * fours_ * bytes_),
      border_(bytes_, part.fill),
      mixed_(bytes_),
      holds_(fours_, -1),
      taken_(down_.most) {
    for (int32_t& first : along_.first) first -= begin_;
}

void Resizing::feed(const uint8_t* pixels, int pixel_bytes, int rows) {
    pixels_ = pixels;
    pixel_bytes_ = pixel_bytes;
    start_ = end_;
    end_ += rows;
    const int length = part_.top + height_ + part_.bottom;
    for (; next_ < down_.count(); ++next_) {
        const int first = down_.first[next_], number = std::min(down_.most, length - first);
        if (std::min(first + number - part_.top, height_) > end_) {
            // What it needs of these rows is made while they are there.
            for (int y = std::max(first - part_.top, start_); y < end_; ++y) at(y + part_.top);
            return;
        }
        for (int t = 0; t < number; ++t) taken_[t] = at(first + t);
        passes_.down_columns(taken_.data(), down_.of(next_), number, bytes_, mixed_.data());
        for (int x = 0; x < part_.columns; ++x, out_ += 3) std::memcpy(out_, mixed_.data() + 4 * x, 3);
    }
}

// A row after the first pass, by its number in picture and border together.
const uint8_t* Resizing::at(int number) {
    const int y = number - part_.top;
    if (y < 0 || y >= height_) return border_.data();
    const int four = y / kWoven, place = four % fours_;
    uint8_t* out = made_.data() + static_cast<size_t>(kWoven) * place * bytes_;
    if (holds_[place] != four) {
        make(kWoven * four, out);
        holds_[place] = four;
    }
    return out + y % kWoven * bytes_;
}

// Four rows from y on; below the picture its last one stands for what nobody asks for.
void Resizing::make(int y, uint8_t* out) {
    // Columns of what is woven that lie in the picture; the border around them stays as it is.
    const int from = std::max(begin_ - part_.left, 0);
    const int to = std::min(begin_ - part_.left + static_cast<int>(columns_), width_);
    if (from < to) {
        const uint8_t* rows[kWoven];
        for (int row = 0; row < kWoven; ++row) {
            const size_t line = std::min(y + row, height_ - 1) - start_;
            rows[row] = pixels_ + pixel_bytes_ * (line * width_ + from);
        }
        uint8_t* target = woven_.data() + 4 * kWoven * static_cast<size_t>(from + part_.left - begin_);
        passes_.weave(rows, pixel_bytes_, static_cast<size_t>(to - from), target);
    }
    uint8_t* const made[kWoven] = {out, out + bytes_, out + 2 * bytes_, out + 3 * bytes_};
    passes_.along_rows(woven_.data(), along_.first.data(), along_.weights.data(), along_.most, along_.count(), made);
}

}  // namespace cir
