// The scan of a gallery in its stored type: chunks of rows, blocks of queries, top-k behind a running threshold.
#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <numeric>
#include <optional>

#include "chunks.h"
#include "exact.h"
#include "foresight.h"
#include "hits.h"
#include "parallel.h"
#include "screening.h"
#include "terms.h"

namespace cir {
namespace {

// From so many queries on, transposing a tile of rows pays: measured in README.md.
constexpr int64_t kTileQueries = 6;
// From so many products of so many values on, turning rows into bytes does: measured there too.
constexpr int64_t kScreenProducts = 24;
constexpr int kScreenDimension = 64;
// Of rows that wait so many are scored at a time, or an eighth of k, before what they reach is looked at: measured there.
constexpr int64_t kTurn = 32;

// What one thread needs, allocated before the threads start.
struct Workspace {
    ExactScores exact;
    std::vector<int32_t> index{}, vectors{};  // of rows, and of the vectors that they are
    LineVector<float> terms{}, sums{}, values{}, squares{}, reach{}, largest{};
    std::vector<Contenders> lists{};  // one a query
    std::vector<double> expected{};   // of each query, by a sample: what is below was dropped unproven
    std::vector<Hit> hits{};
    std::optional<Screening> screening{};
    Chunk looked_at{nullptr, 0, 0, 0};  // where the rows that wait are counted from
    std::vector<int32_t> waiting{};
};

class Scan {
public:
    Scan(const Gallery& gallery, const Query& query, int64_t k, const Options& options, const Answer& answer)
        : gallery_(gallery), query_(query), k_(k), options_(options), answer_(answer), rows_(gallery.count()), watch_(options) {}

    void run() {
        const double work = static_cast<double>(rows_) * gallery_.vectors * gallery_.dimension *
                            static_cast<double>(query_.queries) * query_.terms;
        threads_ = useful_threads(options_.threads, work);
        room_ = room_for(k_, rows_);
        const int64_t block = query_block(query_.queries, threads_, static_cast<size_t>(room_) * sizeof(Hit), *options_.kernels);
        // Of many queries each thread takes blocks of its own, for which it sees all rows; of few all take turns at rows.
        const int64_t apart = threads_ > 1 ? query_.queries / (block * threads_) * threads_ : 0;
        std::atomic<int64_t> next{0};
        std::vector<std::exception_ptr> failed(static_cast<size_t>(threads_));
        Remaining remaining(apart);
        if (apart > 0) {
            in_parallel(threads_, [&](int thread) {
                try {
                    for (int64_t i; !watch_.stopped(thread) && (i = next.fetch_add(1)) < apart;) {
                        answer(i * block, block, 1, thread);
                        remaining.one_less();
                    }
                } catch (...) {
                    failed[static_cast<size_t>(thread)] = std::current_exception();
                    next.store(apart);
                    remaining.none();
                }
                if (thread == 0) remaining.wait([&] { return watch_.stopped(0); });
            });
        }
        for (const std::exception_ptr& failure : failed) {
            if (failure) std::rethrow_exception(failure);
        }
        for (int64_t first = apart * block; first < query_.queries && !watch_.stopped(0); first += block) {
            answer(first, std::min(block, query_.queries - first), threads_, 0);
        }
        watch_.check();
    }

private:
    // The answers of some queries, by threads `caller`, which calls, and those after it.
    void answer(int64_t first, int64_t count, int threads, int caller) {
        const int64_t rank = surprised_.load(std::memory_order_relaxed) ? 0 : rank_in_sample(k_, rows_);
        const std::vector<uint8_t> failed = pass(first, count, threads, caller, rank, false);
        const int64_t again = std::count(failed.begin(), failed.end(), 1);
        if (again == 0) return;
        if (options_.statistics) options_.statistics->again += again;
        if (again * 16 > count) {
            // More than one is not chance: what is looked at next would be no better.
            if (again > 1) surprised_.store(true, std::memory_order_relaxed);
            pass(first, count, threads, caller, 0, true);
            return;
        }
        for (int64_t q = 0; q < count && !watch_.stopped(caller); ++q) {
            if (failed[static_cast<size_t>(q)]) pass(first + q, 1, threads, caller, 0, true);
        }
    }

