// Python sees `cir_infer.scoring._kernels` through cir_infer/scoring/cpu.py, which checks shapes and types first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>

#include "../python/main_thread.h"
#include "../python/unlocked.h"
#include "score.h"

namespace nb = nanobind;

namespace {

using Values = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Row numbers within a block are 32-bit.
constexpr size_t kBlockRows = size_t{1} << 30;
// Beyond, numbers of values within a row would not be safe in 32 bits, nor the bounds of rounding sound.
constexpr size_t kDimensions = size_t{1} << 20;
// Vectors of an item, and their values.
constexpr size_t kVectors = size_t{1} << 16, kItemValues = size_t{1} << 24;

// A gallery and the arrays that it lies in.
struct GalleryView {
    cir::Gallery gallery;
    mutable cir::BatchStatistics statistics;
    std::vector<Values> blocks;
    std::vector<Floats> scales;

    GalleryView(std::vector<Values> b, std::vector<Floats> s) : blocks(std::move(b)), scales(std::move(s)) {
        check();
        const nb::dlpack::dtype type = blocks.at(0).dtype();
        const bool integer = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
        gallery.type = integer ? cir::kInt8 : type.bits == 32 ? cir::kFloat32 : cir::kFloat16;
        gallery.items = blocks[0].ndim() == 3;
        gallery.dimension = static_cast<int>(blocks[0].shape(blocks[0].ndim() - 1));
        gallery.vectors = gallery.items ? static_cast<int>(blocks[0].shape(1)) : 1;
        const size_t vectors = static_cast<size_t>(gallery.vectors), most = kBlockRows / vectors;
        for (size_t i = 0; i < blocks.size(); ++i) {
            const auto* rows = static_cast<const char*>(blocks[i].data());
            const size_t width = static_cast<size_t>(gallery.dimension) * vectors * type.bits / 8;
            for (size_t start = 0; start < blocks[i].shape(0); start += most) {
                const size_t count = std::min(most, blocks[i].shape(0) - start);
                const float* mine = integer ? scales[i].data() + start * vectors : nullptr;
                const bool odd = integer && !std::all_of(mine, mine + count * vectors, cir::ordinary_scale);
                gallery.blocks.push_back({rows + start * width, mine, static_cast<int64_t>(count), odd});
            }
        }
    }

private:
    // What cir_infer/scoring/contract.py has checked before: nothing below may read beyond an array.
    void check() const {
        if (blocks.empty()) throw std::invalid_argument("a gallery needs a block of rows");
        const nb::dlpack::dtype type = blocks[0].dtype();
        const bool integer = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
        const bool floating = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
        if (type.lanes != 1 || !((integer && type.bits == 8) || (floating && (type.bits == 16 || type.bits == 32)))) {
            throw std::invalid_argument("rows must be float32, float16 or int8");
        }
        if (scales.size() != (integer ? blocks.size() : 0)) throw std::invalid_argument("scales belong to int8 rows");
        const size_t axes = blocks[0].ndim();
        if (axes != 2 && axes != 3) throw std::invalid_argument("rows must have two or three axes");
        for (size_t i = 0; i < blocks.size(); ++i) {
            bool fits = blocks[i].ndim() == axes && blocks[i].dtype() == type && (!integer || scales[i].ndim() == axes - 1);
            for (size_t a = 0; fits && a < axes; ++a) {
                fits = (a == 0 || blocks[i].shape(a) == blocks[0].shape(a)) &&
                       (!integer || a + 1 == axes || scales[i].shape(a) == blocks[i].shape(a));
            }
            if (!fits) throw std::invalid_argument("row blocks and scales do not fit together");
        }
        const size_t dimension = blocks[0].shape(axes - 1), vectors = axes == 3 ? blocks[0].shape(1) : 1;
        if (dimension < 1 || dimension > kDimensions || vectors < 1 || vectors > kVectors ||
            dimension * vectors > kItemValues) {
            throw std::invalid_argument("rows have too many values, or none");
        }
    }
};

const cir::Kernels* kernels(const std::string& name) {
    const cir::Kernels* found = name.empty() ? cir::available_kernels().front() : cir::kernels_by_name(name);
    if (!found) throw std::invalid_argument("this machine cannot run the instruction set " + name);
    return found;
}

cir::Products products(const std::string& name) {
    if (name == "fastest") return cir::Products::kFastest;
    if (name == "float32") return cir::Products::kFloat32;
    if (name == "int8") return cir::Products::kBytes;
    throw std::invalid_argument("products are fastest, float32 or int8");
}

template <class T>
nb::object owned(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape, owner));
}

int threads_of(int64_t threads) {
    if (threads < 1) throw std::invalid_argument("at least one thread is needed");
    return static_cast<int>(std::min<int64_t>(threads, 1024));
}

