/* What a step needs beside weights: scratch that grows with the largest batch, checks, and the plan of attention. */
#ifndef MIDWATCH_MEMORY_H
#define MIDWATCH_MEMORY_H

/* Zeroed and aligned to a cache line; NULL if memory is out. */
static void *fresh(int64_t bytes) {
    size_t size = ((size_t)(bytes > 0 ? bytes : 1) + 63) & ~(size_t)63;
    void *p = aligned_alloc(64, size);
    if (p) memset(p, 0, size);
    return p;
}

INLINE int32_t up_to(int32_t n, int32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

static int acts_new(Acts *a, int rows, int groups) {
    int64_t places = (int64_t)rows * groups;
    a->rows = rows;
    a->groups = groups;
    a->q = fresh(places * GROUP);
    a->scale = fresh(places * 4);
    a->scaled_sum = fresh(places * 4);
    a->start = fresh(places * 4);
    return a->q && a->scale && a->scaled_sum && a->start;
}

static void acts_free(Acts *a) {
    free(a->q);
    free(a->scale);
    free(a->scaled_sum);
    free(a->start);
    memset(a, 0, sizeof *a);
}

static void free_rows(Step *s) {
    free(s->x), free(s->y), free(s->qkv), free(s->attended), free(s->inner), free(s->normed), free(s->lora);
    free(s->slot_of_row);
    s->x = s->y = s->qkv = s->attended = s->inner = s->normed = s->lora = NULL;
    s->slot_of_row = NULL;
    acts_free(&s->hidden_acts), acts_free(&s->attended_acts), acts_free(&s->inner_acts);
    s->rows_room = 0;
}

static int32_t largest_rank(const Step *s) {
    int32_t rank = 1;
    for (int64_t i = 0; i < (int64_t)s->model.num_slots * s->model.num_layers * LORA_LINEARS; i++)
        if (s->model.loras[i].rank > rank) rank = s->model.loras[i].rank;
    return rank;
}

static int reserve_rows(Step *s) {
    const Model *m = &s->model;
    int rows = s->batch.num_tokens, logits = s->batch.num_logits;
    int64_t best = (int64_t)gemm_items(s, m->head.tiles, logits > 0 ? logits : 1) * logits;
    if (best > s->logits_room) {
        free(s->best);
        s->best = fresh(best * (int64_t)sizeof(Best));
        if (!s->best) return s->logits_room = 0;
        s->logits_room = (int32_t)best;
    }
    if (rows > s->rows_room) {
        free_rows(s);
        s->qkv_stride = (m->num_heads + 2 * m->num_kv_heads) * m->head_dim;
        s->attended_stride = up_to(m->num_heads * m->head_dim, GROUP);
        s->inner_stride = m->inner_p;
        s->x = fresh((int64_t)rows * m->hidden_p * 4);
        s->y = fresh((int64_t)rows * m->hidden_p * 4);
        s->qkv = fresh((int64_t)rows * s->qkv_stride * 4);
        s->attended = fresh((int64_t)rows * s->attended_stride * 4);
        s->slot_of_row = fresh((int64_t)rows * 4);
        int good = acts_new(&s->hidden_acts, rows, m->hidden_p / GROUP) &&
                   acts_new(&s->attended_acts, rows, s->attended_stride / GROUP) &&
                   acts_new(&s->inner_acts, rows, m->inner_p / GROUP);
        if (!good || !s->x || !s->y || !s->qkv || !s->attended || !s->slot_of_row) return free_rows(s), 0;
        s->rows_room = rows;
    }
    s->adapted = 0;
    for (int i = 0; i < s->batch.num_sequences; i++) s->adapted |= s->batch.adapters[i] >= 0;
    for (int i = 0; i < s->batch.num_sequences; i++)
        for (int r = s->batch.starts[i]; r < s->batch.starts[i + 1]; r++) s->slot_of_row[r] = s->batch.adapters[i];
    if (s->adapted) {
        int32_t rank = largest_rank(s);
        if (!s->normed) s->normed = fresh((int64_t)s->rows_room * m->hidden_p * 4);
        if (!s->inner) s->inner = fresh((int64_t)s->rows_room * m->inner_p * 4);
        if (rank > s->lora_rank || !s->lora) {
            free(s->lora);
            s->lora = fresh((int64_t)s->rows_room * 3 * rank * 4);
            s->lora_rank = rank;
        }
        if (!s->normed || !s->inner || !s->lora) return 0;
    }
    return 1;
}

INLINE int queries_of_block(const Model *m) {
    int group = m->num_heads / m->num_kv_heads;
    return group * (group < QUERIES ? QUERIES / group : 1);
}

static int reserve_scratch(Step *s) {
    const Model *m = &s->model;
    int64_t queries = queries_of_block(m), splits = m->max_positions / SPLIT + 1, dims = m->head_dim;
    int64_t sizes[] = {queries * SPLIT * 4, queries * QUERY_STRIDE * 4, 2 * dims * LANES * 2,
                       2 * LANES * 4,       (SPLIT + LANES) * (int64_t)sizeof(void *), SPLIT * 4,
                       splits * queries * (dims + 2) * 4 + 64};
    int64_t bytes = 0, parts = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < parts; i++) bytes += (sizes[i] + 127) & ~(int64_t)127;
    s->scratch = fresh(s->threads->count * (int64_t)sizeof(AttentionScratch));
    s->scratch_memory = fresh(s->threads->count * bytes);
    if (!s->scratch || !s->scratch_memory) return 0;
    for (int t = 0; t < s->threads->count; t++) {
        char *at = (char *)s->scratch_memory + t * bytes;
        char *place[7];
        for (int i = 0; i < parts; i++) place[i] = at, at += (sizes[i] + 127) & ~(int64_t)127;
        AttentionScratch filled = {(float *)place[0], (float *)place[1],       (uint16_t *)place[2], (float *)place[3],
                                   (const void **)(void *)place[4], (float *)place[5], (float *)place[6]};
        s->scratch[t] = filled;
    }
    return 1;
}

