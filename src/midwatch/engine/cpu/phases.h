/* What one item of each phase computes. */
#ifndef MIDWATCH_PHASES_H
#define MIDWATCH_PHASES_H

typedef struct {
    int first, last;
} Rows;

INLINE Rows rows_of_item(int rows, int item) {
    if (rows <= 4) return (Rows){0, rows};
    int first = 4 * item, last = first + 4 < rows ? first + 4 : rows;
    return (Rows){first, last};
}

typedef struct {
    int first_unit, last_unit, first_block, last_block;
} GemmRange;

INLINE GemmRange gemm_range(int units, int rows, int item, int items) {
    int blocks = num_row_blocks(rows), row_chunks = (blocks + ROW_CHUNK - 1) / ROW_CHUNK;
    int unit_chunks = items / row_chunks, u = item / row_chunks, r = item % row_chunks;
    int last = (r + 1) * ROW_CHUNK < blocks ? (r + 1) * ROW_CHUNK : blocks;
    return (GemmRange){(int)((int64_t)u * units / unit_chunks), (int)((int64_t)(u + 1) * units / unit_chunks),
                       r * ROW_CHUNK, last};
}

INLINE const Lora *lora_of(const Step *s, int layer, int linear, int row) {
    int slot = s->slot_of_row[row];
    if (slot < 0) return NULL;
    const Lora *l = &s->model.loras[((int64_t)slot * s->model.num_layers + layer) * LORA_LINEARS + linear];
    return l->rank ? l : NULL;
}

INLINE float *lora_inner(const Step *s, int row, int which) {
    return s->lora + ((int64_t)row * 3 + which) * s->lora_rank;
}

/* b u for 16 columns of one row, added to `out`. `which` counts the linears that share an input. */
static void add_lora(const Step *s, int layer, int linear, int which, int row, int column, float *out) {
    const Lora *l = lora_of(s, layer, linear, row);
    if (!l) return;
    const float *u = lora_inner(s, row, which);
    vf sum = splat(0);
    for (int r = 0; r < l->rank; r++) sum = fmadd(splat(u[r]), load(l->b + (int64_t)r * l->b_stride + column), sum);
    store(out, load(out) + sum);
}

/* u = a x of the linears `first` to `first` + `count`, for the rows that have an adapter. */
static void lora_in(Step *s, int layer, int first, int count, const float *input, int stride, int item) {
    Rows rows = rows_of_item(s->batch.num_tokens, item);
    for (int row = rows.first; row < rows.last; row++)
        for (int which = 0; which < count; which++) {
            const Lora *l = lora_of(s, layer, first + which, row);
            if (!l) continue;
            const float *x = input + (int64_t)row * stride;
            for (int r = 0; r < l->rank; r++) {
                const float *a = l->a + (int64_t)r * stride;
                vf sum = splat(0);
                for (int k = 0; k < stride; k += LANES) sum = fmadd(load(a + k), load(x + k), sum);
                lora_inner(s, row, which)[r] = sum_lanes(sum);
            }
        }
}

/* The numbers of one row of a packed matrix. */
static void unpack_row(const Matrix *m, int row, float *out) {
    int bits, column = row % LANES;
    const uint8_t *w = tile_of(m, row / LANES, &bits);
    for (int g = 0; g < m->groups; g++) {
        const uint8_t *group = bits == 4 ? w + (size_t)g * GROUP4_BYTES : w + codes8(g);
        if (bits == 4) {
            float scale = half_to_float(((const uint16_t *)(group + 256))[column]);
            float offset = half_to_float(((const uint16_t *)(group + 288))[column]);
            for (int i = 0; i < 16; i++) {
                int both = group[64 * (i / 4) + 4 * column + i % 4];
                out[32 * g + i] = (float)(both & 15) * scale + offset;
                out[32 * g + 16 + i] = (float)(both >> 4) * scale + offset;
            }
        } else {
            float scale = half_to_float(((const uint16_t *)(w + scales8(g)))[column]);
            for (int i = 0; i < 32; i++)
                out[32 * g + i] = (float)(group[64 * (i / 4) + 4 * column + i % 4] - 128) * scale;
        }
    }
}

static void embed(Step *s, int item) {
    const Model *m = &s->model;
    Rows rows = rows_of_item(s->batch.num_tokens, item);
    for (int row = rows.first; row < rows.last; row++) {
        float *x = s->x + (int64_t)row * m->hidden_p;
        unpack_row(&m->embedding, s->batch.token_ids[row], x);
        for (int k = 0; k < m->hidden_p; k++) x[k] = k < m->hidden ? x[k] * m->embedding_scale : 0;
    }
}

