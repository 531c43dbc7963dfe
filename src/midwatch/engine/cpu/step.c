/* One step of a Llama-family decoder over paged keys and values: the whole of `forward` in one call.

   A step is a list of phases (threads.h). Per layer: norm; q, k, v with rotation and the write to the pool; attention
   with its merge; o; norm; gate and up with their product; down. Then the last norm, the head and the likeliest ids.
   Activations are float32 between phases and int8 in groups of 32 where a matrix multiplies them (gemm.h).
   The caller (backend.py) guarantees shapes; `mw_check` guards what indexes memory.
   Legend: T rows of the step, R rows with logits, K hidden, I inner, H query heads, N kv heads, D head size,
   V vocabulary; a width that ends in p is padded with zeros to a multiple of 32. */
#include "simd.h"

#include "attention.h"
#include "gemm.h"
#include "pack.h"
#include "threads.h"

#include <stdio.h>

enum { LORA_Q, LORA_K, LORA_V, LORA_O, LORA_GATE, LORA_UP, LORA_DOWN, LORA_LINEARS };

/* y += b (a x): `a` is [rank][padded in], `b` is [rank][padded out]. */
typedef struct {
    const float *a, *b;
    int32_t rank, b_stride;
} Lora;

typedef struct {
    Matrix qkv, o, gate_up, down;
    const float *attn_norm, *mlp_norm, *post_attn_norm, *post_mlp_norm, *q_norm, *k_norm, *qkv_bias;
    const float *cosine, *sine; /* [positions][D / 2] */
    int32_t window, unused;
} Layer;

typedef struct {
    int32_t num_layers, hidden, hidden_p, inner_p, num_heads, num_kv_heads, head_dim, vocab;
    int32_t block_size, num_blocks, max_positions, kv_int8, gelu, num_slots;
    float eps, attention_scale, embedding_scale, unused;
    const float *final_norm;
    Matrix embedding, head;
    const Layer *layers;
    void *k, *v;
    float *k_scale, *v_scale;
    const Lora *loras; /* [slots][layers][LORA_LINEARS] */
    const uint8_t *loaded; /* [slots] */
} Model;

typedef struct {
    int32_t num_tokens, num_sequences, table_width, num_logits;
    const int32_t *token_ids, *positions, *slots, *starts, *lengths, *tables, *logit_rows, *adapters;
    float *logits;  /* [R][V] */
    int64_t *greedy; /* [R] */
    float *hidden;  /* [T][K], or NULL */
} Batch;

/* A few consecutive rows of one sequence and the splits of positions that they see. */
typedef struct {
    int32_t sequence, row, rows, position, low, high, first_split, splits;
} AttentionBlock;

/* What one thread does: one block, and all of its splits or one. */
typedef struct {
    int32_t block, split;
} AttentionItem;

typedef struct {
    AttentionBlock *blocks;
    AttentionItem *items;
    int32_t num_blocks, num_items, window, apart; /* apart: a split is an item */
} AttentionPlan;

/* The largest logit of each of 16 columns, and the tile where it was first seen. */
typedef struct {
    vf value;
    vi tile;
} Best;

enum { EMBED, ATTN_NORM, LORA_IN, QKV, ATTEND, QUANTIZE_ATTENDED, LORA_O_IN, O, MLP_NORM, LORA_MLP_IN, GATE_UP,
       LORA_DOWN_IN, DOWN, POST_MLP, FINAL_NORM, HEAD, GREEDY };

#define MAX_PLANS 8
#define APART_ITEMS 1024

typedef struct {
    Model model;
    Threads *threads;
    Batch batch;
    int32_t rows_room, logits_room, inner_stride, qkv_stride, attended_stride, lora_rank;
    int adapted; /* some row of the step has an adapter */
    float *x, *y, *qkv, *attended, *inner, *normed, *lora;
    Acts hidden_acts, attended_acts, inner_acts;
    int32_t *slot_of_row;
    Best *best;
    int32_t best_items;
    AttentionPlan plans[MAX_PLANS];
    int32_t num_plans;
    int64_t blocks_room, items_room;
    AttentionBlock *all_blocks;
    AttentionItem *all_items;
    float *partials;
    int64_t partials_room;
    _Atomic int32_t *pending; /* splits that are left, per block and kv head */
    int64_t pending_room;
    AttentionScratch *scratch;
    void *scratch_memory;
    int64_t scratch_bytes;
} Step;

/* How many items a product is cut in: ROW_CHUNK row blocks by so many units that every thread gets several. Claiming
   an item costs about as much as 10 KB of weights, so a product of few rows is cut in few. */
#define ROW_CHUNK 8

static int32_t gemm_items(const Step *s, int units, int rows) {
    int per_thread = rows <= 4 ? 2 : rows <= 2 * ROWS ? 4 : 8;
    int row_chunks = (num_row_blocks(rows) + ROW_CHUNK - 1) / ROW_CHUNK, wanted = per_thread * s->threads->count;
    int unit_chunks = (wanted + row_chunks - 1) / row_chunks;
    if (unit_chunks > units) unit_chunks = units;
    return unit_chunks * row_chunks;
}

#include "memory.h"

#include "phases.h"

/* ---- the list of phases ---- */

static void add_phase(Step *s, int kind, int layer, int items) {
    Phase p = {kind, layer, items, 0};
    s->threads->phases[s->threads->num_phases++] = p;
}

static int row_items(int rows) { return rows <= 4 ? 1 : (rows + 3) / 4; }