/* Let go of everything. NULL is fine. */
void mw_free(Step *s) {
    if (!s) return;
    threads_free(s->threads);
    free_rows(s);
    free(s->best), free(s->all_blocks), free(s->all_items), free(s->partials), free((void *)s->pending);
    free(s->scratch), free(s->scratch_memory);
    free(s);
}

/* 0, or what would index memory wrongly: 1 token, 2 position, 3 slot, 4 starts, 5 length, 6 block table, 7 rows with
   logits, 8 adapter. */
static int mw_check(const Model *m, const Batch *b) {
    int64_t places = (int64_t)m->num_blocks * m->block_size;
    for (int t = 0; t < b->num_tokens; t++) {
        if ((uint32_t)b->token_ids[t] >= (uint32_t)m->vocab) return 1;
        if ((uint32_t)b->positions[t] >= (uint32_t)m->max_positions) return 2;
        if (b->slots[t] < 0 || b->slots[t] >= places) return 3;
    }
    if (b->starts[0] != 0 || b->starts[b->num_sequences] != b->num_tokens) return 4;
    for (int i = 0; i < b->num_sequences; i++) {
        int rows = b->starts[i + 1] - b->starts[i], length = b->lengths[i];
        if (rows < 1) return 4;
        if (length < rows || length > m->max_positions || (int64_t)b->table_width * m->block_size < length) return 5;
        for (int r = 0; r < rows; r++)
            if (b->positions[b->starts[i] + r] != length - rows + r) return 2;
        for (int j = 0; j * (int64_t)m->block_size < length; j++)
            if ((uint32_t)b->tables[(int64_t)i * b->table_width + j] >= (uint32_t)m->num_blocks) return 6;
        int slot = b->adapters[i];
        if (slot < -1 || slot >= m->num_slots || (slot >= 0 && !m->loaded[slot])) return 8;
    }
    for (int r = 0; r < b->num_logits; r++)
        if (b->logit_rows[r] <= (r ? b->logit_rows[r - 1] : -1) || b->logit_rows[r] >= b->num_tokens) return 7;
    return 0;
}

