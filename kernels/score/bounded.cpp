// Exact top-k from int8 rows: upper bounds in one scan of the copy, a short list scored exactly in the gallery, and a
// proof that no row outside the list can belong to the answer. Where the bounds come from is in integer_terms.h.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "chunks.h"
#include "exact.h"
#include "hits.h"
#include "integer_terms.h"
#include "parallel.h"

namespace cir {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kQueryBlock = 64;

// The first list: on the hardest data measured (README.md) it is long enough for every query.
int64_t first_list(int64_t k) { return 4 * k + 64; }
// From so many products a row on, bounds from bytes (screen_terms.h) take less time than these: measured on int8 rows on an
// EPYC, 200,000 rows of 512, 24.0 and 27.3 ms for 8 queries, 47.4 and 37.1 for 16, 193 and 93 for 64.
constexpr int64_t kBatchProducts = 48;
// A first list longer than this share of the gallery is no shorter than a plain scan.
constexpr int64_t kShare = 8;

bool all_zero(const int8_t* row, int dimension) {
    return std::all_of(row, row + dimension, [](int8_t x) { return x == 0; });
}

struct Workspace {
    ExactScores exact;
    std::vector<int32_t> index{}, vectors{};
    std::vector<float> bounds{}, largest{}, total{};
    std::vector<Hit> hits{};
    std::vector<HitList> lists{};
    std::vector<Contenders> best{};
    int64_t scored = 0;
};

}  // namespace

// One pass over the copy for some queries.
struct Int8Index::Scan {
    const Gallery &gallery, &copy;
    const Options& options;
    Watch& watch;
    const std::vector<const IntegerTerms*>& terms;
    int threads, chunk;
    int64_t room = 0;
    std::vector<Workspace> work{};
    std::vector<std::vector<Hit>> merged{};  // a thread's

    Scan(const Gallery& gallery, const Gallery& copy, const Query& query, const Options& options, Watch& watch,
         const std::vector<const IntegerTerms*>& terms)
        : gallery(gallery), copy(copy), options(options), watch(watch), terms(terms) {
        threads = useful_threads(options.threads, static_cast<double>(copy.count()) * copy.vectors * copy.dimension *
                                                      query.terms * static_cast<double>(terms.size()));
        // Several queries pass over a chunk: it has to stay in the first-level cache, or nearly.
        chunk = std::min(chunk_rows(copy, threads),
                         terms.size() > 1 ? items_of(copy, 128) : std::numeric_limits<int>::max());
        work.resize(static_cast<size_t>(threads), {ExactScores(gallery, query, *options.kernels)});
        for (Workspace& w : work) {
            w.index.resize(static_cast<size_t>(chunk));
            std::iota(w.index.begin(), w.index.end(), 0);
            w.bounds.resize(static_cast<size_t>(chunk) * static_cast<size_t>(copy.vectors));
            if (copy.vectors == 1) continue;
            w.vectors.resize(w.bounds.size());
            std::iota(w.vectors.begin(), w.vectors.end(), 0);
            w.largest.resize(static_cast<size_t>(chunk));
            w.total.resize(static_cast<size_t>(chunk));
        }
    }

    template <class List>
    void make_lists(std::vector<List> Workspace::*lists, int64_t k) {
        room = room_for(k, copy.count());
        for (Workspace& w : work) {
            w.hits.resize(terms.size() * static_cast<size_t>(room));
            (w.*lists).resize(terms.size());
            for (size_t i = 0; i < terms.size(); ++i) {
                (w.*lists)[i].hits = &w.hits[i * static_cast<size_t>(room)];
                (w.*lists)[i].k = k;
                (w.*lists)[i].capacity = room;
            }
        }
        merged.assign(work.size(), std::vector<Hit>(static_cast<size_t>(room) * work.size()));
    }

    // answer(thread, query of the scan) for all of them.
    template <class F>
    void answers(const F& answer) {
        std::atomic<size_t> next{0};
        in_parallel(std::min(threads, static_cast<int>(terms.size())), [&](int thread) {
            for (size_t i; !watch.stopped(thread) && (i = next.fetch_add(1)) < terms.size();) {
                answer(static_cast<size_t>(thread), i);
            }
        });
        watch.check();
    }

    // take(w, i, row of the block, chunk, bound) for rows whose bound is above threshold(w, i).
    template <class Threshold, class Take>
    void run(const Threshold& threshold, const Take& take) {
        Chunks chunks(copy, chunk);
        in_parallel(threads, [&](int thread) {
            Workspace& w = work[static_cast<size_t>(thread)];
            for (Chunk at; !watch.stopped(thread) && chunks.next(at);) {
                const int allowed = allowed_rows(at, options.allow, w.index.data());
                if (allowed == 0) continue;
                if (copy.vectors > 1) expand(w.index.data(), allowed, copy.vectors, !options.allow, w.vectors.data());
                for (size_t i = 0; i < terms.size(); ++i) collect(at, allowed, i, w, threshold, take);
            }
        });
        watch.check();
    }

