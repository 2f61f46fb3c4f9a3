// What conditioned heads draft for a step: asked level by level, the guesses that are worth their place chosen after
// each, beside what was looked up. gorgon/engine/heads_source.py and gorgon/speculation/ say the same in Python, which
// is used where fixed trees or another device take part; tests compare the two.
#include "guesses.h"
#include "noise.h"

#include "ggml-backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr double MOST = 1.0 - 1e-4;  // what states more could not be corrected: survival.py

// Seconds of a call by its rows, following what calls take: cost.py.
struct CallCost {
    double base, per_row, rate;
    double at(size_t rows) const { return base + per_row * rows; }
    void observe(size_t rows, double seconds) {
        const double factor = 1.0 + rate * (std::min(seconds / at(rows), 2.0) - 1.0);
        base *= factor, per_row *= factor;
    }
};

}  // namespace

// A step's drafts, as Python writes it: first what is packed anew for every step, then what comes of it. The numbers told
// besides lie behind each other in `ints`, `doubles` and `longs`, in the order of the pointers into them.
struct Step {
    int64_t  num_noted, num_rows, num_asked, num_roots, num_seconds, num_chains;
    double * top;                   // mean probability of best guesses by depth, from 1; learns
    double   top_rate, least_gain;  // how fast; times as many tokens a second that drafts must bring
    CallCost propose, deepen;
    int64_t  num_heads, top_k, num_tested;
    // what comes of it
    int64_t num_drafts;
    double  rate, spent, survival;  // tokens/s; seconds for asking; sum of the drafts' survivals
    int32_t * calls;                // [num_heads] rows of each call of the heads,
    double *  times;                // and the seconds that it took
    int32_t * tested;               // [num_asked][num_tested] likeliest guesses about the next token,
    double *  tested_probs;         // and how probable each row of them is together
    int32_t * sizes;                // [num_roots] of the trees
    int32_t *parents, *tokens, *sources;  // of their nodes, [num_roots + num_drafts], depth first, likelier siblings first
    double *  probs;
    // into `ints`
    const int32_t *noted, *noted_sizes, *noted_rows;  // sequences with new states, how many, and their rows, the latest first
    const int32_t *asked, *ids;    // roots that the heads are asked about, and their sequences
    const int32_t *last;           // [num_asked][num_pairs] the tokens after their states
    const int32_t *rooms;          // how deep the tree of each root may be
    const int32_t *chains;         // looked up: a root, a number of tokens, the tokens; and so on
    // into `doubles`
    const double * seconds;        // t(n), n = 0 ...
    const double * shifts;         // [num_asked][num_heads] of what the heads state: survival.py
    const double * strengths;      // [num_asked] how much of the noise of their draws counts: coupling.py; 0: none of it
    const double * chain_probs;    // how probable each token of a chain is after the one before
    // into `longs`
    const uint64_t * draws;        // [num_asked][2] seeds of that noise, and the number of the next draw

    void read(const int32_t * ints, const double * doubles, const uint64_t * longs, int64_t num_pairs) {
        const auto next = [](auto & from, int64_t count) { return std::exchange(from, from + count); };
        noted = next(ints, num_noted), noted_sizes = next(ints, num_noted), noted_rows = next(ints, num_rows);
        asked = next(ints, num_asked), ids = next(ints, num_asked), last = next(ints, num_asked * num_pairs);
        rooms = next(ints, num_roots), chains = ints;
        seconds = next(doubles, num_seconds), shifts = next(doubles, num_asked * num_heads), strengths = next(doubles, num_asked);
        chain_probs = doubles, draws = longs;
    }
};

namespace {

enum Source : int32_t { ROOT, HEADS, LOOKUP, BOTH };

struct Node {
    double  survival, prob;
    int32_t token, parent, root, depth, source, next = -1;  // the node below in a chain
};

class Choice {
public:
    explicit Choice(Step & step) : step(step), nodes(step.num_roots), level(step.asked, step.asked + step.num_asked), rows(step.num_roots) {
        for (int32_t root = 0; root < step.num_roots; root++) nodes[root] = {1, 1, 0, root, root, 0, ROOT};
        for (int32_t row = 0; row < step.num_asked; row++) rows[step.asked[row]] = row;
        choose(0);
        if (!step.num_chains) return;
        add_chains();
        rank(0);
    }