    // What answer() says, in one pass over the rows; with a rank over a sample first (foresight.h). Returns for which queries
    // that promised too much: their answers are not complete, but k rows reach the worst of them, and `again` goes on from there.
    std::vector<uint8_t> pass(int64_t first, int64_t count, int threads, int caller, int64_t rank, bool again) {
        const PreparedTerms terms(query_, first, count, gallery_.dimension);
        const bool tiled = count >= kTileQueries, screened = screens(gallery_, query_, count, options_);
        const PreparedTerms::Tiles tiles = tiled ? terms.tiles(*options_.kernels) : PreparedTerms::Tiles{};
        std::optional<ScreenTerms> bytes;
        if (screened) bytes.emplace(terms, *options_.kernels->screen);
        if (!screened) rank = 0;
        // Several queries pass over a chunk: it has to stay in the second-level cache.
        const int most = query_.queries > 1 ? items_of(gallery_, 256) : std::numeric_limits<int>::max();
        const int rows = std::min(chunk_rows(gallery_, threads), most);
        std::vector<Workspace> work(static_cast<size_t>(threads), {ExactScores(gallery_, query_, *options_.kernels)});
        const auto worst = [&](size_t q) {
            return static_cast<double>(answer_.scores[(first + static_cast<int64_t>(q) + 1) * k_ - 1]);
        };
        for (Workspace& w : work) {
            prepare(w, terms, rows, tiled);
            for (size_t q = 0; again && q < w.lists.size(); ++q) w.lists[q].raise(worst(q));
            if (screened) w.screening.emplace(*options_.kernels->screen, terms, *bytes, options_);
        }

        Floors floors(static_cast<size_t>(count));
        const auto look = [&](Chunks& chunks, Part part, int thread, Workspace& w) {
            for (Chunk chunk; !watch_.stopped(caller + thread) && chunks.next(chunk);) {
                if (threads > 1) floors.share(w.lists);
                const int allowed = rows_of(chunk, part, options_.allow, w.index.data());
                if (allowed == 0) continue;
                if (several_) expand(w.index.data(), allowed, gallery_.vectors, !options_.allow, w.vectors.data());
                const Pace::Way way = screened ? w.screening->pace.way() : Pace::kFloat32;
                if (way != Pace::kFloat32) {
                    scan_screened(chunk, allowed, terms, first, w);
                } else if (tiled) {
                    scan_tiles(chunk, allowed, tiles, first, w);
                    if (screened) w.screening->multiplied_all(allowed);
                } else {
                    scan_rows(chunk, allowed, terms, first, w);
                }
            }
        };
        Chunks sample(gallery_, rank > 0 ? rows_to_sample(rows) : rows), chunks(gallery_, rows);
        in_parallel(threads, [&](int thread) {
            Workspace& w = work[static_cast<size_t>(thread)];
            if (rank > 0) {
                for (Contenders& list : w.lists) list.rank = rank;
                look(sample, Part::kSample, thread, w);
                score_all_waiting(terms, first, w);
                for (size_t q = 0; q < w.lists.size(); ++q) {
                    w.lists[q].rank = 0;
                    w.expected[q] = w.lists[q].floor;
                }
            }
            look(chunks, rank > 0 ? Part::kRest : Part::kAll, thread, w);
            if (screened && !watch_.stopped(caller + thread)) score_all_waiting(terms, first, w);
        });
        std::vector<uint8_t> failed(static_cast<size_t>(count));
        if (watch_.stopped(caller)) return failed;
        if (options_.statistics) count_up(*options_.statistics, work);
        finish(first, count, work, caller);
        for (size_t q = 0; q < failed.size(); ++q) {
            for (const Workspace& w : work) failed[q] |= worst(q) < w.expected[q];
        }
        return failed;
    }

