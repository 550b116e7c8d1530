// Python sees `cir_infer.scoring._kernels` through cir_infer/scoring/cpu.py, which checks shapes and types first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "score.h"

namespace nb = nanobind;

namespace {

using Values = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Row numbers within a block are 32-bit.
constexpr size_t kBlockRows = size_t{1} << 30;

// A gallery and the arrays that it lies in.
struct GalleryView {
    cir::Gallery gallery;
    std::vector<Values> blocks;
    std::vector<Floats> scales;

    GalleryView(std::vector<Values> b, std::vector<Floats> s) : blocks(std::move(b)), scales(std::move(s)) {
        const nb::dlpack::dtype type = blocks.at(0).dtype();
        const bool integer = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
        gallery.type = integer ? cir::kInt8 : type.bits == 32 ? cir::kFloat32 : cir::kFloat16;
        gallery.dimension = static_cast<int>(blocks[0].shape(1));
        for (size_t i = 0; i < blocks.size(); ++i) {
            const auto* rows = static_cast<const char*>(blocks[i].data());
            const size_t width = static_cast<size_t>(gallery.dimension) * type.bits / 8;
            for (size_t start = 0; start < blocks[i].shape(0); start += kBlockRows) {
                gallery.blocks.push_back({rows + start * width, integer ? scales.at(i).data() + start : nullptr,
                                          static_cast<int64_t>(std::min(kBlockRows, blocks[i].shape(0) - start))});
            }
        }
    }
};

const cir::Kernels* kernels(const std::string& name) {
    const cir::Kernels* found = name.empty() ? cir::available_kernels().front() : cir::kernels_by_name(name);
    if (!found) throw std::invalid_argument("this machine cannot run the instruction set " + name);
    return found;
}

template <class T>
nb::object owned(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape, owner));
}

template <class F>
nb::tuple answered(const Floats& numerators, const std::optional<Floats>& weights, int64_t k,
                   const std::optional<Bits>& allow, int threads, const std::string& name, const F& ask) {
    const cir::Query query{numerators.data(), weights ? weights->data() : nullptr,
                           static_cast<int64_t>(numerators.shape(0)), static_cast<int>(numerators.shape(1))};
    const cir::Options options{kernels(name), threads, allow ? allow->data() : nullptr};
    const size_t q = numerators.shape(0), j = numerators.shape(1), width = static_cast<size_t>(k);
    std::unique_ptr<float[]> scores(new float[q * width]), terms(new float[q * width * j]);
    std::unique_ptr<int64_t[]> rows(new int64_t[q * width]);
    {
        nb::gil_scoped_release released;
        ask(query, options, cir::Answer{scores.get(), rows.get(), terms.get()});
    }
    return nb::make_tuple(owned(std::move(scores), {q, width}), owned(std::move(rows), {q, width}),
                          owned(std::move(terms), {q, width, j}));
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.attr("source_hash") = CIR_SOURCE_HASH;

    nb::class_<GalleryView>(m, "Gallery")
        .def(nb::init<std::vector<Values>, std::vector<Floats>>(), nb::arg("blocks"), nb::arg("scales"));

    nb::class_<cir::Int8Index>(m, "Int8Index")
        .def(
            "__init__",
            [](cir::Int8Index* self, const GalleryView& view, int threads, const std::string& name) {
                const cir::Kernels* chosen = kernels(name);
                nb::gil_scoped_release released;
                new (self) cir::Int8Index(view.gallery, threads, chosen);
            },
            nb::arg("gallery"), nb::arg("threads"), nb::arg("instruction_set"), nb::keep_alive<1, 2>())
        .def(
            "topk",
            [](cir::Int8Index& self, const Floats& numerators, std::optional<Floats> weights, int64_t k,
               std::optional<Bits> allow, int threads, const std::string& name, int64_t list) {
                return answered(numerators, weights, k, allow, threads, name,
                                [&](const cir::Query& query, const cir::Options& options, const cir::Answer& answer) {
                                    self.topk(query, k, list, options, answer);
                                });
            },
            nb::arg("numerators"), nb::arg("weights").none(), nb::arg("k"), nb::arg("allow").none(),
            nb::arg("threads"), nb::arg("instruction_set"), nb::arg("list"))
        .def("statistics",
             [](const cir::Int8Index& self) {
                 const cir::Int8Index::Statistics s = self.statistics();
                 return nb::make_tuple(s.queries, s.extended, s.exhaustive, s.rescored);
             })
        .def("bytes", &cir::Int8Index::bytes);

    m.def(
        "topk",
        [](const GalleryView& view, const Floats& numerators, std::optional<Floats> weights, int64_t k,
           std::optional<Bits> allow, int threads, const std::string& name) {
            return answered(numerators, weights, k, allow, threads, name,
                            [&](const cir::Query& query, const cir::Options& options, const cir::Answer& answer) {
                                cir::topk(view.gallery, query, k, options, answer);
                            });
        },
        nb::arg("gallery"), nb::arg("numerators"), nb::arg("weights").none(), nb::arg("k"), nb::arg("allow").none(),
        nb::arg("threads"), nb::arg("instruction_set"));

    m.def(
        "read_all",
        [](const GalleryView& view, int threads, const std::string& name) {
            const cir::Options options{kernels(name), threads, nullptr};
            nb::gil_scoped_release released;
            return cir::read_all(view.gallery, options);
        },
        nb::arg("gallery"), nb::arg("threads"), nb::arg("instruction_set"));

    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const cir::Kernels* each : cir::available_kernels()) names.emplace_back(each->name);
        return names;
    });
}