    // Adds the guesses below the nodes in `level`, a row each, and leaves those there that are worth asking about.
    void add(int64_t depth, int32_t * tokens, float * stated, double spent) {
        const double  least = floor();
        const size_t  first = nodes.size();
        const int64_t k     = step.top_k;
        double best = 0;
        rows.resize(first);
        std::vector<int32_t> named;
        for (size_t row = 0; row < level.size(); row++) {
            const Node   parent = nodes[level[row]];
            const size_t added  = nodes.size();
            couple(rows[parent.root], depth, tokens + row * k, stated + row * k);
            const double odds   = std::exp(-step.shifts[rows[parent.root] * step.num_heads + depth - 1]);
            best += corrected(stated[row * k], odds);
            if (depth == 1) test(row, tokens + row * k, stated + row * k, odds);
            for (int64_t rank = 0; rank < k; rank++) {
                const double  prob  = corrected(stated[row * k + rank], odds);
                const int32_t token = tokens[row * k + rank];
                if (parent.survival * prob < least) break;
                if (parent.next >= 0 && nodes[parent.next].token == token) {
                    agree(parent.next, prob);
                    rows[parent.next] = static_cast<int32_t>(row);
                    named.push_back(parent.next);
                } else {
                    nodes.push_back({parent.survival * prob, prob, token, level[row], parent.root, static_cast<int32_t>(depth), HEADS});
                    rows.push_back(static_cast<int32_t>(row));
                }
            }
            for (size_t node = added; node < nodes.size(); node++) named.push_back(static_cast<int32_t>(node));
        }
        step.top[depth] += step.top_rate * (best / level.size() - step.top[depth]);
        rank(spent);
        level.clear();
        if (depth < step.num_heads) deepen(named, step.top[depth + 1]);
    }

    // How many nodes to ask about; the row of guesses that each was taken from, and its token.
    size_t num_wanted() const { return level.size(); }
    std::pair<int32_t, int32_t> wanted(size_t i) const { return {rows[level[i]], nodes[level[i]].token}; }

    void finish() {
        std::vector<std::vector<int32_t>> below(nodes.size());
        step.survival = 0;
        for (int64_t i = 0; i < step.num_drafts; i++) {
            step.survival += nodes[ranked[i]].survival;
            below[nodes[ranked[i]].parent].push_back(ranked[i]);
        }
        std::vector<int32_t> places(nodes.size());
        int64_t at = 0;
        for (int32_t root = 0; root < step.num_roots; root++) {
            const int64_t first = at;
            std::vector<int32_t> stack = {root};
            while (!stack.empty()) {
                const int32_t node = stack.back();
                stack.pop_back();
                places[node]     = static_cast<int32_t>(at - first);
                step.parents[at] = places[nodes[node].parent];
                step.tokens[at]  = nodes[node].token;
                step.sources[at] = nodes[node].source;
                step.probs[at++] = nodes[node].prob;
                stack.insert(stack.end(), below[node].rbegin(), below[node].rend());
            }
            step.sizes[root] = static_cast<int32_t>(at - first);
        }
    }

private:
    Step &               step;
    std::vector<Node>    nodes;   // the roots first
    std::vector<int32_t> level;   // nodes to ask about
    std::vector<int32_t> rows;    // of guesses in their level, by node
    std::vector<int32_t> ranked;  // drafts, likeliest first
    double               least_ranked = 0;
    std::vector<std::pair<double, int32_t>> coupled;  // weights and tokens of a row

    void sort(std::vector<int32_t> & which) const {
        std::stable_sort(which.begin(), which.end(), [this](int32_t a, int32_t b) { return nodes[a].survival > nodes[b].survival; });
    }

