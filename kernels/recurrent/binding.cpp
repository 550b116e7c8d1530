// Python sees `cir_infer.runtime.recurrent._recurrent` through cir_infer/runtime/recurrent/processor.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "../python/unlocked.h"
#include "recurrent.h"

namespace nb = nanobind;

namespace {

template <int Axes>
using Floats = nb::ndarray<const float, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;
template <int Axes>
using Integers = nb::ndarray<const int32_t, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;

// Sizes up to here keep every product of two of them, and of these and the gates, in its type.
constexpr size_t kMostValues = size_t{1} << 20;

const cir::InstructionSet& set_named(const std::string& name) {
    for (const cir::InstructionSet* set : cir::available_sets()) {
        if (name.empty() || cir::name_of(*set) == name) return *set;
    }
    throw std::invalid_argument("this machine cannot run " + name);
}

class Encoder {
public:
    Encoder(const Floats<2>& words, const Floats<4>& input_weights, const Floats<4>& recurrent_weights,
            const Floats<3>& input_bias, const std::optional<Floats<2>>& candidate_bias, bool over_time,
            const std::optional<Floats<2>>& projection, const std::optional<Floats<1>>& projection_bias,
            float least_square, const std::string& instruction_set)
        : words_(words), set_(&set_named(instruction_set)) {
        const size_t directions = input_weights.shape(0), gates = input_weights.shape(1), hidden = input_weights.shape(2),
                     width = words.shape(1);
        const bool gru = gates == 3;
        bool fits = (directions == 1 || directions == 2) && (gru || gates == 4) && hidden > 0 && hidden <= kMostValues &&
                    width > 0 && width <= kMostValues && words.shape(0) > 0 && input_weights.shape(3) == width;
        for (size_t axis = 0; axis < 3; ++axis) {
            fits = fits && recurrent_weights.shape(axis) == input_weights.shape(axis) &&
                   input_bias.shape(axis) == input_weights.shape(axis);
        }
        fits = fits && recurrent_weights.shape(3) == hidden && candidate_bias.has_value() == gru &&
               (!gru || (candidate_bias->shape(0) == directions && candidate_bias->shape(1) == hidden)) &&
               projection.has_value() == projection_bias.has_value();
        size_t out = directions * hidden;
        if (fits && projection) {
            out = projection->shape(0);
            fits = out > 0 && out <= kMostValues && projection->shape(1) == directions * hidden && projection_bias->shape(0) == out;
        }
        if (!fits) throw std::invalid_argument("the arrays of a recurrent layer do not fit together");
        shape_ = {static_cast<int>(gates), static_cast<int>(directions), static_cast<int>(hidden), static_cast<int>(width),
                  static_cast<int64_t>(words.shape(0)), words.data(), input_weights.data(), recurrent_weights.data(),
                  input_bias.data(), gru ? candidate_bias->data() : nullptr, over_time, static_cast<int>(out),
                  projection ? projection->data() : nullptr, projection ? projection_bias->data() : nullptr, least_square};
        cir::unlocked([&](cir::Unlocked&) { encoder_ = std::make_unique<cir::Encoder>(shape_, *set_); });
    }

    nb::ndarray<nb::numpy, float, nb::ndim<2>> encode(const Integers<2>& tokens, const Integers<1>& lengths, int threads) const {
        const size_t count = tokens.shape(0), steps = tokens.shape(1), out = static_cast<size_t>(shape_.out);
        if (lengths.shape(0) != count || count > kMostValues) throw std::invalid_argument("tokens and lengths do not fit together");
        for (size_t i = 0; i < count; ++i) {
            const int32_t length = lengths.data()[i];
            if (length < 1 || static_cast<size_t>(length) > steps) throw std::invalid_argument("a length is beyond the tokens");
            const int32_t* text = tokens.data() + i * steps;
            if (!std::all_of(text, text + length, [&](int32_t token) { return token >= 0 && token < shape_.vocabulary; })) {
                throw std::invalid_argument("a token is not in the vocabulary");
            }
        }
        std::unique_ptr<float[]> found(new float[std::max<size_t>(count * out, 1)]);
        const cir::Texts texts{tokens.data(), lengths.data(), static_cast<int64_t>(count), static_cast<int64_t>(steps)};
        cir::unlocked([&](cir::Unlocked&) { encoder_->encode(texts, threads, found.get()); });
        float* raw = found.release();
        nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        return nb::ndarray<nb::numpy, float, nb::ndim<2>>(raw, {count, out}, owner);
    }

    const char* instruction_set() const { return cir::name_of(*set_); }

private:
    Floats<2> words_;
    const cir::InstructionSet* set_;
    cir::RecurrentText shape_;
    std::unique_ptr<cir::Encoder> encoder_;
};

}  // namespace

NB_MODULE(_recurrent, m) {
    // Daemon threads that the end of the interpreter meets hold what they work on for ever.
    nb::set_leak_warnings(false);
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const cir::InstructionSet* set : cir::available_sets()) names.push_back(cir::name_of(*set));
        return names;
    });
    nb::class_<Encoder>(m, "Encoder")
        .def(nb::init<const Floats<2>&, const Floats<4>&, const Floats<4>&, const Floats<3>&, const std::optional<Floats<2>>&,
                      bool, const std::optional<Floats<2>>&, const std::optional<Floats<1>>&, float, const std::string&>(),
             nb::arg("words"), nb::arg("input_weights"), nb::arg("recurrent_weights"), nb::arg("input_bias"),
             nb::arg("candidate_bias").none(), nb::arg("over_time"), nb::arg("projection").none(),
             nb::arg("projection_bias").none(), nb::arg("least_square"), nb::arg("instruction_set"))
        .def("encode", &Encoder::encode, nb::arg("tokens"), nb::arg("lengths"), nb::arg("threads"))
        .def_prop_ro("instruction_set", &Encoder::instruction_set);
}