/* Cut the rows of every sequence into blocks for layers of one window. Returns how many, and their splits. */
static int cut_blocks(const Step *s, int window, AttentionBlock *out, int64_t *splits) {
    const Batch *b = &s->batch;
    int group = s->model.num_heads / s->model.num_kv_heads, height = queries_of_block(&s->model) / group, count = 0;
    for (int i = 0; i < b->num_sequences; i++)
        for (int row = b->starts[i]; row < b->starts[i + 1]; row += height, count++) {
            int rows = b->starts[i + 1] - row < height ? b->starts[i + 1] - row : height;
            int position = b->positions[row], low = window ? position - window + 1 : 0, high = position + rows;
            if (low < 0) low = 0;
            int first = low / SPLIT, last = (high - 1) / SPLIT;
            if (out) out[count] = (AttentionBlock){i, row, rows, position, low, high, first, last - first + 1};
            *splits += last - first + 1;
        }
    return count;
}

static AttentionPlan *plan_of(Step *s, int window) {
    for (int i = 0; i < s->num_plans; i++)
        if (s->plans[i].window == window) return &s->plans[i];
    return NULL;
}

static int plan_attention(Step *s) {
    const Model *m = &s->model;
    int64_t blocks = 0, items = 0, floats = 0;
    s->num_plans = 0;
    for (int layer = 0; layer < m->num_layers; layer++) {
        if (plan_of(s, m->layers[layer].window)) continue;
        AttentionPlan *p = &s->plans[s->num_plans++]; /* the caller allows MAX_PLANS windows */
        int64_t splits = 0;
        p->window = m->layers[layer].window;
        p->num_blocks = cut_blocks(s, p->window, NULL, &splits);
        p->apart = splits > p->num_blocks && splits * m->num_kv_heads <= APART_ITEMS;
        p->num_items = p->apart ? (int32_t)splits : p->num_blocks;
        blocks += p->num_blocks;
        items += p->num_items;
        int64_t needed = p->apart ? splits * m->num_kv_heads * queries_of_block(m) * (m->head_dim + 2) : 0;
        if (needed > floats) floats = needed;
    }
    if (blocks > s->blocks_room) {
        free(s->all_blocks), free((void *)s->pending);
        s->all_blocks = fresh(blocks * (int64_t)sizeof(AttentionBlock));
        s->pending = fresh(blocks * m->num_kv_heads * (int64_t)sizeof(int32_t));
        s->blocks_room = s->all_blocks && s->pending ? blocks : 0;
    }
    if (items > s->items_room) {
        free(s->all_items);
        s->all_items = fresh(items * (int64_t)sizeof(AttentionItem));
        s->items_room = s->all_items ? items : 0;
    }
    if (floats > s->partials_room) {
        free(s->partials);
        s->partials = fresh(floats * 4);
        s->partials_room = s->partials ? floats : 0;
    }
    if (blocks > s->blocks_room || items > s->items_room || floats > s->partials_room) return 0;
    int64_t block_at = 0, item_at = 0;
    for (int i = 0; i < s->num_plans; i++) {
        AttentionPlan *p = &s->plans[i];
        int64_t ignored = 0;
        p->blocks = s->all_blocks + block_at;
        p->items = s->all_items + item_at;
        cut_blocks(s, p->window, p->blocks, &ignored);
        for (int b = 0, at = 0; b < p->num_blocks; b++) {
            for (int n = 0; n < m->num_kv_heads; n++)
                atomic_store_explicit(&s->pending[(block_at + b) * m->num_kv_heads + n], p->blocks[b].splits,
                                      memory_order_relaxed);
            for (int split = 0; split < (p->apart ? p->blocks[b].splits : 1); split++, at++) {
                AttentionItem item = {b, split};
                p->items[at] = item;
            }
        }
        block_at += p->num_blocks;
        item_at += p->num_items;
    }
    return 1;
}

#endif