    void add_chains() {
        const double    least = floor();
        const int32_t * told  = step.chains;
        const double *  probs = step.chain_probs;
        for (int64_t chain = 0; chain < step.num_chains; chain++) {
            const int32_t   root = told[0], size = told[1];
            const int32_t * tokens = told + 2;
            int32_t parent = root;
            for (int32_t i = 0; i < size; i++) {
                const double survival = nodes[parent].survival * probs[i];
                if (survival < least) break;
                nodes[parent].next = static_cast<int32_t>(nodes.size());
                nodes.push_back({survival, probs[i], tokens[i], parent, root, i + 1, LOOKUP});
                parent = nodes[parent].next;
            }
            told = tokens + size, probs += size;
        }
    }

    // The heads, too, name a node of a chain: it fails to come only where both are wrong.
    void agree(int32_t node, double prob) {
        nodes[node].source = BOTH;
        nodes[node].prob   = 1.0 - (1.0 - nodes[node].prob) * (1.0 - prob);
        for (; node >= 0; node = nodes[node].next) nodes[node].survival = nodes[nodes[node].parent].survival * nodes[node].prob;
    }

    // What guesses are worth once the noise of their draw is known, likeliest first: coupling.py.
    void couple(int32_t asked, int64_t depth, int32_t * tokens, float * probs) {
        const double strength = step.strengths[asked];
        if (strength == 0) return;
        const Key key = key_of(step.draws[2 * asked], step.draws[2 * asked + 1] + depth - 1);
        double others = 1, sum = 0;
        coupled.clear();
        for (int64_t rank = 0; rank < step.top_k; rank++) {
            coupled.push_back({probs[rank] * std::pow(exponential(key, tokens[rank]), -strength), tokens[rank]});
            others -= probs[rank], sum += coupled.back().first;
        }
        sum += std::max(others, 0.0) * std::tgamma(1 - strength);
        std::stable_sort(coupled.begin(), coupled.end(), [](const auto & a, const auto & b) { return a.first > b.first; });
        for (const auto & [weight, token] : coupled) *tokens++ = token, *probs++ = static_cast<float>(weight / sum);
    }

    static double corrected(double stated, double odds) {
        const double p = std::min(stated, MOST);
        return p / (p + (1.0 - p) * odds);
    }

    // Notes what the next token will tell of the heads.
    void test(size_t row, const int32_t * tokens, const float * stated, double odds) {
        std::copy_n(tokens, step.num_tested, step.tested + row * step.num_tested);
        step.tested_probs[row] = 0;
        for (int64_t rank = 0; rank < step.num_tested; rank++) step.tested_probs[row] += corrected(stated[rank], odds);
    }

    // Takes new nodes into `ranked` and chooses.
    void rank(double spent) {
        const size_t known = ranked.size(), num_room = step.num_seconds - 1 - step.num_roots;
        ranked.resize(nodes.size() - step.num_roots);
        std::iota(ranked.begin() + known, ranked.end(), static_cast<int32_t>(known + step.num_roots));
        sort(ranked);
        if (0 < num_room && num_room <= ranked.size()) least_ranked = nodes[ranked[num_room - 1]].survival;
        choose(spent);
    }

    // The number of drafts that brings most tokens a second: budget.choose.
    void choose(double spent) {
        double tokens = static_cast<double>(step.num_roots);
        const double plain = tokens / (step.seconds[step.num_roots] + spent);
        double best_rate = step.least_gain * plain;
        int64_t best = 0, most = std::min<int64_t>(ranked.size(), step.num_seconds - 1 - step.num_roots);
        for (int64_t count = 1; count <= most; count++) {
            tokens += nodes[ranked[count - 1]].survival;
            const double rate = tokens / (step.seconds[step.num_roots + count] + spent);
            if (rate > best_rate) best = count, best_rate = rate;
        }
        step.num_drafts = best, step.rate = best ? best_rate : plain, step.spent = spent;
    }

