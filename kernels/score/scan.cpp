// The scan of a gallery in its stored type: chunks of rows, blocks of queries, top-k behind a running threshold.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "hits.h"
#include "parallel.h"
#include "rescore.h"
#include "terms.h"

namespace cir {
namespace {

// From so many queries on, transposing a tile of rows pays: measured in README.md.
constexpr int64_t kTileQueries = 6;
// Terms of so many queries stay in the second-level cache while a tile of rows passes over them.
constexpr int64_t kQueryBlock = 128;
constexpr size_t kHitBytes = 64 << 20;

// What one thread needs, allocated before the threads start.
struct Workspace {
    std::vector<int32_t> index;
    LineVector<float> terms, sums, values, squares;
    std::vector<HitList> lists;  // one a query
    std::vector<Hit> hits;
};

class Scan {
public:
    Scan(const Gallery& gallery, const Query& query, int64_t k, const Options& options, const Answer& answer)
        : gallery_(gallery), query_(query), k_(k), options_(options), answer_(answer), rows_(gallery.count()) {}

    void run() {
        const double work = static_cast<double>(rows_) * gallery_.dimension * static_cast<double>(query_.queries) *
                            query_.terms;
        threads_ = useful_threads(options_.threads, work);
        room_ = HitList::room(k_, rows_);
        const size_t one = static_cast<size_t>(room_) * static_cast<size_t>(threads_) * sizeof(Hit);
        const int64_t block = std::clamp<int64_t>(static_cast<int64_t>(kHitBytes / one), 1, kQueryBlock);
        for (int64_t first = 0; first < query_.queries; first += block) {
            queries(first, std::min(block, query_.queries - first));
        }
    }

private:
    void queries(int64_t first, int64_t count) {
        const PreparedTerms terms(query_, first, count, gallery_.dimension);
        const bool tiled = count >= kTileQueries;
        const PreparedTerms::Tiles tiles = tiled ? terms.tiles(*options_.kernels) : PreparedTerms::Tiles{};
        // Several queries pass over a chunk: it has to stay in the second-level cache.
        const int most = query_.queries > 1 ? 256 : std::numeric_limits<int>::max();
        const int rows = std::min(chunk_rows(gallery_, threads_), most);
        std::vector<Workspace> work(static_cast<size_t>(threads_));
        for (Workspace& w : work) prepare(w, count, rows, tiled);

        Chunks chunks(gallery_, rows);
        in_parallel(threads_, [&](int thread) {
            Workspace& w = work[static_cast<size_t>(thread)];
            for (Chunk chunk; chunks.next(chunk);) {
                const int allowed = allowed_rows(chunk, options_.allow, w.index.data());
                if (allowed == 0) continue;
                if (tiled) {
                    scan_tiles(chunk, allowed, tiles, first, w);
                } else {
                    scan_rows(chunk, allowed, terms, first, w);
                }
            }
        });
        finish(terms, first, work);
    }

    void prepare(Workspace& w, int64_t count, int chunk_rows, bool tiled) {
        const size_t tile = static_cast<size_t>(options_.kernels->tile_rows);
        const size_t rows = std::max(static_cast<size_t>(chunk_rows), tile);
        w.index.resize(rows);
        std::iota(w.index.begin(), w.index.end(), 0);
        w.sums.resize(rows);
        if (tiled) {
            const size_t size = tile * static_cast<size_t>(gallery_.dimension);
            w.values.resize(size);
            if (query_.weights) w.squares.resize(size);
            w.terms.resize(static_cast<size_t>(count) * static_cast<size_t>(query_.terms) * tile);
        } else {
            w.terms.resize(static_cast<size_t>(query_.terms) * rows);
        }
        w.hits.resize(static_cast<size_t>(count) * static_cast<size_t>(room_));
        w.lists.resize(static_cast<size_t>(count));
        for (size_t q = 0; q < w.lists.size(); ++q) {
            w.lists[q].hits = &w.hits[q * static_cast<size_t>(room_)];
            w.lists[q].k = k_;
            w.lists[q].capacity = room_;
        }
    }

    void scan_rows(const Chunk& chunk, int allowed, const PreparedTerms& terms, int64_t first, Workspace& w) {
        const char* base = row_address(*chunk.block, gallery_.type, gallery_.dimension, chunk.start);
        const float* scales = chunk.block->scales ? chunk.block->scales + chunk.start : nullptr;
        const int stride = static_cast<int>(w.sums.size());
        for (int64_t q = 0; q < terms.count(); ++q) {
            options_.kernels->rows[gallery_.type](base, scales, w.index.data(), allowed, terms.query(q),
                                                  w.terms.data(), stride);
            collect(chunk, w.index.data(), allowed, w.terms.data(), stride, first + q, w,
                    w.lists[static_cast<size_t>(q)]);
        }
    }