    template <class Threshold, class Take>
    void collect(const Chunk& at, int allowed, size_t i, Workspace& w, const Threshold& threshold, const Take& take) const {
        constexpr int kGroup = 64;
        const auto* base = reinterpret_cast<const int8_t*>(row_address(copy, *at.block, at.start));
        const float* scales = scales_from(copy, *at.block, at.start);
        float* bounds = w.bounds.data();
        if (copy.vectors > 1) {
            bound_items(base, scales, allowed, terms[i]->view, w);
            bounds = w.total.data();
        } else {
            options.kernels->bounds(base, scales, w.index.data(), allowed, terms[i]->view, bounds);
        }
        for (int start = 0; start < allowed; start += kGroup) {
            const int end = std::min(start + kGroup, allowed);
            float* group = bounds + start;
            if (!options.kernels->sum_above(group, 1, 0, end - start, nullptr, 0, threshold(w, i), group)) continue;
            for (int at_row = start; at_row < end; ++at_row) {
                float bound = bounds[at_row];
                if (bound <= threshold(w, i)) continue;
                const int32_t row = w.index[static_cast<size_t>(at_row)];
                if (copy.vectors > 1 && !std::isfinite(bound)) bound = kInfinity;
                else if (!std::isfinite(bound)) {
                    const bool zero = all_zero(base + static_cast<ptrdiff_t>(row) * copy.dimension, copy.dimension);
                    bound = zero ? 0 : kInfinity;
                    if (bound <= threshold(w, i)) continue;
                }
                take(w, i, at, row, bound);
            }
        }
    }

    // The bounds of items into w.total: |max a - max b| <= max |a - b|, and none of a vector's terms passes its bound, so
    // none of an item's passes the largest of them. Terms are bounded one by one, for each may have another vector.
    void bound_items(const int8_t* base, const float* scales, int allowed, const BoundTerms& of, Workspace& w) const {
        const int group = copy.vectors, count = allowed * group;
        for (int j = 0; j < of.pairs; ++j) {
            const ptrdiff_t from = static_cast<ptrdiff_t>(j) * of.padded;
            const BoundTerms one{of.n + from,   of.w ? of.w + from : nullptr, of.factor + j, of.margin + j,
                                 of.doubt + j, of.squared_norm_min + j,      1,             of.dimension,
                                 of.padded};
            options.kernels->bounds(base, scales, w.vectors.data(), count, one, w.bounds.data());
            float* most = j == 0 ? w.total.data() : w.largest.data();
            options.kernels->fold(w.bounds.data(), 1, count, count, group, 0, most, 0);
            for (int item = 0; item < allowed; ++item) {
                if (!std::isfinite(most[item])) most[item] = bound_of_item(base, item, w);
                if (j > 0) w.total[static_cast<size_t>(item)] += most[item];
            }
        }
    }

    // Where the bounds of some vectors do not hold: a zero vector's term is 0, another's may be anything.
    float bound_of_item(const int8_t* base, int item, const Workspace& w) const {
        float most = -kInfinity;
        for (int v = 0; v < copy.vectors; ++v) {
            const size_t at = static_cast<size_t>(item) * static_cast<size_t>(copy.vectors) + static_cast<size_t>(v);
            float bound = w.bounds[at];
            if (!std::isfinite(bound)) {
                const int8_t* row = base + static_cast<ptrdiff_t>(w.vectors[at]) * copy.dimension;
                bound = all_zero(row, copy.dimension) ? 0 : kInfinity;
            }
            most = std::max(most, bound);
        }
        return most;
    }

    // Lists of the rows of the largest bounds.
    void run_lists(int64_t length) {
        make_lists(&Workspace::lists, length);
        run([](const Workspace& w, size_t i) { return w.lists[i].threshold; },
            [](Workspace& w, size_t i, const Chunk& at, int32_t row, float bound) {
                w.lists[i].push(bound, at.first_row + row);
            });
    }

    // The list of one query in the thread's `merged`; every other row's bound is at most `beyond`.
    int64_t list(size_t thread, size_t i, int64_t most, float& beyond) {
        Hit* all = merged[thread].data();
        int64_t size = 0;
        bool trimmed = false;
        for (Workspace& w : work) {
            const HitList& list = w.lists[i];
            std::copy(list.hits, list.hits + list.size, all + size);
            size += list.size;
            trimmed = trimmed || list.trimmed;
        }
        trimmed = trimmed || size > most;
        size = best_of(all, size, most);
        beyond = -kInfinity;
        if (trimmed) {
            beyond = std::min_element(all, all + size, [](const Hit& a, const Hit& b) { return a.score < b.score; })->score;
        }
        return size;
    }