INLINE float inverse_rms(const float *x, int padded, int count, float eps) {
    vf sum = splat(0), other = splat(0);
    for (int k = 0; k < padded; k += 32) {
        sum = fmadd(load(x + k), load(x + k), sum);
        other = fmadd(load(x + k + LANES), load(x + k + LANES), other);
    }
    return 1.0f / sqrtf(sum_lanes(sum + other) / (float)count + eps);
}

/* Normalise a row of x; to int8 as row `at` of a block, and to floats where `out` is given. */
INLINE void norm_row(const Step *s, const float *x, const float *weight, const Acts *a, RowBlock block, int at,
                     float *out) {
    const Model *m = &s->model;
    vf inverse = splat(inverse_rms(x, m->hidden_p, m->hidden, m->eps));
    for (int g = 0; g < m->hidden_p / GROUP; g++) {
        int k = g * GROUP;
        vf low = load(x + k) * inverse * load(weight + k);
        vf high = load(x + k + LANES) * inverse * load(weight + k + LANES);
        if (a) put_group(a, block, at, g, low, high);
        if (out) store(out + k, low), store(out + k + LANES, high);
    }
}

static void norm_phase(Step *s, const float *weight, int item) {
    int count = s->batch.num_tokens;
    Rows rows = rows_of_item(count, item);
    for (int row = rows.first; row < rows.last; row++) {
        RowBlock block = row_block(count, row_block_of(count, row));
        int64_t at = (int64_t)row * s->model.hidden_p;
        norm_row(s, s->x + at, weight, &s->hidden_acts, block, row - block.first, s->adapted ? s->normed + at : NULL);
    }
}

/* x += norm(y): the norms after attention and MLP. */
static void add_normed(Step *s, const float *weight, int item) {
    const Model *m = &s->model;
    Rows rows = rows_of_item(s->batch.num_tokens, item);
    for (int row = rows.first; row < rows.last; row++) {
        float *x = s->x + (int64_t)row * m->hidden_p, *y = s->y + (int64_t)row * m->hidden_p;
        vf inverse = splat(inverse_rms(y, m->hidden_p, m->hidden, m->eps));
        for (int k = 0; k < m->hidden_p; k += LANES)
            store(x + k, load(x + k) + load(y + k) * inverse * load(weight + k));
    }
}

static void final_norm(Step *s, int item) {
    const Model *m = &s->model;
    const Batch *b = &s->batch;
    if (!b->hidden) {
        Rows rows = rows_of_item(b->num_logits, item);
        for (int r = rows.first; r < rows.last; r++) {
            RowBlock block = row_block(b->num_logits, row_block_of(b->num_logits, r));
            norm_row(s, s->x + (int64_t)b->logit_rows[r] * m->hidden_p, m->final_norm, &s->hidden_acts, block,
                     r - block.first, NULL);
        }
        return;
    }
    Rows rows = rows_of_item(b->num_tokens, item);
    for (int row = rows.first, r = 0; row < rows.last; row++) {
        float *y = s->y + (int64_t)row * m->hidden_p;
        const float *x = s->x + (int64_t)row * m->hidden_p;
        while (r < b->num_logits && b->logit_rows[r] < row) r++;
        int wanted = r < b->num_logits && b->logit_rows[r] == row;
        RowBlock block = wanted ? row_block(b->num_logits, row_block_of(b->num_logits, r)) : (RowBlock){0, 0};
        norm_row(s, x, m->final_norm, wanted ? &s->hidden_acts : NULL, block, r - block.first, y);
        memcpy(b->hidden + (int64_t)row * m->hidden, y, sizeof(float) * (size_t)m->hidden);
    }
}

/* ---- queries, keys, values ---- */

INLINE void norm_head(float *x, const float *weight, int dims, float eps) {
    vf sum = splat(0);
    for (int d = 0; d < dims; d += LANES) sum = fmadd(load(x + d), load(x + d), sum);
    vf inverse = splat(1.0f / sqrtf(sum_lanes(sum) / (float)dims + eps));
    for (int d = 0; d < dims; d += LANES) store(x + d, load(x + d) * inverse * load(weight + d));
}

INLINE void rotate(float *x, const float *cosine, const float *sine, int half) {
    int j = 0;
    for (; j + LANES <= half; j += LANES) {
        vf a = load(x + j), b = load(x + j + half), c = load(cosine + j), s = load(sine + j);
        store(x + j, fmadd(a, c, -b * s));
        store(x + j + half, fmadd(a, s, b * c));
    }
    for (; j < half; j++) { /* heads of 16, 48, 80 ... */
        float a = x[j], b = x[j + half];
        x[j] = a * cosine[j] - b * sine[j];
        x[j + half] = a * sine[j] + b * cosine[j];
    }
}