size_t product(std::initializer_list<size_t> sizes) {
    size_t out = 1;
    for (size_t size : sizes) {
        if (__builtin_mul_overflow(out, size, &out)) throw std::length_error("the answer is too large");
    }
    return out;
}

// work(interrupted) without the interpreter's lock; KeyboardInterrupt if the user asked for it meanwhile.
template <class F>
void interruptibly(const F& work) {
    const bool main = cir::in_main_thread();
    try {
        cir::unlocked([&](cir::Unlocked& lock) {
            work(main ? std::function<bool()>([&lock] { return lock.interrupted(); }) : std::function<bool()>());
        });
    } catch (const cir::Interrupted&) {
        throw nb::python_error();
    }
}

// The k best of `count` rows, or all where k is more: the answer is no wider than there are rows.
template <class F>
nb::tuple answered(const cir::Gallery& gallery, const Floats& numerators, const std::optional<Floats>& weights, int64_t k,
                   const std::optional<Bits>& allow, int64_t threads, const std::string& name, const F& ask) {
    const int64_t count = gallery.count();
    if (k < 1 || numerators.ndim() != 3 || numerators.shape(1) < 1 ||
        numerators.shape(1) > static_cast<size_t>(std::numeric_limits<int>::max()) ||
        numerators.shape(2) != static_cast<size_t>(gallery.dimension) ||
        (weights && (weights->ndim() != 3 || weights->shape(0) != numerators.shape(0) ||
                     weights->shape(1) != numerators.shape(1) || weights->shape(2) != numerators.shape(2))) ||
        (allow && allow->shape(0) != static_cast<size_t>(count + 7) / 8)) {
        throw std::invalid_argument("terms, k or mask do not fit the gallery");
    }
    const cir::Query query{numerators.data(), weights ? weights->data() : nullptr,
                           static_cast<int64_t>(numerators.shape(0)), static_cast<int>(numerators.shape(1))};
    const size_t q = numerators.shape(0), j = numerators.shape(1);
    const int64_t width = std::min(k, count);
    const size_t w = static_cast<size_t>(width);
    product({q, w, j, sizeof(float)});
    product({q, w, sizeof(int64_t)});
    std::unique_ptr<float[]> scores(new float[q * w]), terms(new float[q * w * j]);
    std::unique_ptr<int64_t[]> rows(new int64_t[q * w]);
    std::unique_ptr<int32_t[]> tokens(gallery.items ? new int32_t[q * w * j] : nullptr);
    const cir::Kernels* chosen = kernels(name);
    if (width > 0) {
        interruptibly([&](const std::function<bool()>& interrupted) {
            const cir::Options options{chosen, threads_of(threads), allow ? allow->data() : nullptr, interrupted};
            ask(query, width, options, cir::Answer{scores.get(), rows.get(), terms.get(), tokens.get()});
        });
    }
    const nb::object found = owned(std::move(scores), {q, w}), at = owned(std::move(rows), {q, w});
    const nb::object by_term = owned(std::move(terms), {q, w, j});
    if (!gallery.items) return nb::make_tuple(found, at, by_term);
    return nb::make_tuple(found, at, by_term, owned(std::move(tokens), {q, w, j}));
}

auto bounded(const cir::Gallery& gallery, const Floats& numerators, const std::optional<Floats>& weights, const std::string& name,
             int digits, bool closer, const std::vector<double>& shares, const cir::Copy* copy) {
    const cir::Kernels* chosen = kernels(name);
    const bool fits = chosen->screen && gallery.vectors == 1 && (digits == 1 || digits == 2) && shares.size() == 4 &&
                      numerators.ndim() == 3 && numerators.shape(2) == static_cast<size_t>(gallery.dimension) &&
                      gallery.dimension <= cir::kMostScreened && (!weights || weights->size() == numerators.size());
    if (!fits) throw std::invalid_argument("there are no bounds from bytes for that");
    const size_t q = numerators.shape(0), n = static_cast<size_t>(gallery.count());
    std::unique_ptr<float[]> out(new float[product({q, n})]);
    const cir::Query query{numerators.data(), weights ? weights->data() : nullptr, static_cast<int64_t>(q),
                           static_cast<int>(numerators.shape(1))};
    cir::upper_bounds(gallery, query, *chosen, digits, closer && digits == 1, shares.data(), out.get(), copy);
    return owned(std::move(out), {q, n});
}

}  // namespace

