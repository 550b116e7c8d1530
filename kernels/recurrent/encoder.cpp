// The encoder around the kernels: weights in their order, groups of texts, threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "../threads.h"
#include "kernels.h"
#include "recurrent.h"

namespace cir {
namespace {

// Texts that go through a layer together, and their steps: beyond, weights are read hardly less often, and the input's
// products no longer stay in the second-level cache.
constexpr int kMostTexts = 16;
constexpr int64_t kMostSteps = 256;

// Times as many products as a scan must have for a second thread: a direction of some words is then 0.1 ms, twice what a
// thread takes to begin.
constexpr double kWorthAThread = 4;

int panels_of(int values, int units) { return (values + units - 1) / units; }

// `parts` matrices of (rows, inputs), one after the other, as panels: `units` rows of every part, and for each input their
// weights side by side, so that products read memory from the first to the last byte. Rows that are not there are zeros.
std::vector<float> panelled(const float* weights, int parts, int rows, int inputs, int units) {
    constexpr int kLine = 16;  // values of a cache line: a few of every row at a time, or each write would miss
    std::vector<float> out(size_t(panels_of(rows, units)) * inputs * parts * units);
    for (int first = 0; first < rows; first += units) {
        float* panel = out.data() + size_t(first) * inputs * parts;
        for (int begin = 0; begin < inputs; begin += kLine) {
            const int end = std::min(begin + kLine, inputs);
            for (int part = 0; part < parts; ++part) {
                for (int row = first; row < std::min(first + units, rows); ++row) {
                    const float* from = weights + (size_t(part) * rows + row) * inputs;
                    float* to = panel + size_t(part) * units + (row - first);
                    for (int i = begin; i < end; ++i) to[size_t(i) * parts * units] = from[i];
                }
            }
        }
    }
    return out;
}

}  // namespace

struct Encoder::Group {
    const int64_t* texts;  // the longest first
    int count;
    int64_t steps;  // of all of them
};

// What a thread works with. All of it is taken before threads run, where nothing may throw.
struct Encoder::Scratch {
    std::vector<float> inputs, states[2], cells;
    std::vector<const float*> words;

    void reserve(const std::vector<Group>& groups, size_t row, size_t state, bool has_cells) {
        int64_t steps = 0;
        int count = 0;
        for (const Group& group : groups) {
            steps = std::max(steps, group.steps);
            count = std::max(count, group.count);
        }
        inputs.resize(size_t(steps) * row);
        words.resize(size_t(steps));
        for (auto& values : states) values.resize(size_t(count) * state);
        if (has_cells) cells.resize(size_t(count) * state);
    }
};

Encoder::Encoder(const RecurrentText& text, const InstructionSet& set)
    : set_(set), shape_(text), panels_(panels_of(text.hidden, set.units)) {
    const int G = text.gates, H = text.hidden;
    for (int d = 0; d < text.directions; ++d) {
        const size_t values = size_t(d) * G * H;
        Direction direction;
        direction.input = panelled(text.input_weights + values * text.width, G, H, text.width, set.units);
        direction.recurrence = panelled(text.recurrent_weights + values * H, G, H, H, set.units);
        direction.bias = panelled(text.input_bias + values, G, H, 1, set.units);
        if (G == 3) direction.candidate_bias = panelled(text.candidate_bias + size_t(d) * H, 1, H, 1, set.units);
        directions_.push_back(std::move(direction));
    }
    if (text.projection) {
        const int inputs = text.directions * H, rows = panels_of(text.out, kLinearParts);
        std::vector<float> weights(size_t(kLinearParts) * rows * inputs), bias(size_t(kLinearParts) * rows);
        std::copy_n(text.projection, size_t(text.out) * inputs, weights.begin());
        std::copy_n(text.projection_bias, text.out, bias.begin());
        projection_ = panelled(weights.data(), kLinearParts, rows, inputs, set.units);
        projection_bias_ = panelled(bias.data(), kLinearParts, rows, 1, set.units);
    }
}

void Encoder::encode(const Texts& texts, int threads, float* out) const {
    const int directions = shape_.directions;
    std::vector<int64_t> order(texts.count);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return texts.lengths[a] > texts.lengths[b]; });
    const std::vector<Group> groups = grouped(texts, order);
    const int64_t tasks = int64_t(groups.size()) * directions;
    const int64_t steps = std::accumulate(texts.lengths, texts.lengths + texts.count, int64_t{0});
    const double products = double(steps) * directions * shape_.gates * shape_.hidden * (double(shape_.width) + shape_.hidden);
    const int wanted = int(std::clamp<int64_t>(useful_threads(threads, products / kWorthAThread), 1, std::max<int64_t>(tasks, 1)));
    const size_t state = size_t(panels_) * set_.units;
    std::vector<Scratch> scratch(wanted);
    for (Scratch& mine : scratch) mine.reserve(groups, state * shape_.gates, state, shape_.gates == 4);
    std::vector<float> pooled(size_t(texts.count) * directions * shape_.hidden);
    std::atomic<int64_t> next{0};
    in_parallel(wanted, [&](int thread) {
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            run(texts, groups[task / directions], int(task % directions), scratch[thread], pooled.data());
        }
    });
    finish(pooled.data(), int(texts.count), out);
}

