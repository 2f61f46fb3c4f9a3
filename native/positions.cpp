#include "positions.h"

#include "ggml.h"

#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

namespace {

// Of the batch that this thread computes. A copy, since its tensor's memory is used again later on.
thread_local std::vector<int32_t> batch_positions;

using Table = std::vector<int32_t>;

constexpr size_t MOST_TABLES = 1 << 14;  // caches of the past are not told apart from those that live

std::shared_mutex                      mutex;
std::unordered_map<const void *, Table> tables;  // by where a layer's keys lie

const ggml_tensor * root(const ggml_tensor * t) { return t->view_src ? t->view_src : t; }

Table * find_table(const void * keys) {
    std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = tables.find(keys);
    return found != tables.end() ? &found->second : nullptr;
}

// The table of a cache of `num_cells`, new if need be; nullptr when there are too many.
Table * table_of(const void * keys, size_t num_cells) {
    if (Table * table = find_table(keys); table && table->size() == num_cells) return table;
    std::unique_lock<std::shared_mutex> lock(mutex);
    if (tables.size() >= MOST_TABLES && !tables.count(keys)) return nullptr;
    Table & table = tables[keys];
    table.assign(num_cells, -1);
    return &table;
}

}  // namespace

void note_positions(const ggml_tensor * rope) {
    const ggml_tensor * positions = rope->src[1];
    const auto * first = static_cast<const int32_t *>(positions->data);
    batch_positions.assign(first, first + positions->ne[0]);
}

void note_cells(const ggml_tensor * set_rows) {
    const ggml_tensor *cells = set_rows->src[1], *cache = root(set_rows);
    if (cells->ne[0] != static_cast<int64_t>(batch_positions.size())) return;
    const int64_t num_cells = set_rows->ne[1];
    Table * table = table_of(cache->data, num_cells);
    const auto * cell = static_cast<const int64_t *>(cells->data);
    for (size_t i = 0; table && i < batch_positions.size(); i++)
        if (cell[i] >= 0 && cell[i] < num_cells) (*table)[cell[i]] = batch_positions[i];
}

const int32_t * cache_positions(const ggml_tensor * keys, int64_t num_cells) {
    if (keys->data != root(keys)->data) return nullptr;  // a later stream of a cache that is cut into streams
    const Table * table = find_table(keys->data);
    return table && table->size() >= static_cast<size_t>(num_cells) ? table->data() : nullptr;
}