NB_MODULE(_kernels, m) {
    // Daemon threads that the end of the interpreter meets hold what they work on for ever.
    nb::set_leak_warnings(false);
    cir::note_main_thread(nb::cast<unsigned long>(nb::module_::import_("threading").attr("main_thread")().attr("ident")));
    m.attr("source_hash") = CIR_SOURCE_HASH;

    nb::class_<GalleryView>(m, "Gallery")
        .def(nb::init<std::vector<Values>, std::vector<Floats>>(), nb::arg("blocks"), nb::arg("scales"))
        .def("statistics", [](const GalleryView& self) {
            const cir::BatchStatistics& s = self.statistics;
            return nb::make_tuple(s.multiplied.load(), s.bounded.load(), s.listed.load(), s.again.load());
        });

    nb::class_<cir::Int8Index>(m, "Int8Index")
        .def(
            "__init__",
            [](cir::Int8Index* self, const GalleryView& view, int64_t threads, const std::string& name) {
                const cir::Kernels* chosen = kernels(name);
                interruptibly([&](const std::function<bool()>& interrupted) {
                    new (self) cir::Int8Index(view.gallery, {chosen, threads_of(threads), nullptr, interrupted});
                });
            },
            nb::arg("gallery"), nb::arg("threads"), nb::arg("instruction_set"), nb::keep_alive<1, 2>())
        .def(
            "topk",
            [](cir::Int8Index& self, const Floats& numerators, std::optional<Floats> weights, int64_t k,
               std::optional<Bits> allow, int64_t threads, const std::string& name, int64_t list) {
                return answered(self.gallery(), numerators, weights, k, allow, threads, name,
                                [&](const cir::Query& query, int64_t width, const cir::Options& options,
                                    const cir::Answer& answer) { self.topk(query, width, list, options, answer); });
            },
            nb::arg("numerators"), nb::arg("weights").none(), nb::arg("k"), nb::arg("allow").none(),
            nb::arg("threads"), nb::arg("instruction_set"), nb::arg("list"))
        .def("statistics",
             [](const cir::Int8Index& self) {
                 const cir::Int8Index::Statistics s = self.statistics();
                 return nb::make_tuple(s.queries, s.extended, s.exhaustive, s.rescored);
             })
        .def(
            "upper_bounds",
            [](const cir::Int8Index& self, const Floats& numerators, const std::optional<Floats>& weights,
               const std::string& name, int digits, bool closer, const std::vector<double>& shares) {
                const cir::Copy copy = self.copy();
                return bounded(*copy.rows, numerators, weights, name, digits, closer, shares, &copy);
            },
            nb::arg("numerators"), nb::arg("weights").none(), nb::arg("instruction_set"), nb::arg("digits"), nb::arg("closer"),
            nb::arg("shares"))
        .def("bytes", &cir::Int8Index::bytes);

    m.def(
        "topk",
        [](const GalleryView& view, const Floats& numerators, std::optional<Floats> weights, int64_t k,
           std::optional<Bits> allow, int64_t threads, const std::string& name, const std::string& multiplied) {
            const cir::Products chosen = products(multiplied);
            return answered(view.gallery, numerators, weights, k, allow, threads, name,
                            [&](const cir::Query& query, int64_t width, cir::Options options, const cir::Answer& answer) {
                                options.products = chosen;
                                options.statistics = &view.statistics;
                                cir::topk(view.gallery, query, width, options, answer);
                            });
        },
        nb::arg("gallery"), nb::arg("numerators"), nb::arg("weights").none(), nb::arg("k"), nb::arg("allow").none(),
        nb::arg("threads"), nb::arg("instruction_set"), nb::arg("products") = "fastest");

    m.def(
        "upper_bounds",
        [](const GalleryView& view, const Floats& numerators, const std::optional<Floats>& weights, const std::string& name,
           int digits, bool closer, const std::vector<double>& shares) {
            return bounded(view.gallery, numerators, weights, name, digits, closer, shares, nullptr);
        },
        nb::arg("gallery"), nb::arg("numerators"), nb::arg("weights").none(), nb::arg("instruction_set"), nb::arg("digits"),
        nb::arg("closer"), nb::arg("shares"));

    m.def(
        "read_all",
        [](const GalleryView& view, int64_t threads, const std::string& name) {
            const cir::Kernels* chosen = kernels(name);
            uint64_t sum = 0;
            interruptibly([&](const std::function<bool()>& interrupted) {
                sum = cir::read_all(view.gallery, {chosen, threads_of(threads), nullptr, interrupted});
            });
            return sum;
        },
        nb::arg("gallery"), nb::arg("threads"), nb::arg("instruction_set"));

    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const cir::Kernels* each : cir::available_kernels()) names.emplace_back(each->name);
        return names;
    });

    // Of these, those that multiply bytes.
    m.def("byte_instruction_sets", [] {
        std::vector<std::string> names;
        for (const cir::Kernels* each : cir::available_kernels()) {
            if (each->screen) names.emplace_back(each->name);
        }
        return names;
    });
}
