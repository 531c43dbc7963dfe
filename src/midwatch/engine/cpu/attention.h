/* Attention over pages: softmax(q k' + mask) v in float32, for a few query rows and the query heads of one kv head.

   Keys lie as [block][kv head][D][place], values as [block][kv head][place][D], in bfloat16, or in int8 with one
   float scale per vector. Positions are cut in splits of SPLIT by absolute position; a split computes its scores 16
   keys at a time, then (max, sum, sum of p v); splits are merged in order. Nothing depends on which rows are computed
   together: a key that a row does not see adds exactly 0. */
#ifndef MIDWATCH_ATTENTION_H
#define MIDWATCH_ATTENTION_H

#include "simd.h"

#define SPLIT 1024
#define QUERIES 12 /* of a few rows, attended together */
/* What the registers hold: key tiles scored together; queries and vectors of values weighed together. */
#ifdef USE_AVX512
#define SCORE_TILES 2
#define PV_QUERIES 6
#else
#define SCORE_TILES 1
#define PV_QUERIES 3
#endif
#define PV_VECTORS 4
#define QUERY_STRIDE 1040 /* more than any head, and no multiple of a page, where 12 rows would share a cache set */
#define AHEAD_QUERIES 4 /* up to so many, memory is slower than arithmetic, so lines are asked for ahead */
#define QUERY_STRIDE 1040 /* more than any head, and no multiple of a page, where 12 rows would share a cache set */

typedef struct {
    const void *k, *v;              /* of one layer */
    const float *k_scale, *v_scale; /* int8 only */
    int num_kv_heads, head_dim, block_size, int8;
    const int32_t *table; /* of the sequence */
} Pages;

typedef struct {
    float *scores;     /* [queries][SPLIT] */
    float *queries;    /* [queries][QUERY_STRIDE], scaled */
    uint16_t *tile;    /* [2][D][16], gathered keys where blocks are no multiple of 16 */
    float *tile_scale; /* [2][16] */
    const void **v_rows; /* [SPLIT + 16] */
    float *v_scales;   /* [SPLIT] */
    float *partial;    /* [splits][queries][D + 2]: weights, then max and sum */
} AttentionScratch;

/* Where the keys of 16 places lie: element (d, i) at base + d * stride + i. */
typedef struct {
    const void *base;
    const float *scale;
    int stride;
    const void *next; /* the same of a tile that is scored later: its lines are asked for meanwhile */
} KeyTile;

INLINE KeyTile key_tile(const Pages *p, int kv_head, int position, int end, uint16_t *tile, float *tile_scale) {
    int size = p->block_size, dims = p->head_dim, width = p->int8 ? 1 : 2;
    if (size % LANES == 0) {
        int64_t head = (int64_t)p->table[position / size] * p->num_kv_heads + kv_head;
        int place = position % size;
        KeyTile t = {(const char *)p->k + (head * dims * size + place) * width,
                     p->int8 ? p->k_scale + head * size + place : NULL, size, NULL};
        return t;
    }
    for (int i = 0; i < LANES; i++) { /* places past the end: the last key again, masked later */
        int at = position + i < end ? position + i : end - 1;
        int64_t head = (int64_t)p->table[at / size] * p->num_kv_heads + kv_head;
        int64_t from = head * dims * size + at % size;
        if (p->int8) {
            for (int d = 0; d < dims; d++)
                ((int8_t *)tile)[d * LANES + i] = ((const int8_t *)p->k)[from + (int64_t)d * size];
            tile_scale[i] = p->k_scale[head * size + at % size];
        } else
            for (int d = 0; d < dims; d++) tile[d * LANES + i] = ((const uint16_t *)p->k)[from + (int64_t)d * size];
    }
    KeyTile t = {tile, tile_scale, LANES, NULL};
    return t;
}