std::vector<Encoder::Group> Encoder::grouped(const Texts& texts, const std::vector<int64_t>& order) const {
    std::vector<Group> groups;
    for (const int64_t& text : order) {
        const int64_t steps = texts.lengths[text];
        if (groups.empty() || groups.back().count == kMostTexts || groups.back().steps + steps > kMostSteps) {
            groups.push_back({&text, 0, 0});
        }
        ++groups.back().count;
        groups.back().steps += steps;
    }
    return groups;
}

// One direction of a group of texts.
void Encoder::run(const Texts& texts, const Group& group, int d, Scratch& mine, float* pooled) const {
    const Direction& layer = directions_[d];
    const int units = set_.units, gates = shape_.gates, hidden = shape_.hidden;
    const size_t state = size_t(panels_) * units, row = state * gates;
    int64_t first[kMostTexts], length[kMostTexts];  // the first of a text's rows of inputs, and their number
    int64_t rows = 0;
    for (int i = 0; i < group.count; ++i) {
        first[i] = rows;
        length[i] = texts.lengths[group.texts[i]];
        const int32_t* tokens = texts.tokens + group.texts[i] * texts.steps;
        for (int64_t t = 0; t < length[i]; ++t) {
            mine.words[rows++] = shape_.words + int64_t(tokens[d == 0 ? t : length[i] - 1 - t]) * shape_.width;
        }
    }
    for (int panel = 0; panel < panels_; ++panel) {
        const size_t at = size_t(panel) * gates * units;
        const Product product{layer.input.data() + at * shape_.width, shape_.width, layer.bias.data() + at, mine.words.data(),
                              int(rows), mine.inputs.data() + at, row};
        (gates == 3 ? set_.multiply3 : set_.multiply4)(product);
    }
    std::fill_n(mine.states[0].begin(), group.count * state, 0.f);
    if (gates == 4) std::fill_n(mine.cells.begin(), group.count * state, 0.f);
    const float* inputs[kMostTexts];
    int active = group.count;
    for (int64_t t = 0; t < length[0]; ++t) {
        while (length[active - 1] <= t) --active;
        const float* before = mine.states[t % 2].data();
        float* after = mine.states[(t + 1) % 2].data();
        for (int panel = 0; panel < panels_; ++panel) {
            const size_t at = size_t(panel) * units;
            for (int i = 0; i < active; ++i) inputs[i] = mine.inputs.data() + (first[i] + t) * row + at * gates;
            const Step step{layer.recurrence.data() + at * gates * hidden, hidden,
                            gates == 3 ? layer.candidate_bias.data() + at : nullptr, inputs, active, before, before + at,
                            after + at, gates == 4 ? mine.cells.data() + at : nullptr, state};
            (gates == 3 ? set_.step_gru : set_.step_lstm)(step);
        }
        for (int i = 0; i < active; ++i) {
            const float* from = after + i * state;
            float* to = pooled + (group.texts[i] * shape_.directions + d) * hidden;
            if (shape_.over_time && t > 0) {
                for (int u = 0; u < hidden; ++u) to[u] = to[u] >= from[u] ? to[u] : from[u];
            } else if (shape_.over_time || t + 1 == length[i]) {
                std::copy_n(from, hidden, to);
            }
        }
    }
}

// The linear layer and the length.
void Encoder::finish(const float* pooled, int count, float* out) const {
    const int64_t width = int64_t(shape_.directions) * shape_.hidden, values = shape_.out;
    if (projection_.empty()) {
        std::copy_n(pooled, count * width, out);
    } else {
        const int units = set_.units, rows = panels_of(shape_.out, kLinearParts), block = kLinearParts * units;
        std::vector<const float*> texts(count);
        for (int i = 0; i < count; ++i) texts[i] = pooled + i * width;
        std::vector<float> found(size_t(count) * block);
        for (int panel = 0; panel < panels_of(rows, units); ++panel) {
            set_.multiply4({projection_.data() + size_t(panel) * block * width, int(width),
                            projection_bias_.data() + size_t(panel) * block, texts.data(), count, found.data(), size_t(block)});
            for (int i = 0; i < count; ++i) {
                for (int part = 0; part < kLinearParts; ++part) {
                    const int unit = panel * units, to = part * rows + unit;
                    const int n = std::min({units, rows - unit, shape_.out - to});
                    if (n > 0) std::copy_n(found.data() + size_t(i) * block + part * units, n, out + i * values + to);
                }
            }
        }
    }
    if (shape_.least_square < 0) return;
    for (int i = 0; i < count; ++i) {
        float* text = out + i * values;
        double total = 0;
        for (int u = 0; u < values; ++u) total += double(text[u]) * text[u];
        const float square = float(total);
        const float factor = 1.f / std::sqrt(square < shape_.least_square ? shape_.least_square : square);
        for (int u = 0; u < values; ++u) text[u] *= factor;
    }
}

}  // namespace cir
