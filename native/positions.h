// Which position of its text the token in each cell of a KV cache has. ggml's attention is told which
// cells a query sees, not in which order their tokens stand, and a cache that was in use for a while
// has them in any: llama.cpp puts new tokens into the holes that others left. So the positions are read
// off the graph: ROPE is given those of the batch, SET_ROWS the cells that its keys are written to.
#pragma once

#include <cstdint>

struct ggml_tensor;

// From a ROPE node, on the thread that will see this graph's SET_ROWS, too.
void note_positions(const ggml_tensor * rope);
// From a SET_ROWS node, before attention reads what it writes.
void note_cells(const ggml_tensor * set_rows);

// Positions by cell of the cache that `keys` views, -1 where unknown; nullptr when nothing is known of
// at least `num_cells` of it. What is there is right for every cell written since it was allocated.
const int32_t * cache_positions(const ggml_tensor * keys, int64_t num_cells);