/* Scores of n queries with the keys of one or two tiles, as many keys at a time as a register holds. */
INLINE void score(const int n, const int tiles, const int int8, const KeyTile *t, const float *q, int dims,
                  float *out) {
    for (int part = 0; part < LANES; part += NATIVE) {
        vn acc[SCORE_TILES][QUERIES];
        for (int j = 0; j < tiles; j++)
            for (int i = 0; i < n; i++) acc[j][i] = splat_native(0);
        for (int d = 0; d < dims; d++) {
            vn key[SCORE_TILES];
            for (int j = 0; j < tiles; j++) {
                size_t at = (size_t)d * (size_t)t[j].stride + (size_t)part;
                if (n <= AHEAD_QUERIES) __builtin_prefetch((const char *)t[j].next + at * (int8 ? 1 : 2));
                key[j] = int8 ? load_int8((const int8_t *)t[j].base + at) : load_bf16((const uint16_t *)t[j].base + at);
            }
#pragma GCC unroll 12
            for (int i = 0; i < n; i++) {
                vn query = splat_native(q[QUERY_STRIDE * i + d]);
                for (int j = 0; j < tiles; j++) acc[j][i] = fmadd_native(query, key[j], acc[j][i]);
            }
        }
        for (int j = 0; j < tiles; j++) {
            vn scale = int8 ? load_native(t[j].scale + part) : splat_native(1);
            for (int i = 0; i < n; i++) {
                if (int8) acc[j][i] *= scale;
                store_native(out + (size_t)i * SPLIT + LANES * j + part, acc[j][i]);
            }
        }
    }
}

/* out[i][dim ...] = sum over positions of weight * value, for n queries and `vectors` registers of dimensions. */
INLINE void weigh(const int n, const int vectors, const int int8, const float *weights, const void *const *rows,
                  int first, int last, int dim, float *out, size_t out_stride) {
    vn acc[PV_QUERIES][PV_VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < vectors; j++) acc[i][j] = splat_native(0);
    for (int p = first; p < last; p++) {
        vn weight[PV_QUERIES];
        for (int i = 0; i < n; i++) weight[i] = splat_native(weights[(size_t)i * SPLIT + p]);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            int at = dim + NATIVE * j;
            if (n <= AHEAD_QUERIES && j * NATIVE % 32 == 0)
                __builtin_prefetch((const char *)rows[p + LANES] + at * (int8 ? 1 : 2));
            vn value = int8 ? load_int8((const int8_t *)rows[p] + at) : load_bf16((const uint16_t *)rows[p] + at);
#pragma GCC unroll 6
            for (int i = 0; i < n; i++) acc[i][j] = fmadd_native(weight[i], value, acc[i][j]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < vectors; j++) store_native(out + i * out_stride + dim + NATIVE * j, acc[i][j]);
}

typedef void (*Score)(const KeyTile *, const float *, int, float *);
typedef void (*Weigh)(const float *, const void *const *, int, int, int, float *, size_t);

#define SCORE(n, tiles, name, int8)                                                       \
    static void name##_##n(const KeyTile *t, const float *q, int dims, float *out) {      \
        score(n, tiles, int8, t, q, dims, out);                                           \
    }
#define WEIGH(n, vectors, name, int8)                                                                        \
    static void name##_##n##_##vectors(const float *w, const void *const *r, int a, int b, int d, float *o,  \
                                       size_t s) {                                                           \
        weigh(n, vectors, int8, w, r, a, b, d, o, s);                                                        \
    }
#define EACH4(f, ...) f(1, __VA_ARGS__) f(2, __VA_ARGS__) f(3, __VA_ARGS__) f(4, __VA_ARGS__)
#define EACH12(f, ...)                                                                          \
    EACH4(f, __VA_ARGS__) f(5, __VA_ARGS__) f(6, __VA_ARGS__) f(7, __VA_ARGS__) f(8, __VA_ARGS__) \
    f(9, __VA_ARGS__) f(10, __VA_ARGS__) f(11, __VA_ARGS__) f(12, __VA_ARGS__)