/* Write one vector to the pool; `stride` is from one dimension to the next. */
INLINE void write_pool(const Model *m, void *pool, float *scales, int64_t at, int64_t scale_at, int stride,
                       const float *x) {
    int dims = m->head_dim;
    if (!m->kv_int8) {
        uint16_t *out = (uint16_t *)pool + at, numbers[LANES];
        for (int d = 0; d < dims; d += LANES) {
            store_bf16(numbers, load(x + d));
            for (int i = 0; i < LANES; i++) out[(int64_t)(d + i) * stride] = numbers[i];
        }
        return;
    }
    float largest = 0;
    for (int d = 0; d < dims; d++) largest = fmaxf(largest, fabsf(x[d]));
    float inverse = largest > 0 ? 127.0f / largest : 0;
    int8_t *out = (int8_t *)pool + at;
    for (int d = 0; d < dims; d++) out[(int64_t)d * stride] = (int8_t)lrintf(x[d] * inverse);
    scales[scale_at] = largest / 127.0f;
}

static void finish_head(Step *s, const Layer *l, int layer, int head, int row) {
    const Model *m = &s->model;
    int dims = m->head_dim, size = m->block_size, first_value = m->num_heads + m->num_kv_heads;
    float *x = s->qkv + (int64_t)row * s->qkv_stride + head * dims;
    if (l->qkv_bias)
        for (int d = 0; d < dims; d++) x[d] += l->qkv_bias[head * dims + d];
    if (s->adapted) {
        int linear = head < m->num_heads ? LORA_Q : head < first_value ? LORA_K : LORA_V;
        int part = head - (linear == LORA_Q ? 0 : linear == LORA_K ? m->num_heads : first_value);
        for (int d = 0; d < dims; d += LANES) add_lora(s, layer, linear, linear - LORA_Q, row, part * dims + d, x + d);
    }
    if (head < first_value) {
        const float *norm = head < m->num_heads ? l->q_norm : l->k_norm;
        int64_t at = (int64_t)s->batch.positions[row] * (dims / 2);
        if (norm) norm_head(x, norm, dims, m->eps);
        rotate(x, l->cosine + at, l->sine + at, dims / 2);
    }
    if (head < m->num_heads) return;
    int value = head >= first_value, n = head - (value ? first_value : m->num_heads), slot = s->batch.slots[row];
    int64_t place = slot % size, of_head = ((int64_t)layer * m->num_blocks + slot / size) * m->num_kv_heads + n;
    int64_t at = of_head * dims * size + (value ? place * dims : place);
    if (value)
        write_pool(m, m->v, m->v_scale, at, of_head * size + place, 1, x);
    else
        write_pool(m, m->k, m->k_scale, at, of_head * size + place, size, x);
}

static void qkv_phase(Step *s, const Layer *l, int layer, int item, int items) {
    const Model *m = &s->model;
    int rows = s->batch.num_tokens, tiles = m->head_dim / LANES;
    GemmRange range = gemm_range(m->num_heads + 2 * m->num_kv_heads, rows, item, items);
    float out[ROWS * LANES] __attribute__((aligned(64)));
    for (int head = range.first_unit; head < range.last_unit; head++)
        for (int b = range.first_block; b < range.last_block; b++) {
            RowBlock block = row_block(rows, b);
            for (int t = head * tiles; t < (head + 1) * tiles; t++) {
                tile_product(&l->qkv, t, &s->hidden_acts, block, out);
                for (int r = 0; r < block.rows; r++)
                    store(s->qkv + (int64_t)(block.first + r) * s->qkv_stride + t * LANES, load(out + r * LANES));
            }
            for (int r = 0; r < block.rows; r++) finish_head(s, l, layer, head, block.first + r);
        }
}

/* ---- attention ---- */

static void put_attended(Step *s, int row, int head, const float *out) {
    int rows = s->batch.num_tokens, dims = s->model.head_dim;
    if (s->adapted || dims % GROUP)
        memcpy(s->attended + (int64_t)row * s->attended_stride + head * dims, out, sizeof(float) * (size_t)dims);
    if (dims % GROUP) return;
    RowBlock block = row_block(rows, row_block_of(rows, row));
    for (int d = 0; d < dims; d += GROUP)
        put_group(&s->attended_acts, block, row - block.first, (head * dims + d) / GROUP, load(out + d),
                  load(out + d + LANES));
}

