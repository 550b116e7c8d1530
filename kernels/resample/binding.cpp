// Python sees `cir_infer.inputs._resample` through cir_infer/inputs/resampling.py, which checks sizes first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../python/unlocked.h"
#include "resample.h"

namespace nb = nanobind;

namespace {

using Pixels = nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;

// The Arrow C data interface (arrow.apache.org/docs/format/CDataInterface.html), in which Pillow shows its own memory.
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};

// The four bytes of each pixel of rows of an RGB picture: a list of `width * rows` fixed lists of 4.
const uint8_t* shown(const nb::capsule& capsule, int width, int rows) {
    const auto* list = static_cast<const ArrowArray*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array"));
    if (!list) throw nb::python_error();
    const int64_t pixels = static_cast<int64_t>(width) * rows;
    const ArrowArray* bytes = list->n_children == 1 ? list->children[0] : nullptr;
    if (!bytes || list->length != pixels || list->offset || bytes->length != 4 * pixels || bytes->offset ||
        bytes->n_buffers != 2) {
        throw std::invalid_argument("Pillow shows its memory in an unknown layout");
    }
    return static_cast<const uint8_t*>(bytes->buffers[1]);
}

// Sides up to here keep every number below in its type.
constexpr int kMostPixels = 1 << 24, kMostSize = 1 << 15;

// What cir_infer/inputs/resampling.py has checked before: nothing may be read or written beyond a picture.
void check(int width, int height, const cir::Part& part) {
    for (const int pixels : {part.left, part.top, part.right, part.bottom}) {
        if (pixels < 0 || pixels > kMostPixels) throw std::invalid_argument("a border of that width cannot be");
    }
    const auto fits = [](int length, int before, int after, float from, float to) {
        const int64_t total = static_cast<int64_t>(length) + before + after;
        return length > 0 && total <= kMostPixels && std::isfinite(from) && std::isfinite(to) && from >= 0 && from < to &&
               to < static_cast<float>(total) + 1;
    };
    if (!fits(width, part.left, part.right, part.x0, part.x1) ||
        !fits(height, part.top, part.bottom, part.y0, part.y1)) {
        throw std::invalid_argument("what is to be resized does not lie in the picture and its border");
    }
    const auto holds = [](int size, int from, int count) {
        return size > 0 && size <= kMostSize && count > 0 && count <= size && from >= 0 && from <= size - count;
    };
    if (!holds(part.width, part.x, part.columns) || !holds(part.height, part.y, part.rows)) {
        throw std::invalid_argument("what is asked for is no part of that size");
    }
}

using Four = std::tuple<int, int, int, int>;

// A resizing with the memory that it writes to, for one thread.
class Resized {
   public:
    Resized(const std::tuple<int, int>& picture, const Four& border, int fill,
            const std::tuple<float, float, float, float>& box, const std::tuple<int, int>& size, const Four& asked,
            bool cubic, const std::string& instruction_set) {
        const auto [left, top, right, bottom] = border;
        const auto [x0, y0, x1, y1] = box;
        const auto [width, height] = size;
        const auto [x, y, columns, rows] = asked;
        const cir::Part part{left, top, right, bottom, static_cast<uint8_t>(fill), x0, y0, x1, y1, width, height,
                             x, y, columns, rows, cubic ? cir::Filter::kBicubic : cir::Filter::kBilinear};
        width_ = std::get<0>(picture);
        columns_ = columns;
        rows_ = rows;
        check(width_, std::get<1>(picture), part);
        const cir::Passes* passes = cir::find_passes(instruction_set.c_str());
        if (!passes) throw std::invalid_argument("this machine cannot run " + instruction_set);
        out_.reset(new uint8_t[static_cast<size_t>(columns) * rows * 3]);
        resizing_.emplace(width_, std::get<1>(picture), part, *passes, out_.get());
    }

    void feed_pixels(const Pixels& pixels) {
        if (pixels.shape(1) != static_cast<size_t>(width_)) throw std::invalid_argument("these rows are of another picture");
        feed(pixels.data(), 3, pixels.shape(0));
    }

    void feed_arrow(const nb::capsule& array, int rows) {
        if (rows < 1) throw std::invalid_argument("there are no rows");
        feed(shown(array, width_, rows), 4, static_cast<size_t>(rows));
    }

    nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>> taken() {
        if (!out_ || resizing_->left()) throw std::invalid_argument("rows of the picture are missing");
        uint8_t* raw = out_.release();
        nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>>(raw, {rows_, columns_, 3}, owner);
    }

   private:
    void feed(const uint8_t* pixels, int pixel_bytes, size_t rows) {
        const auto left = static_cast<size_t>(resizing_->left());
        if (!out_ || rows > left || !rows || (rows < left && rows % cir::kWoven)) {
            throw std::invalid_argument("that many rows cannot follow");
        }
        cir::unlocked([&](cir::Unlocked&) { resizing_->feed(pixels, pixel_bytes, static_cast<int>(rows)); });
    }

    int width_;
    size_t columns_, rows_;
    std::unique_ptr<uint8_t[]> out_;
    std::optional<cir::Resizing> resizing_;
};

}  // namespace

NB_MODULE(_resample, m) {
    // Daemon threads that the end of the interpreter meets hold what they work on for ever.
    nb::set_leak_warnings(false);
    m.attr("WOVEN") = cir::kWoven;
    nb::class_<Resized>(m, "Resized")
        .def(nb::init<const std::tuple<int, int>&, const Four&, int, const std::tuple<float, float, float, float>&,
                      const std::tuple<int, int>&, const Four&, bool, const std::string&>(),
             nb::arg("picture"), nb::arg("border"), nb::arg("fill"), nb::arg("box"), nb::arg("size"), nb::arg("asked"),
             nb::arg("cubic"), nb::arg("instruction_set"))
        .def("feed_pixels", &Resized::feed_pixels, nb::arg("pixels"))
        .def("feed_arrow", &Resized::feed_arrow, nb::arg("array"), nb::arg("rows"))
        .def("taken", &Resized::taken);
}