    // The k best of all rows whose bound reaches `floors`, which k rows do: each is scored exactly as it is met.
    void run_exactly(int64_t k, const std::vector<int64_t>& queries, const std::vector<float>& floors) {
        make_lists(&Workspace::best, k);
        for (Workspace& w : work) {
            for (size_t i = 0; i < terms.size(); ++i) {
                w.best[i].slack = std::nextafter(static_cast<float>(terms[i]->slack), kInfinity);
                w.best[i].raise(static_cast<double>(floors[i]));
            }
        }
        run([](const Workspace& w, size_t i) { return w.best[i].threshold; },
            [&](Workspace& w, size_t i, const Chunk& at, int32_t row, float) {
                Contenders& best = w.best[i];
                const Block& block = gallery.blocks[static_cast<size_t>(at.block - copy.blocks.data())];
                const Hit hit{w.exact.score(block, at.start + row, queries[i], nullptr), 0, at.first_row + row};
                w.scored += 1;
                if (!(hit.score >= best.floor)) return;
                best.push(hit);
                if (best.full()) best.make_room([](Hit*, int64_t size) { return size; });
            });
    }
};

void Int8Index::topk(const Query& query, int64_t k, int64_t list, const Options& options, const Answer& answer) {
    const int64_t rows = gallery_.count();
    const int64_t most = list > 0 ? rows : rows / kShare;
    queries_ += query.queries;
    const bool batch = list <= 0 && screens(gallery_, query, query.queries, options) &&
                       products_a_row(query, query.queries) >= kBatchProducts;
    if (list <= 0) list = first_list(std::min(k, rows));
    if (batch && gallery_.type != kInt8) {
        BatchStatistics counts;
        const Copy of = copy();
        Options from_copy = options;
        from_copy.statistics = &counts;
        from_copy.copy = &of;
        cir::topk(gallery_, query, k, from_copy, answer);
        rescored_ += counts.listed + counts.multiplied;
        return;
    }
    if (list > most || batch) {
        exhaustive_ += query.queries;
        cir::topk(gallery_, query, k, options, answer);
        return;
    }
    Watch watch(options);
    for (int64_t first = 0; first < query.queries; first += kQueryBlock) {
        std::vector<IntegerTerms> terms;
        for (int64_t q = first; q < std::min(first + kQueryBlock, query.queries); ++q) {
            terms.push_back(integer_terms(query, q, gallery_.dimension, errors_, *options.kernels));
        }
        std::vector<int64_t> queries;
        std::vector<const IntegerTerms*> usable;
        for (size_t i = 0; i < terms.size(); ++i) {
            const int64_t q = first + static_cast<int64_t>(i);
            if (terms[i].usable) {
                queries.push_back(q);
                usable.push_back(&terms[i]);
            } else {
                exhaustive_ += 1;
                const size_t at = static_cast<size_t>(q) * static_cast<size_t>(query.terms * gallery_.dimension);
                const int64_t by_term = q * k * query.terms;
                cir::topk(gallery_, {query.numerators + at, query.weights ? query.weights + at : nullptr, 1, query.terms},
                          k, options, {answer.scores + q * k, answer.rows + q * k, answer.terms + by_term,
                                       answer.tokens ? answer.tokens + by_term : nullptr});
            }
        }
        if (!queries.empty()) listed(query, queries, usable, k, list, options, watch, answer);
    }
}

void Int8Index::listed(const Query& query, const std::vector<int64_t>& queries,
                       const std::vector<const IntegerTerms*>& terms, int64_t k, int64_t list, const Options& options,
                       Watch& watch, const Answer& answer) {
    std::vector<uint8_t> proven(queries.size(), 0);
    {
        Scan scan(gallery_, copy_, query, options, watch, terms);
        scan.run_lists(list);
        for (Workspace& w : scan.work) w.exact.expect(std::max(k, list));
        scan.answers([&](size_t thread, size_t i) {
            float beyond;
            const int64_t size = scan.list(thread, i, list, beyond);
            rescored_ += size;
            scan.work[thread].exact.answer(queries[i], scan.merged[thread].data(), size, k, answer);
            const float worst = answer.scores[queries[i] * k + k - 1];
            proven[i] = beyond == -kInfinity || worst > beyond + terms[i]->slack;
        });
    }
    std::vector<int64_t> left;
    std::vector<const IntegerTerms*> left_terms;
    std::vector<float> floors;
    for (size_t i = 0; i < queries.size(); ++i) {
        if (proven[i]) continue;
        left.push_back(queries[i]);
        left_terms.push_back(terms[i]);
        floors.push_back(answer.scores[queries[i] * k + k - 1]);
    }
    if (left.empty()) return;
    extended_ += static_cast<int64_t>(left.size());
    Scan scan(gallery_, copy_, query, options, watch, left_terms);
    scan.run_exactly(k, left, floors);
    for (Workspace& w : scan.work) {
        rescored_ += w.scored;
        w.exact.expect(k);
    }
    scan.answers([&](size_t thread, size_t i) {
        Hit* all = scan.merged[thread].data();
        int64_t size = 0;
        for (const Workspace& w : scan.work) {
            std::copy(w.best[i].hits, w.best[i].hits + w.best[i].size, all + size);
            size += w.best[i].size;
        }
        scan.work[thread].exact.answer(left[i], all, best_of(all, size, k), k, answer);
    });
}

Int8Index::Statistics Int8Index::statistics() const {
    return {queries_.load(), extended_.load(), exhaustive_.load(), rescored_.load()};
}

}  // namespace cir