    void prepare(Workspace& w, const PreparedTerms& terms, int chunk_rows, bool tiled) {
        const int64_t count = terms.count();
        const size_t tile = static_cast<size_t>(options_.kernels->tile_rows);
        const size_t rows = several_ ? static_cast<size_t>(chunk_rows) : std::max(static_cast<size_t>(chunk_rows), tile);
        const size_t vectors = rows * static_cast<size_t>(gallery_.vectors);
        w.index.resize(rows);
        std::iota(w.index.begin(), w.index.end(), 0);
        if (several_) {
            w.vectors.resize(vectors);
            std::iota(w.vectors.begin(), w.vectors.end(), 0);
            // Of each query, or of the one that is looked at, and how far rounding reaches.
            w.largest.resize(((tiled ? static_cast<size_t>(count) : 1) * static_cast<size_t>(query_.terms) + 1) * rows);
        }
        w.sums.resize(rows);
        w.waiting.resize(rows);
        if (tiled) {
            const size_t size = tile * static_cast<size_t>(gallery_.dimension);
            w.values.resize(size);
            if (query_.weights) w.squares.resize(size);
            w.reach.resize(tile);
            w.terms.resize(static_cast<size_t>(count) * static_cast<size_t>(query_.terms) * tile);
        }
        // Of rows one by one, for few queries or where bytes left some.
        w.terms.resize(std::max(w.terms.size(), (static_cast<size_t>(query_.terms) + 1) * vectors));
        w.hits.resize(static_cast<size_t>(count) * static_cast<size_t>(room_));
        w.lists.resize(static_cast<size_t>(count));
        w.expected.resize(static_cast<size_t>(count), -std::numeric_limits<double>::infinity());
        for (size_t q = 0; q < w.lists.size(); ++q) {
            w.lists[q].hits = &w.hits[q * static_cast<size_t>(room_)];
            w.lists[q].k = k_;
            w.lists[q].capacity = room_;
            const Rounding rounding = terms.rounding(static_cast<int64_t>(q), tiled);
            w.lists[q].slack = rounding.constant;
            w.lists[q].per_reach = rounding.per_reach;
        }
    }

    void scan_rows(const Chunk& chunk, int allowed, const PreparedTerms& terms, int64_t first, Workspace& w) {
        const char* base = row_address(gallery_, *chunk.block, chunk.start);
        const float* scales = scales_from(gallery_, *chunk.block, chunk.start);
        const int group = gallery_.vectors, count = allowed * group, rows = static_cast<int>(w.sums.size());
        const int32_t* index = several_ ? w.vectors.data() : w.index.data();
        const int stride = rows * group;
        for (int64_t q = 0; q < terms.count(); ++q) {
            options_.kernels->rows[gallery_.type](base, scales, index, count, terms.query(q), w.terms.data(), stride);
            if (chunk.block->odd_scales) mark_odd(scales, index, count, w.terms.data());
            float* found = w.terms.data();
            if (several_) {
                found = w.largest.data();
                options_.kernels->fold(w.terms.data(), query_.terms + (query_.weights ? 0 : 1), stride, count, group, 0,
                                       found, rows);
            }
            const float* reach = query_.weights ? nullptr : found + static_cast<ptrdiff_t>(query_.terms) * rows;
            collect(chunk, w.index.data(), allowed, found, reach, rows, first + q, w, w.lists[static_cast<size_t>(q)]);
        }
    }

    void scan_screened(const Chunk& chunk, int allowed, const PreparedTerms& terms, int64_t first, Workspace& w) {
        constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
        if (chunk.block != w.looked_at.block || chunk.start + chunk.count - w.looked_at.start > kMostRows) {
            score_all_waiting(terms, first, w);
            w.looked_at = chunk;
        }
        const Gallery& seen = options_.copy ? *options_.copy->rows : gallery_;
        const Block& block = seen.blocks[static_cast<size_t>(chunk.block - gallery_.blocks.data())];
        const char* base = row_address(seen, block, chunk.start);
        // A weighted term does not depend on a row's scale, if that is an ordinary one.
        const float* scales = query_.weights && !block.odd_scales ? nullptr : scales_from(seen, block, chunk.start);
        w.screening->look(seen.type, base, scales, w.index.data(), allowed,
                          static_cast<int32_t>(chunk.start - w.looked_at.start), w.lists,
                          [&](size_t q) { score_waiting(q, Screening::kPending * 3 / 4, terms, first, w); });
    }

    void score_all_waiting(const PreparedTerms& terms, int64_t first, Workspace& w) {
        for (size_t q = 0; q < w.lists.size(); ++q) score_waiting(q, 0, terms, first, w);
    }