static void attend_phase(Step *s, const Layer *l, int layer, int item, int thread) {
    const Model *m = &s->model;
    const AttentionPlan *plan = plan_of(s, l->window);
    int kv_head = item % m->num_kv_heads, group = m->num_heads / m->num_kv_heads, dims = m->head_dim;
    AttentionItem what = plan->items[item / m->num_kv_heads];
    const AttentionBlock *block = &plan->blocks[what.block];
    AttentionScratch *scratch = &s->scratch[thread];
    int queries = block->rows * group;
    int64_t of_layer = (int64_t)layer * m->num_blocks * m->num_kv_heads * m->block_size;
    int width = m->kv_int8 ? 1 : 2;
    Pages pages = {(const char *)m->k + of_layer * dims * width,
                   (const char *)m->v + of_layer * dims * width,
                   m->k_scale ? m->k_scale + of_layer : NULL,
                   m->v_scale ? m->v_scale + of_layer : NULL,
                   m->num_kv_heads, dims, m->block_size, m->kv_int8,
                   s->batch.tables + (int64_t)block->sequence * s->batch.table_width};
    for (int i = 0; i < queries; i++) {
        const float *row = s->qkv + (int64_t)(block->row + i / group) * s->qkv_stride;
        const float *q = row + (kv_head * group + i % group) * dims;
        for (int d = 0; d < dims; d += LANES)
            store(scratch->queries + (int64_t)i * QUERY_STRIDE + d, load(q + d) * splat(m->attention_scale));
    }
    int64_t step = (int64_t)queries * (dims + 2);
    int shared = plan->apart && block->splits > 1;
    float *partial = scratch->partial;
    if (shared) {
        /* Splits of the blocks before: the plan lists a block's items side by side. */
        int64_t before = item / m->num_kv_heads - what.split;
        partial = s->partials + (before * m->num_kv_heads + (int64_t)kv_head * block->splits) *
                                    queries_of_block(m) * (dims + 2);
    }
    for (int split = shared ? what.split : 0; split < (shared ? what.split + 1 : block->splits); split++)
        attend_split(&pages, kv_head, queries, group, block->position, l->window, block->first_split + split,
                     block->low, block->high, scratch, partial + split * step);
    if (shared) {
        int64_t at = (plan->blocks - s->all_blocks + what.block) * m->num_kv_heads + kv_head;
        if (atomic_fetch_sub_explicit(&s->pending[at], 1, memory_order_acq_rel) != 1) return;
        atomic_store_explicit(&s->pending[at], block->splits, memory_order_relaxed); /* for the next layer */
    }
    for (int i = 0; i < queries; i++) {
        merge_splits(partial + (int64_t)i * (dims + 2), (size_t)step, block->splits, dims, scratch->queries);
        put_attended(s, block->row + i / group, kv_head * group + i % group, scratch->queries);
    }
}

static void quantize_attended(Step *s, int item) {
    int count = s->batch.num_tokens;
    Rows rows = rows_of_item(count, item);
    for (int row = rows.first; row < rows.last; row++) {
        RowBlock block = row_block(count, row_block_of(count, row));
        const float *x = s->attended + (int64_t)row * s->attended_stride;
        for (int g = 0; g < s->attended_stride / GROUP; g++)
            put_group(&s->attended_acts, block, row - block.first, g, load(x + g * GROUP), load(x + g * GROUP + LANES));
    }
}

/* ---- matrices whose output goes back to the residual ---- */

/* x += a product, or y = it where a norm comes between (`apart`). */
static void residual_phase(Step *s, const Matrix *m, const Acts *a, int linear, int apart, const Phase *phase,
                           int item) {
    int rows = s->batch.num_tokens, stride = s->model.hidden_p;
    GemmRange range = gemm_range(m->tiles, rows, item, phase->items);
    float out[ROWS * LANES] __attribute__((aligned(64)));
    for (int t = range.first_unit; t < range.last_unit; t++)
        for (int b = range.first_block; b < range.last_block; b++) {
            RowBlock block = row_block(rows, b);
            tile_product(m, t, a, block, out);
            for (int r = 0; r < block.rows; r++) {
                int64_t at = (int64_t)(block.first + r) * stride + t * LANES;
                if (s->adapted) add_lora(s, phase->layer, linear, 0, block.first + r, t * LANES, out + r * LANES);
                if (apart)
                    store(s->y + at, load(out + r * LANES));
                else
                    store(s->x + at, load(s->x + at) + load(out + r * LANES));
            }
        }
}