static void list_phases(Step *s) {
    const Model *m = &s->model;
    int rows = s->batch.num_tokens, by_rows = row_items(rows), dims = m->head_dim;
    s->threads->num_phases = 0;
    add_phase(s, EMBED, 0, by_rows);
    for (int layer = 0; layer < m->num_layers; layer++) {
        const Layer *l = &m->layers[layer];
        const AttentionPlan *plan = plan_of(s, l->window);
        add_phase(s, ATTN_NORM, layer, by_rows);
        if (s->adapted) add_phase(s, LORA_IN, layer, by_rows);
        add_phase(s, QKV, layer, gemm_items(s, m->num_heads + 2 * m->num_kv_heads, rows));
        add_phase(s, ATTEND, layer, plan->num_items * m->num_kv_heads);
        if (dims % GROUP) add_phase(s, QUANTIZE_ATTENDED, layer, by_rows);
        if (s->adapted) add_phase(s, LORA_O_IN, layer, by_rows);
        add_phase(s, O, layer, gemm_items(s, l->o.tiles, rows));
        add_phase(s, MLP_NORM, layer, by_rows);
        if (s->adapted) add_phase(s, LORA_MLP_IN, layer, by_rows);
        add_phase(s, GATE_UP, layer, gemm_items(s, l->gate_up.tiles / 4, rows));
        if (s->adapted) add_phase(s, LORA_DOWN_IN, layer, by_rows);
        add_phase(s, DOWN, layer, gemm_items(s, l->down.tiles, rows));
        if (l->post_mlp_norm) add_phase(s, POST_MLP, layer, by_rows);
    }
    int logits = s->batch.num_logits;
    if (s->batch.hidden || logits) add_phase(s, FINAL_NORM, 0, s->batch.hidden ? by_rows : row_items(logits));
    if (logits) {
        s->best_items = gemm_items(s, m->head.tiles, logits);
        add_phase(s, HEAD, 0, s->best_items);
        add_phase(s, GREEDY, 0, 1);
    }
}

static void run_item(void *context, const Phase *phase, int item, int thread) {
    Step *s = context;
    const Layer *l = &s->model.layers[phase->layer];
    switch (phase->kind) {
    case EMBED: embed(s, item); break;
    case ATTN_NORM: norm_phase(s, l->attn_norm, item); break;
    case LORA_IN: lora_in(s, phase->layer, LORA_Q, 3, s->normed, s->model.hidden_p, item); break;
    case QKV: qkv_phase(s, l, phase->layer, item, phase->items); break;
    case ATTEND: attend_phase(s, l, phase->layer, item, thread); break;
    case QUANTIZE_ATTENDED: quantize_attended(s, item); break;
    case LORA_O_IN: lora_in(s, phase->layer, LORA_O, 1, s->attended, s->attended_stride, item); break;
    case O: residual_phase(s, &l->o, &s->attended_acts, LORA_O, l->post_attn_norm != NULL, phase, item); break;
    case MLP_NORM:
        if (l->post_attn_norm) add_normed(s, l->post_attn_norm, item);
        norm_phase(s, l->mlp_norm, item);
        break;
    case LORA_MLP_IN: lora_in(s, phase->layer, LORA_GATE, 2, s->normed, s->model.hidden_p, item); break;
    case GATE_UP: gate_up_phase(s, l, phase->layer, item, phase->items); break;
    case LORA_DOWN_IN: lora_in(s, phase->layer, LORA_DOWN, 1, s->inner, s->inner_stride, item); break;
    case DOWN: residual_phase(s, &l->down, &s->inner_acts, LORA_DOWN, l->post_mlp_norm != NULL, phase, item); break;
    case POST_MLP: add_normed(s, l->post_mlp_norm, item); break;
    case FINAL_NORM: final_norm(s, item); break;
    case HEAD: head_phase(s, item, phase->items); break;
    case GREEDY: greedy_phase(s); break;
    default: break;
    }
}

/* ---- what Python calls ---- */

const char *mw_isa(void) { return ISA_NAME; }

/* Bytes of the structures, so that the caller can see that it writes the same ones. */
void mw_sizes(int64_t *out) {
    out[0] = sizeof(Matrix);
    out[1] = sizeof(Layer);
    out[2] = sizeof(Model);
    out[3] = sizeof(Batch);
    out[4] = sizeof(Lora);
}

int64_t mw_tile_bytes(int bits, int groups) { return (int64_t)tile_bytes(bits, groups); }

/* A step over a model whose arrays outlive it; NULL if memory is out. */
Step *mw_new(const Model *model, int threads) {
    Step *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->model = *model;
    s->threads = threads_new(threads, run_item, s);
    if (s->threads && reserve_phases(s->threads, 14 * model->num_layers + 8) && reserve_scratch(s)) return s;
    mw_free(s);
    return NULL;
}

/* Compute one step. Returns 0, -1 if memory is out, or the number of what is wrong with the batch (see backend.py). */
int mw_step(Step *s, const Batch *batch) {
    int wrong = mw_check(&s->model, batch);
    if (wrong) return wrong;
    s->batch = *batch;
    if (batch->num_tokens == 0) return 0;
    if (!reserve_rows(s) || !plan_attention(s)) return -1;
    s->threads->base += (uint32_t)s->threads->num_phases + 1; /* late workers hold numbers of the last step */
    list_phases(s);
    run_phases(s->threads);
    return 0;
}