    // Scores rows that wait as they are stored, best bounds first, until no more than `keep` may reach the floor.
    void score_waiting(size_t q, size_t keep, const PreparedTerms& terms, int64_t first, Workspace& w) {
        Contenders& list = w.lists[q];
        const int stride = static_cast<int>(w.sums.size());
        const int most = static_cast<int>(std::min<int64_t>(std::max(kTurn, list.reaching() / 8), stride));
        bool beyond = false;
        for (int found; (found = w.screening->take(q, list.floor, keep, most, w.waiting.data())) > 0; beyond = true) {
            if (beyond) w.screening->scored_beyond(found);
            const Chunk& from = w.looked_at;
            const char* base = row_address(gallery_, *from.block, from.start);
            const float* scales = scales_from(gallery_, *from.block, from.start);
            options_.kernels->rows[gallery_.type](base, scales, w.waiting.data(), found, terms.query(static_cast<int64_t>(q)),
                                                  w.terms.data(), stride);
            if (from.block->odd_scales) mark_odd(scales, w.waiting.data(), found, w.terms.data());
            const float* reach = query_.weights ? nullptr : w.terms.data() + static_cast<ptrdiff_t>(query_.terms) * stride;
            collect(from, w.waiting.data(), found, w.terms.data(), reach, stride, first + static_cast<int64_t>(q), w, list);
            // Each look passes over all that is kept: over many, when an eighth of what counts is new.
            if (list.reaching() <= 8 * stride || list.size - list.looked >= list.reaching() / 8) list.drop_beaten();
        }
    }

    static void count_up(BatchStatistics& statistics, const std::vector<Workspace>& work) {
        for (const Workspace& w : work) {
            if (!w.screening) continue;
            statistics.multiplied += w.screening->multiplied;
            statistics.bounded += w.screening->bounded;
            statistics.listed += w.screening->listed;
        }
    }

    void scan_tiles(const Chunk& chunk, int allowed, const PreparedTerms::Tiles& tiles, int64_t first, Workspace& w) {
        const Kernels& kernels = *options_.kernels;
        const char* base = row_address(gallery_, *chunk.block, chunk.start);
        const float* scales = scales_from(gallery_, *chunk.block, chunk.start);
        const int tile = kernels.tile_rows, group = gallery_.vectors, vectors = allowed * group;
        const int rows = static_cast<int>(w.sums.size()), pairs = static_cast<int>(w.lists.size()) * query_.terms;
        float* reach_of_items = w.largest.data() + (several_ ? static_cast<ptrdiff_t>(pairs) * rows : 0);
        for (int start = 0; start < vectors; start += tile) {
            const int count = std::min(tile, vectors - start);
            const int32_t* index = (several_ ? w.vectors.data() : w.index.data()) + start;
            // A weighted term does not depend on a vector's scale.
            kernels.pack[gallery_.type](base, query_.weights ? nullptr : scales, index, count, gallery_.dimension,
                                        w.values.data(), query_.weights ? w.squares.data() : nullptr, w.reach.data());
            float* to = w.terms.data();
            for (const TileTerms& of : tiles.groups) {
                kernels.tile(w.values.data(), w.squares.data(), of, to);
                to += static_cast<ptrdiff_t>(of.pairs) * tile;
            }
            if (chunk.block->odd_scales) {
                for (int p = 0; p < pairs; p += query_.terms) {
                    mark_odd(scales, index, count, w.terms.data() + static_cast<ptrdiff_t>(p) * tile);
                }
            }
            if (several_) {
                const int item = start / group, phase = start % group;
                kernels.fold(w.terms.data(), pairs, tile, count, group, phase, w.largest.data() + item, rows);
                if (!query_.weights) {
                    kernels.fold(w.reach.data(), 1, tile, count, group, phase, reach_of_items + item, rows);
                }
                continue;
            }
            collect_all(chunk, index, count, w.terms.data(), query_.weights ? nullptr : w.reach.data(), tile, first, w);
        }
        if (several_) {
            collect_all(chunk, w.index.data(), allowed, w.largest.data(), query_.weights ? nullptr : reach_of_items, rows,
                        first, w);
        }
    }

    void collect_all(const Chunk& chunk, const int32_t* index, int count, float* terms, const float* reach, int stride,
                     int64_t first, Workspace& w) {
        for (size_t q = 0; q < w.lists.size(); ++q) {
            collect(chunk, index, count, terms, reach, stride, first + static_cast<int64_t>(q), w, w.lists[q]);
            terms += static_cast<ptrdiff_t>(query_.terms) * stride;
        }
    }

