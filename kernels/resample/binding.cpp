// Python sees `cir_infer.inputs._resample` through cir_infer/inputs/resampling.py, which checks sizes first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <memory>
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

// The four bytes of each pixel of an RGB picture: a list of `width * height` fixed lists of 4.
cir::Picture shown(const nb::capsule& capsule, int width, int height) {
    const auto* list = static_cast<const ArrowArray*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array"));
    if (!list) throw nb::python_error();
    if (width < 1 || height < 1) throw std::invalid_argument("the picture is empty");
    const int64_t pixels = static_cast<int64_t>(width) * height;
    const ArrowArray* bytes = list->n_children == 1 ? list->children[0] : nullptr;
    if (!bytes || list->length != pixels || list->offset || bytes->length != 4 * pixels || bytes->offset ||
        bytes->n_buffers != 2) {
        throw std::invalid_argument("Pillow shows its memory in an unknown layout");
    }
    return {static_cast<const uint8_t*>(bytes->buffers[1]), width, height, 4};
}

// Sides up to here keep every number below in its type.
constexpr int kMostPixels = 1 << 24, kMostSize = 1 << 15;

// What cir_infer/inputs/resampling.py has checked before: nothing may be read or written beyond a picture.
void check(const cir::Picture& picture, const cir::Square& square) {
    for (const int pixels : {square.left, square.top, square.right, square.bottom}) {
        if (pixels < 0 || pixels > kMostPixels) throw std::invalid_argument("a border of that width cannot be");
    }
    const auto fits = [](int length, int before, int after, float from, float to) {
        const int64_t total = static_cast<int64_t>(length) + before + after;
        return length > 0 && total <= kMostPixels && std::isfinite(from) && std::isfinite(to) && from >= 0 && from < to &&
               to < static_cast<float>(total) + 1;
    };
    if (!fits(picture.width, square.left, square.right, square.x0, square.x1) ||
        !fits(picture.height, square.top, square.bottom, square.y0, square.y1)) {
        throw std::invalid_argument("the square does not lie in the picture and its border");
    }
    if (square.size < 1 || square.size > kMostSize || square.margin < 0 || square.margin >= (square.size + 1) / 2) {
        throw std::invalid_argument("nothing is left of a square of that size and margin");
    }
}

nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>> resized(const cir::Picture& picture,
                                                     const std::tuple<int, int, int, int>& border, int fill,
                                                     const std::tuple<float, float, float, float>& box, int size,
                                                     int margin, bool cubic, const std::string& instruction_set) {
    const auto [left, top, right, bottom] = border;
    const auto [x0, y0, x1, y1] = box;
    const cir::Square square{left, top, right, bottom, static_cast<uint8_t>(fill), x0, y0, x1, y1,
                             size, margin, cubic ? cir::Filter::kBicubic : cir::Filter::kBilinear};
    check(picture, square);
    const size_t side = static_cast<size_t>(size - 2 * margin);
    std::unique_ptr<uint8_t[]> out(new uint8_t[side * side * 3]);
    bool known = false;
    cir::unlocked([&](cir::Unlocked&) {
        known = cir::resize_square(picture, square, instruction_set.c_str(), out.get());
    });
    if (!known) throw std::invalid_argument("this machine cannot run " + instruction_set);
    uint8_t* raw = out.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
    return nb::ndarray<nb::numpy, uint8_t, nb::ndim<3>>(raw, {side, side, 3}, owner);
}

}  // namespace

NB_MODULE(_resample, m) {
    // Daemon threads that the end of the interpreter meets hold what they work on for ever.
    nb::set_leak_warnings(false);
    m.def(
        "resize_square",
        [](const Pixels& pixels, const std::tuple<int, int, int, int>& border, int fill,
           const std::tuple<float, float, float, float>& box, int size, int margin, bool cubic,
           const std::string& instruction_set) {
            if (pixels.shape(0) > kMostPixels || pixels.shape(1) > kMostPixels) {
                throw std::invalid_argument("the picture is too large");
            }
            const cir::Picture picture{pixels.data(), static_cast<int>(pixels.shape(1)),
                                       static_cast<int>(pixels.shape(0)), 3};
            return resized(picture, border, fill, box, size, margin, cubic, instruction_set);
        },
        nb::arg("pixels"), nb::arg("border"), nb::arg("fill"), nb::arg("box"), nb::arg("size"), nb::arg("margin"),
        nb::arg("cubic"), nb::arg("instruction_set"));
    m.def(
        "resize_square_of_arrow",
        [](const nb::capsule& array, int width, int height, const std::tuple<int, int, int, int>& border, int fill,
           const std::tuple<float, float, float, float>& box, int size, int margin, bool cubic,
           const std::string& instruction_set) {
            return resized(shown(array, width, height), border, fill, box, size, margin, cubic, instruction_set);
        },
        nb::arg("array"), nb::arg("width"), nb::arg("height"), nb::arg("border"), nb::arg("fill"), nb::arg("box"),
        nb::arg("size"), nb::arg("margin"), nb::arg("cubic"), nb::arg("instruction_set"));
}