#define ALL3(f) f##1, f##2, f##3
#define ALL4(f) {0, ALL3(f), f##4}
#define ALL12(f) {0, ALL3(f), f##4, f##5, f##6, f##7, f##8, f##9, f##10, f##11, f##12}

EACH12(SCORE, 1, score16, 0) EACH12(SCORE, 1, score8, 1)
#if SCORE_TILES == 2
EACH12(SCORE, 2, pair16, 0) EACH12(SCORE, 2, pair8, 1)
static const Score SCORES[2][2][QUERIES + 1] = {{ALL12(score16_), ALL12(score8_)}, {ALL12(pair16_), ALL12(pair8_)}};
#else
static const Score SCORES[1][2][QUERIES + 1] = {{ALL12(score16_), ALL12(score8_)}};
#endif

#if PV_QUERIES == 6
#define EACH_PV(f, ...) EACH4(f, __VA_ARGS__) f(5, __VA_ARGS__) f(6, __VA_ARGS__)
#define ALL_PV(f) {{0}, ALL4(f##1_), ALL4(f##2_), ALL4(f##3_), ALL4(f##4_), ALL4(f##5_), ALL4(f##6_)}
#else
#define EACH_PV(f, ...) f(1, __VA_ARGS__) f(2, __VA_ARGS__) f(3, __VA_ARGS__)
#define ALL_PV(f) {{0}, ALL4(f##1_), ALL4(f##2_), ALL4(f##3_)}
#endif
EACH_PV(WEIGH, 1, weigh16, 0) EACH_PV(WEIGH, 2, weigh16, 0) EACH_PV(WEIGH, 3, weigh16, 0) EACH_PV(WEIGH, 4, weigh16, 0)
EACH_PV(WEIGH, 1, weigh8, 1) EACH_PV(WEIGH, 2, weigh8, 1) EACH_PV(WEIGH, 3, weigh8, 1) EACH_PV(WEIGH, 4, weigh8, 1)
static const Weigh WEIGHS[2][PV_QUERIES + 1][PV_VECTORS + 1] = {ALL_PV(weigh16_), ALL_PV(weigh8_)};

/* One row of scores to weights: 0 outside [from, to), e^(x - max) inside. `end` is a multiple of 16. */
INLINE void soften(float *row, int end, int from, int to, float *max_out, float *sum_out) {
    if (from >= to) {
        memset(row, 0, sizeof(float) * (size_t)end);
        *max_out = -INFINITY;
        *sum_out = 0;
        return;
    }
    int first = from & ~15, last = (to + 15) & ~15;
    for (int i = first; i < from; i++) row[i] = -INFINITY;
    for (int i = to; i < last; i++) row[i] = -INFINITY;
    vf largest = load(row + first);
    for (int i = first + 16; i < last; i += 16) largest = vmax(largest, load(row + i));
    float max = max_lanes(largest);
    vf m = splat(max), sum = splat(0);
    for (int i = first; i < last; i += 16) {
        vf weight = vexp(load(row + i) - m);
        sum += weight;
        store(row + i, weight);
    }
    memset(row, 0, sizeof(float) * (size_t)first);
    memset(row + last, 0, sizeof(float) * (size_t)(end - last));
    *max_out = max;
    *sum_out = sum_lanes(sum);
}

/* One split of `queries` = rows * group queries. Row r stands at position `position` + r and sees the last `window`
   keys (0 is all). Positions are those of split `split` within [low, high). `out` is [queries][D + 2]. */