    void scan_tiles(const Chunk& chunk, int allowed, const PreparedTerms::Tiles& tiles, int64_t first, Workspace& w) {
        const Kernels& kernels = *options_.kernels;
        const char* base = row_address(*chunk.block, gallery_.type, gallery_.dimension, chunk.start);
        // A weighted term does not depend on a row's scale.
        const float* scales = chunk.block->scales && !query_.weights ? chunk.block->scales + chunk.start : nullptr;
        const int tile = kernels.tile_rows;
        for (int start = 0; start < allowed; start += tile) {
            const int count = std::min(tile, allowed - start);
            const int32_t* index = w.index.data() + start;
            kernels.pack[gallery_.type](base, scales, index, count, gallery_.dimension, w.values.data(),
                                        query_.weights ? w.squares.data() : nullptr);
            float* to = w.terms.data();
            for (const TileTerms& group : tiles.groups) {
                kernels.tile(w.values.data(), w.squares.data(), group, to);
                to += static_cast<ptrdiff_t>(group.pairs) * tile;
            }
            const float* from = w.terms.data();
            for (size_t q = 0; q < w.lists.size(); ++q) {
                collect(chunk, index, count, from, tile, first + static_cast<int64_t>(q), w, w.lists[q]);
                from += static_cast<ptrdiff_t>(query_.terms) * tile;
            }
        }
    }

    void collect(const Chunk& chunk, const int32_t* index, int count, const float* terms, int stride, int64_t q,
                 Workspace& w, HitList& list) {
        constexpr int kGroup = 64;
        float* sums = w.sums.data();
        for (int start = 0; start < count; start += kGroup) {
            const int end = std::min(start + kGroup, count);
            if (!options_.kernels->sum_above(terms + start, query_.terms, stride, end - start, list.threshold,
                                             sums + start)) {
                continue;
            }
            for (int i = start; i < end; ++i) {
                float score = sums[i];
                if (score <= list.threshold) continue;
                if (!std::isfinite(score)) {
                    score = careful_score(gallery_, *chunk.block, chunk.start + index[i], query_, q, nullptr);
                }
                if (score > list.threshold) list.push(score, chunk.first_row + index[i]);
            }
        }
    }

    void finish(const PreparedTerms& terms, int64_t first, std::vector<Workspace>& work) {
        std::atomic<int64_t> next{0};
        const double rescoring = static_cast<double>(terms.count()) * static_cast<double>(std::min(k_, rows_)) *
                                 gallery_.dimension * query_.terms;
        const int threads = useful_threads(threads_, rescoring);
        const int64_t most = std::min(k_, rows_);
        std::vector<Rescorer> rescorers;
        std::vector<std::vector<Hit>> merged(static_cast<size_t>(threads));
        rescorers.reserve(static_cast<size_t>(threads));
        for (int i = 0; i < threads; ++i) {
            rescorers.emplace_back(gallery_, query_, *options_.kernels, most);
            merged[static_cast<size_t>(i)].resize(static_cast<size_t>(room_) * work.size());
        }
        in_parallel(threads, [&](int thread) {
            Hit* all = merged[static_cast<size_t>(thread)].data();
            for (int64_t q; (q = next.fetch_add(1)) < terms.count();) {
                int64_t size = 0;
                for (Workspace& w : work) {
                    const HitList& list = w.lists[static_cast<size_t>(q)];
                    std::copy(list.hits, list.hits + list.size, all + size);
                    size += list.size;
                }
                const int64_t kept = std::min(size, k_);
                std::nth_element(all, all + kept, all + size, better);
                rescorers[static_cast<size_t>(thread)].answer(terms.query(q), first + q, all, kept, k_, answer_);
            }
        });
    }

    const Gallery& gallery_;
    const Query& query_;
    const int64_t k_;
    const Options& options_;
    const Answer& answer_;
    const int64_t rows_;
    int64_t room_ = 0;
    int threads_ = 1;
};

}  // namespace

int64_t Gallery::count() const {
    return std::accumulate(blocks.begin(), blocks.end(), int64_t{0},
                           [](int64_t sum, const Block& block) { return sum + block.count; });
}

void topk(const Gallery& gallery, const Query& query, int64_t k, const Options& options, const Answer& answer) {
    Scan(gallery, query, k, options, answer).run();
}

uint64_t read_all(const Gallery& gallery, const Options& options) {
    Chunks chunks(gallery, static_cast<int>(std::max<size_t>(1, (1 << 20) / row_bytes(gallery.type, gallery.dimension))));
    std::atomic<uint64_t> total{0};
    in_parallel(options.threads, [&](int) {
        uint64_t sum = 0;
        for (Chunk chunk; chunks.next(chunk);) {
            sum += options.kernels->sum(row_address(*chunk.block, gallery.type, gallery.dimension, chunk.start),
                                        static_cast<size_t>(chunk.count) * row_bytes(gallery.type, gallery.dimension));
        }
        total += sum;
    });
    return total;
}

}  // namespace cir