    void collect(const Chunk& chunk, const int32_t* index, int count, float* terms, const float* reach, int stride,
                 int64_t q, Workspace& w, Contenders& list) {
        constexpr int kGroup = 64;
        float* sums = w.sums.data();
        for (int start = 0; start < count; start += kGroup) {
            const int end = std::min(start + kGroup, count);
            if (!options_.kernels->sum_above(terms + start, query_.terms, stride, end - start,
                                             reach ? reach + start : nullptr, list.per_reach, list.threshold,
                                             sums + start)) {
                continue;
            }
            for (int i = start; i < end; ++i) {
                const float reached = reach ? list.per_reach * reach[i] : 0;
                if (sums[i] + reached <= list.threshold) continue;
                Hit hit{sums[i], reached + list.slack, chunk.first_row + index[i]};
                // Nothing is known of the row but that it may be good.
                if (!(std::fabs(hit.score) + hit.slack <= kLargestTerm)) {
                    hit.score = w.exact.score(*chunk.block, chunk.start + index[i], q, nullptr);
                    hit.slack = 0;
                    if (!(hit.score >= list.floor)) continue;
                }
                list.push(hit);
                if (list.full()) {
                    list.make_room([&](Hit* hits, int64_t size) { return w.exact.settle(q, hits, size); });
                }
            }
        }
    }

    // NaN sends a row to its exact score.
    static void mark_odd(const float* scales, const int32_t* index, int count, float* terms) {
        for (int i = 0; i < count; ++i) {
            if (!ordinary_scale(scales[index[i]])) terms[i] = std::numeric_limits<float>::quiet_NaN();
        }
    }

    void finish(int64_t first, int64_t count, std::vector<Workspace>& work, int caller) {
        std::atomic<int64_t> next{0};
        const int64_t most = std::min(k_, rows_);
        const double exact = static_cast<double>(count) * static_cast<double>(most) * gallery_.vectors *
                             gallery_.dimension * query_.terms;
        const int threads = useful_threads(static_cast<int>(work.size()), exact);
        std::vector<std::vector<Hit>> merged(static_cast<size_t>(threads));
        for (std::vector<Hit>& hits : merged) hits.resize(static_cast<size_t>(room_) * work.size());
        for (Workspace& w : work) w.exact.expect(k_);
        in_parallel(threads, [&](int thread) {
            Contenders all = work[0].lists[0];
            all.hits = merged[static_cast<size_t>(thread)].data();
            for (int64_t q; !watch_.stopped(caller + thread) && (q = next.fetch_add(1)) < count;) {
                all.size = 0;
                all.floor = -std::numeric_limits<double>::infinity();
                for (Workspace& w : work) {
                    const Contenders& list = w.lists[static_cast<size_t>(q)];
                    std::copy(list.hits, list.hits + list.size, all.hits + all.size);
                    all.size += list.size;
                    all.raise(list.floor);
                }
                all.drop_beaten();
                work[static_cast<size_t>(thread)].exact.answer(first + q, all.hits, all.size, k_, answer_);
            }
        });
    }

    const Gallery& gallery_;
    const Query& query_;
    const int64_t k_;
    const Options& options_;
    const Answer& answer_;
    const int64_t rows_;
    const bool several_ = gallery_.vectors > 1;
    Watch watch_;
    std::atomic<bool> surprised_{false};  // by more than chance explains
    int64_t room_ = 0;
    int threads_ = 1;
};

}  // namespace

int64_t Gallery::count() const {
    return std::accumulate(blocks.begin(), blocks.end(), int64_t{0},
                           [](int64_t sum, const Block& block) { return sum + block.count; });
}

Gallery Gallery::flat() const {
    Gallery out{type, dimension, blocks};
    for (Block& block : out.blocks) block.count *= vectors;
    return out;
}

bool screens(const Gallery& gallery, const Query& query, int64_t queries, const Options& options) {
    if (!options.kernels->screen || gallery.vectors > 1 || options.products == Products::kFloat32 ||
        gallery.dimension > kMostScreened) {
        return false;
    }
    return options.products == Products::kBytes ||
           (queries >= kTileQueries && products_a_row(query, queries) >= kScreenProducts &&
            gallery.dimension >= kScreenDimension);
}

void topk(const Gallery& gallery, const Query& query, int64_t k, const Options& options, const Answer& answer) {
    Scan(gallery, query, k, options, answer).run();
}

uint64_t read_all(const Gallery& gallery, const Options& options) {
    Chunks chunks(gallery, static_cast<int>(std::max<size_t>(1, (1 << 20) / item_bytes(gallery))));
    std::atomic<uint64_t> total{0};
    Watch watch(options);
    in_parallel(options.threads, [&](int thread) {
        uint64_t sum = 0;
        for (Chunk chunk; !watch.stopped(thread) && chunks.next(chunk);) {
            sum += options.kernels->sum(row_address(gallery, *chunk.block, chunk.start),
                                        static_cast<size_t>(chunk.count) * item_bytes(gallery));
        }
        total += sum;
    });
    watch.check();
    return total;
}

}  // namespace cir