static void attend_split(const Pages *p, int kv_head, int queries, int group, int position, int window, int split,
                         int low, int high, AttentionScratch *s, float *out) {
    int dims = p->head_dim, size = p->block_size, width = p->int8 ? 1 : 2;
    int base = split * SPLIT, start = low > base ? (low & ~15) - base : 0;
    int stop = high - base < SPLIT ? high - base : SPLIT, end = (stop + 15) & ~15;
    for (int at = start; at < stop; at += SCORE_TILES * LANES) {
        KeyTile tiles[SCORE_TILES];
        int count = 0;
        for (; count < SCORE_TILES && at + LANES * count < stop; count++) {
            int position = base + at + LANES * count, later = position + LANES * SCORE_TILES;
            tiles[count] = key_tile(p, kv_head, position, high, s->tile + (size_t)count * dims * LANES,
                                    s->tile_scale + count * LANES);
            tiles[count].next = tiles[count].base;
            if (size % LANES == 0 && later < base + stop)
                tiles[count].next = key_tile(p, kv_head, later, high, NULL, NULL).base;
        }
        for (int i = 0; i < queries; i += QUERIES) {
            int n = queries - i < QUERIES ? queries - i : QUERIES;
            SCORES[count - 1][p->int8][n](tiles, s->queries + (size_t)i * QUERY_STRIDE, dims,
                                          s->scores + (size_t)i * SPLIT + at);
        }
    }
    for (int at = start; at < stop;) { /* block by block: a division per position would cost more than its value */
        int place = (base + at) % size, last = at + size - place < stop ? at + size - place : stop;
        int64_t head = (int64_t)p->table[(base + at) / size] * p->num_kv_heads + kv_head;
        const char *row = (const char *)p->v + (head * size + place) * dims * width;
        for (; at < last; at++, place++, row += dims * width) {
            s->v_rows[at] = row;
            if (p->int8) s->v_scales[at] = p->v_scale[head * size + place];
        }
    }
    for (int i = 0; i < LANES; i++) s->v_rows[stop + i] = s->v_rows[stop - 1]; /* what `weigh` asks for ahead */
    size_t stride = (size_t)dims + 2;
    for (int i = 0; i < queries; i++) {
        int to = position + i / group + 1 - base, from = window && to > window ? to - window : 0;
        if (from < 0) from = 0;
        if (to > stop) to = stop;
        float *row = s->scores + (size_t)i * SPLIT + start;
        soften(row, end - start, from > start ? from - start : 0, to - start, out + i * stride + dims,
               out + i * stride + dims + 1);
        if (p->int8)
            for (int at = start; at < stop; at++) row[at - start] *= s->v_scales[at];
    }
    for (int i = 0; i < queries; i += PV_QUERIES) {
        int n = queries - i < PV_QUERIES ? queries - i : PV_QUERIES;
        for (int d = 0; d < dims; d += PV_VECTORS * NATIVE) {
            int vectors = dims - d < PV_VECTORS * NATIVE ? (dims - d) / NATIVE : PV_VECTORS;
            WEIGHS[p->int8][n][vectors](s->scores + (size_t)i * SPLIT, s->v_rows, start, stop, d, out + i * stride,
                                        stride);
        }
    }
}

/* The splits' partial results of one query to its output [D]; `step` floats from one split to the next. */
INLINE void merge_splits(const float *partial, size_t step, int splits, int dims, float *out) {
    float max = -INFINITY, sum = 0;
    if (splits == 1) { /* the same numbers with less ado */
        for (int d = 0; d < dims; d += LANES) store(out + d, load(partial + d) * splat(1.0f / partial[dims + 1]));
        return;
    }
    for (int s = 0; s < splits; s++) max = fmaxf(max, partial[s * step + dims]);
    for (int d = 0; d < dims; d += LANES) store(out + d, splat(0));
    for (int s = 0; s < splits; s++) {
        const float *part = partial + s * step;
        if (part[dims + 1] == 0) continue; /* nothing of this split is visible */
        float weight = vexp(splat(part[dims] - max))[0];
        sum += weight * part[dims + 1];
        for (int d = 0; d < dims; d += LANES) store(out + d, fmadd(load(part + d), splat(weight), load(out + d)));
    }
    float inverse = 1.0f / sum;
    for (int d = 0; d < dims; d += LANES) store(out + d, load(out + d) * splat(inverse));
}

#endif