    // What a draft beside so many tokens must survive with to pay: budget.least_survival.
    double least_survival(int64_t num_tokens) const {
        double flattest = std::numeric_limits<double>::infinity();
        for (int64_t n = num_tokens + 1; n < step.num_seconds; n++)
            flattest = std::min(flattest, (step.seconds[n] - step.seconds[num_tokens]) / (n - num_tokens));
        return num_tokens + 1 < step.num_seconds ? std::max(0.0, step.rate * flattest) : 1.0;
    }

    double floor() const { return std::max(least_survival(step.num_roots), least_ranked); }

    // Of the nodes that the heads named, those whose best guess below should pay for asking.
    void deepen(const std::vector<int32_t> & named, double top) {
        const double price = least_survival(step.num_roots + step.num_drafts);
        for (const int32_t node : named)
            if (nodes[node].depth < step.rooms[nodes[node].root]) level.push_back(node);
        sort(level);
        size_t best = 0;
        double most = 0, total = 0;
        for (size_t count = 1; count <= level.size(); count++) {
            total += nodes[level[count - 1]].survival * top - price;
            const double profit = total - count * (step.rate * step.deepen.per_row) - step.rate * step.deepen.base;
            if (profit > most) best = count, most = profit;
        }
        level.resize(best);
    }
};

}  // namespace

// A graph of the heads for some number of rows, and where it reads and writes.
struct HeadsGraph {
    ggml_cgraph * graph;
    float *       pairs;   // [rows][num_pairs, or 1 for nodes][2][num_embd]: states and the embeddings of the tokens after them
    float *       bias;    // of nodes: [rows][num_hidden]
    const float * state;   // [rows][num_embd]
    const float * shares;  // of roots: [rows][num_embd + num_hidden], the bias behind
    const float * found;   // see gorgon_kernels_find_best
};

struct Heads {
    ggml_backend_t    backend;
    const HeadsGraph *roots, *nodes;   // by the number of rows, up to max_rows
    bool (*build)(bool nodes, int64_t rows);  // the graph for so many rows; whether it could
    int64_t           max_rows, num_embd, num_hidden, num_pairs, num_parts;
    const char *      table;           // the model's token embeddings
    size_t            table_row;
    void (*to_float)(const void * row, float * floats, int64_t n);  // nullptr: they are floats
    const int32_t *   token_map;
    const Map *       maps;            // by depth; nullptr: probabilities are as they should be
};

namespace {

// What the heads said about a level of nodes.
struct Level {
    std::vector<int32_t> tokens;
    std::vector<float>   probs, states, biases;