INLINE vf activate(vf gate, int gelu) {
    vf x = gate;
    if (gelu) x = splat(1.5957691216f) * fmadd(gate * gate * gate, splat(0.044715f), gate); /* 2 sqrt(2 / pi) */
    return gate / (splat(1.0f) + vexp(-x));
}

/* Tiles come as gate, up, gate, up: 32 columns of their product are one group of `down`'s input. */
static void gate_up_phase(Step *s, const Layer *l, int layer, int item, int items) {
    int rows = s->batch.num_tokens;
    GemmRange range = gemm_range(l->gate_up.tiles / 4, rows, item, items);
    float out[4][ROWS * LANES] __attribute__((aligned(64)));
    for (int g = range.first_unit; g < range.last_unit; g++)
        for (int b = range.first_block; b < range.last_block; b++) {
            RowBlock block = row_block(rows, b);
            for (int i = 0; i < 4; i++) tile_product(&l->gate_up, 4 * g + i, &s->hidden_acts, block, out[i]);
            for (int r = 0; r < block.rows; r++) {
                int row = block.first + r, at = r * LANES;
                if (s->adapted)
                    for (int i = 0; i < 4; i++) {
                        int linear = i % 2 ? LORA_UP : LORA_GATE;
                        add_lora(s, layer, linear, i % 2, row, g * GROUP + i / 2 * LANES, out[i] + at);
                    }
                vf low = activate(load(out[0] + at), s->model.gelu) * load(out[1] + at);
                vf high = activate(load(out[2] + at), s->model.gelu) * load(out[3] + at);
                put_group(&s->inner_acts, block, r, g, low, high);
                if (s->adapted) {
                    float *inner = s->inner + (int64_t)row * s->inner_stride + g * GROUP;
                    store(inner, low), store(inner + LANES, high);
                }
            }
        }
}

/* ---- the head ---- */

/* Tiles whose logits are written together: as many rows as a batch has, written in turn, are as many streams, and the
   machine's prefetcher then loses that of the weights. */
#define HEAD_TILES 8

/* The logits of one row and tile to where they are wanted; `count` of its columns are of the vocabulary. */
INLINE void put_logits(float *logits, int count, int tile, float *x, Best *found) {
    if (count >= LANES)
        store(logits + tile * LANES, load(x));
    else
        for (int i = 0; i < LANES; i++) {
            if (i < count) logits[tile * LANES + i] = x[i];
            else x[i] = -INFINITY;
        }
    vi larger = load(x) > found->value;
    if (!any_lane(larger)) return;
    found->value = choose(larger, load(x), found->value);
    found->tile = (larger & tile) | (~larger & found->tile);
}

static void head_phase(Step *s, int item, int items) {
    const Model *m = &s->model;
    int rows = s->batch.num_logits;
    GemmRange range = gemm_range(m->head.tiles, rows, item, items);
    float out[HEAD_TILES][ROWS * LANES] __attribute__((aligned(64)));
    Best *best = s->best + (int64_t)item * rows;
    for (int r = 0; r < rows; r++) best[r] = (Best){splat(-INFINITY), (vi){0}};
    for (int first = range.first_unit; first < range.last_unit; first += HEAD_TILES)
        for (int b = range.first_block; b < range.last_block; b++) {
            RowBlock block = row_block(rows, b);
            int last = first + HEAD_TILES < range.last_unit ? first + HEAD_TILES : range.last_unit;
            for (int t = first; t < last; t++) tile_product(&m->head, t, &s->hidden_acts, block, out[t - first]);
            for (int r = 0; r < block.rows; r++) {
                float *logits = s->batch.logits + (int64_t)(block.first + r) * m->vocab;
                for (int t = first; t < last; t++)
                    put_logits(logits, m->vocab - t * LANES, t, out[t - first] + r * LANES, &best[block.first + r]);
            }
        }
}

/* The likeliest id of each row, the lowest of equals. */
static void greedy_phase(Step *s) {
    int rows = s->batch.num_logits;
    int row_chunks = (num_row_blocks(rows) + ROW_CHUNK - 1) / ROW_CHUNK;
    for (int r = 0; r < rows; r++) {
        float best = -INFINITY;
        int32_t id = 0;
        for (int item = row_block_of(rows, r) / ROW_CHUNK; item < s->best_items; item += row_chunks) {
            Best *found = &s->best[(int64_t)item * rows + r];
            for (int i = 0; i < LANES; i++) {
                int32_t candidate = found->tile[i] * LANES + i;
                if (found->value[i] > best || (found->value[i] == best && candidate < id))
                    best = found->value[i], id = candidate;
            }
        }
        s->batch.greedy[r] = id < s->model.vocab ? id : 0;
    }
}

#endif