    void resize(size_t rows, const Heads & heads, int64_t top_k) {
        tokens.resize(rows * top_k), probs.resize(rows * top_k), states.resize(rows * heads.num_embd), biases.resize(rows * heads.num_hidden);
    }
};

// A state and the embedding of the token after it.
void fill_pair(const Heads & heads, const HeadsGraph & graph, int64_t place, const float * state, int32_t token) {
    const char * row = heads.table + token * heads.table_row;
    float *      out = graph.pairs + 2 * place * heads.num_embd;
    std::copy_n(state, heads.num_embd, out);
    out += heads.num_embd;
    heads.to_float ? heads.to_float(row, out, heads.num_embd) : void(std::memcpy(out, row, heads.table_row));
}

// Copies the states that are noted, `hidden` [..][num_embd], before those known.
void settle(const Heads & heads, const Step & step, float * known, const float * hidden) {
    const int32_t * row = step.noted_rows;
    for (int64_t i = 0; i < step.num_noted; i++) {
        const int64_t size = step.noted_sizes[i] * heads.num_embd, all = heads.num_pairs * heads.num_embd;
        float * own = known + step.noted[i] * all;
        std::memmove(own + size, own, (all - size) * sizeof(float));
        for (int64_t at = 0; at < size; at += heads.num_embd) std::copy_n(hidden + *row++ * heads.num_embd, heads.num_embd, own + at);
    }
}

// Runs a graph for rows `first` ... of a level.
bool run(const Heads & heads, const HeadsGraph & graph, size_t first, size_t rows, int64_t top_k, int64_t depth, Level & level) {
    if (ggml_backend_graph_compute(heads.backend, graph.graph) != GGML_STATUS_SUCCESS) return false;
    const Map * map = heads.maps ? heads.maps + depth - 1 : nullptr;
    gorgon_kernels_rank(graph.found, rows, heads.num_parts, top_k, heads.token_map, map, map != nullptr, &level.tokens[first * top_k], &level.probs[first * top_k]);
    std::copy_n(graph.state, rows * heads.num_embd, &level.states[first * heads.num_embd]);
    const float * bias  = graph.shares ? graph.shares + heads.num_embd : graph.bias;
    const int64_t width = heads.num_hidden + (graph.shares ? heads.num_embd : 0);
    for (size_t row = 0; bias && row < rows; row++) std::copy_n(bias + row * width, heads.num_hidden, &level.biases[(first + row) * heads.num_hidden]);
    return true;
}

// Asks about all rows of a level, in pieces that a graph takes; `fill(graph, i, row)` writes what row i of a graph reads.
template <class Fill> bool ask(const Heads & heads, bool nodes, size_t total, int64_t top_k, int64_t depth, Level & level, const Fill & fill) {
    level.resize(total, heads, top_k);
    for (size_t first = 0; first < total; first += heads.max_rows) {
        const size_t rows = std::min<size_t>(total - first, heads.max_rows);
        const HeadsGraph & graph = (nodes ? heads.nodes : heads.roots)[rows];
        if (!graph.graph && !heads.build(nodes, rows)) return false;
        for (size_t i = 0; i < rows; i++) fill(graph, i, first + i);
        if (!run(heads, graph, first, rows, top_k, depth, level)) return false;
    }
    return true;
}

}  // namespace

// Chooses the drafts of `step`. `known` [ids][num_pairs][num_embd] are the latest states of all sequences, the latest first,
// without those that are noted, rows of `hidden`. The number of calls of the heads, -1 if one failed.
EXPORT int64_t gorgon_kernels_draft(const Heads * heads, Step * step, float * known, const float * hidden, const int32_t * ints, const double * doubles, const uint64_t * longs) {
    using Clock = std::chrono::steady_clock;
    step->read(ints, doubles, longs, heads->num_pairs);
    settle(*heads, *step, known, hidden);
    Choice choice(*step);
    Level  levels[2];
    double spent = 0;
    for (int64_t depth = 1; depth <= step->num_heads; depth++) {
        Level &level = levels[depth % 2], &above = levels[1 - depth % 2];
        CallCost & cost = depth == 1 ? step->propose : step->deepen;
        const auto began = Clock::now();
        const size_t count = choice.num_wanted();
        const auto fill_root = [&](const HeadsGraph & graph, size_t i, size_t row) {
            for (int64_t pair = 0; pair < heads->num_pairs; pair++) {
                const float * state = known + (step->ids[row] * heads->num_pairs + pair) * heads->num_embd;
                fill_pair(*heads, graph, i * heads->num_pairs + pair, state, step->last[row * heads->num_pairs + pair]);
            }
        };
        const auto fill_node = [&](const HeadsGraph & graph, size_t i, size_t row) {
            const auto [from, token] = choice.wanted(row);
            fill_pair(*heads, graph, i, &above.states[from * heads->num_embd], token);
            if (graph.bias) std::copy_n(&above.biases[from * heads->num_hidden], heads->num_hidden, graph.bias + i * heads->num_hidden);
        };
        const bool done = depth == 1 ? ask(*heads, false, count, step->top_k, depth, level, fill_root) : ask(*heads, true, count, step->top_k, depth, level, fill_node);
        if (!done) return -1;
        const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
        step->calls[depth - 1] = static_cast<int32_t>(count), step->times[depth - 1] = seconds;
        cost.observe(count, seconds);
        spent += cost.at(count);
        choice.add(depth, level.tokens.data(), level.probs.data(), spent);
        if (!choice.num_wanted()) return choice.finish(), depth;
    }
    return choice.finish(), step->num_heads;
}

