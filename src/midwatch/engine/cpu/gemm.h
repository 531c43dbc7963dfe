/* Products of int8 activations with 4- and 8-bit weights, in tiles of 16 output columns.

   A weight matrix is a row of tiles; a tile is a row of groups of 32 inputs. 4 bits: 256 bytes of nibbles, 16 half
   scales, 16 half offsets (weight = code * scale + offset). 8 bits: for two groups at a time their 2 * 16 half scales,
   then 512 bytes of codes + 128 of either (weight = code * scale). Either way a tile is one stream, front to back: with
   scales apart from codes the machine's prefetcher loses its way and memory gives half as much.

   Byte 64 i + 4 c + e of a group's codes is input 4 i + e of column c (4 bits: low nibble; its high nibble is input
   16 + 4 i + e), so a 64-byte vector times four broadcast activations adds into 16 columns at once.

   Activations lie in blocks of up to ROWS rows, [group][row][32], so a block is one stream. With sx the scale of a row
   and group: y = sum over groups of sx * scale * dot(code, q) + sx * sum(q) * offset. A column's groups are added in
   order into one accumulator, whatever the number of rows: a row's result is the same alone and in any batch. */
#ifndef MIDWATCH_GEMM_H
#define MIDWATCH_GEMM_H

#include "simd.h"

#define ROWS 16
#define GROUP 32
#define GROUP4_BYTES 320
#define PAIR8_BYTES 1088
/* With fewer rows the machine's own prefetcher is faster (one row: 34 GB/s against 25); with more, the rows' other
   streams distract it. */
#define PREFETCH_ROWS 6

typedef struct {
    const uint8_t *data;
    int32_t first_tile, bits;
} Segment;

/* Tiles of up to three parts (q, k, v), each of its own width in bits. */
typedef struct {
    Segment segment[3];
    int32_t num_segments, tiles, groups, unused;
} Matrix;

typedef struct {
    int8_t *q;
    float *scale;     /* sx */
    float *scaled_sum; /* sx * sum(q) */
    int32_t *start;   /* -128 * sum(q): undoes the + 128 of 8-bit codes */
    int rows, groups;
} Acts;

typedef struct {
    int first, rows;
} RowBlock;

INLINE int num_row_blocks(int rows) { return (rows + ROWS - 1) / ROWS; }

/* Blocks of nearly equal height. */
INLINE RowBlock row_block(int rows, int index) {
    int blocks = num_row_blocks(rows), height = rows / blocks, taller = rows % blocks;
    RowBlock b = {index * height + (index < taller ? index : taller), height + (index < taller)};
    return b;
}

INLINE int row_block_of(int rows, int row) {
    int blocks = num_row_blocks(rows), height = rows / blocks, taller = rows % blocks;
    return row < taller * (height + 1) ? row / (height + 1) : taller + (row - taller * (height + 1)) / height;
}

INLINE size_t tile_bytes(int bits, int groups) {
    return bits == 4 ? (size_t)groups * GROUP4_BYTES : (size_t)((groups + 1) / 2) * PAIR8_BYTES;
}

INLINE size_t scales8(int g) { return (size_t)(g / 2) * PAIR8_BYTES + (size_t)(g % 2) * 32; }
INLINE size_t codes8(int g) { return (size_t)(g / 2) * PAIR8_BYTES + 64 + (size_t)(g % 2) * 512; }

INLINE const uint8_t *tile_of(const Matrix *m, int tile, int *bits) {
    int s = m->num_segments - 1;
    while (s > 0 && tile < m->segment[s].first_tile) s--;
    *bits = m->segment[s].bits;
    return m->segment[s].data + (size_t)(tile - m->segment[s].first_tile) * tile_bytes(*bits, m->groups);
}

/* Quantise 32 numbers of one row (two vectors) as group g of the row at place `at` of its block. */
INLINE void put_group(const Acts *a, RowBlock block, int at, int g, vf low, vf high) {
    float largest = max_lanes(vmax(vabs(low), vabs(high)));
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    size_t place = (size_t)block.first * a->groups + (size_t)g * block.rows + at;
    int8_t *q = a->q + place * GROUP;
    int32_t sum = store_int8(q, low * splat(inverse));
    sum += store_int8(q + LANES, high * splat(inverse));
    float scale = largest * (1.0f / 127.0f);
    a->scale[place] = scale;
    a->scaled_sum[place] = scale * (float)sum;
    a->start[place] = -128 * sum;
}

#ifdef USE_AVX512

INLINE __m512i four(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, 4);
    return _mm512_set1_epi32(x);
}

INLINE void product4(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    const int8_t *q = a->q + place * GROUP;
    const float *sx = a->scale + place, *sxs = a->scaled_sum + place;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 acc[ROWS];
    for (int r = 0; r < n; r++) acc[r] = _mm512_setzero_ps();
    for (int g = 0; g < a->groups; g++) {
        __m512i v[8];
        if (n >= PREFETCH_ROWS)
            for (int i = 0; i < 5; i++) _mm_prefetch((const char *)w + 6 * GROUP4_BYTES + 64 * i, _MM_HINT_T0);
        for (int i = 0; i < 4; i++) {
            __m512i both = _mm512_load_si512(w + 64 * i);
            v[i] = _mm512_and_si512(both, nibble);
            v[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + 256)));
        __m512 offset = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + 288)));
#pragma GCC unroll 16
        for (int r = 0; r < n; r++) {
            __m512i dot = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) dot = _mm512_dpbusd_epi32(dot, v[i], four(q + 32 * r + 4 * i));
            acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale), _mm512_set1_ps(sx[r]), acc[r]);
            acc[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sxs[r]), acc[r]);
        }
        w += GROUP4_BYTES;
        q += GROUP * n;
        sx += n;
        sxs += n;
    }
    for (int r = 0; r < n; r++) _mm512_store_ps(out + LANES * r, acc[r]);
}

INLINE void product8(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    const int8_t *q = a->q + place * GROUP;
    const float *sx = a->scale + place;
    const int32_t *start = a->start + place;
    __m512 acc[ROWS];
    for (int r = 0; r < n; r++) acc[r] = _mm512_setzero_ps();
    for (int g = 0; g < a->groups; g++) {
        const uint8_t *codes = w + codes8(g);
        __m512i v[8];
        if (n >= PREFETCH_ROWS)
            for (int i = 0; i < 9; i++) _mm_prefetch((const char *)codes + 2 * PAIR8_BYTES + 64 * i, _MM_HINT_T0);
        for (int i = 0; i < 8; i++) v[i] = _mm512_load_si512(codes + 64 * i);
        __m512 scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + scales8(g))));
#pragma GCC unroll 16
        for (int r = 0; r < n; r++) {
            __m512i dot = _mm512_set1_epi32(start[r]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) dot = _mm512_dpbusd_epi32(dot, v[i], four(q + 32 * r + 4 * i));
            acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale), _mm512_set1_ps(sx[r]), acc[r]);
        }
        q += GROUP * n;
        sx += n;
        start += n;
    }
    for (int r = 0; r < n; r++) _mm512_store_ps(out + LANES * r, acc[r]);
}

#elif defined(USE_AVX2) /* half a tile at a time, so that its 8 vectors of weights stay in registers for all rows */

INLINE __m256i four(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, 4);
    return _mm256_set1_epi32(x);
}

INLINE void product4(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    memset(out, 0, sizeof(float) * LANES * (size_t)n);
    for (int g = 0; g < a->groups; g++, w += GROUP4_BYTES, place += (size_t)n)
        for (int half = 0; half < 2; half++) {
            __m256i v[8];
            for (int i = 0; i < 4; i++) {
                __m256i both = _mm256_load_si256((const __m256i *)(w + 64 * i + 32 * half));
                v[i] = _mm256_and_si256(both, nibble);
                v[i + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
            }
            __m256 scale = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(w + 256 + 16 * half)));
            __m256 offset = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(w + 288 + 16 * half)));
            for (int r = 0; r < n; r++) {
                const int8_t *q = a->q + (place + (size_t)r) * GROUP;
                __m256i sum = _mm256_maddubs_epi16(v[0], four(q)); /* 15 * 127 * 2 eight times: within 16 bits */
#pragma GCC unroll 8
                for (int i = 1; i < 8; i++) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(v[i], four(q + 4 * i)));
                __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, ones));
                float *acc = out + LANES * r + 8 * half;
                __m256 total = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), _mm256_set1_ps(a->scale[place + (size_t)r]),
                                               _mm256_load_ps(acc));
                total = _mm256_fmadd_ps(offset, _mm256_set1_ps(a->scaled_sum[place + (size_t)r]), total);
                _mm256_store_ps(acc, total);
            }
        }
}

INLINE void product8(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    memset(out, 0, sizeof(float) * LANES * (size_t)n);
    for (int g = 0; g < a->groups; g++, place += (size_t)n)
        for (int half = 0; half < 2; half++) {
            const uint8_t *codes = w + codes8(g) + 32 * half;
            __m256i v[8];
            for (int i = 0; i < 8; i++)
                v[i] = _mm256_xor_si256(_mm256_load_si256((const __m256i *)(codes + 64 * i)), flip);
            __m256 scale = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(w + scales8(g) + 16 * half)));
            for (int r = 0; r < n; r++) {
                const int8_t *q = a->q + (place + (size_t)r) * GROUP;
                __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    /* |code| * (q with the code's sign): 128 * 127 * 2 is within 16 bits, so nothing saturates. */
                    __m256i pair = _mm256_maddubs_epi16(_mm256_abs_epi8(v[i]), _mm256_sign_epi8(four(q + 4 * i), v[i]));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, ones));
                }
                float *acc = out + LANES * r + 8 * half;
                __m256 dot = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
                __m256 sx = _mm256_set1_ps(a->scale[place + (size_t)r]);
                _mm256_store_ps(acc, _mm256_fmadd_ps(dot, sx, _mm256_load_ps(acc)));
            }
        }
}

#else /* plain C, the same arithmetic */

INLINE vi dot4(const uint8_t *w, const int8_t *q) {
    vi dot = {0};
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < LANES; c++)
            for (int e = 0; e < 4; e++) {
                int both = w[64 * i + 4 * c + e];
                dot[c] += (both & 15) * q[4 * i + e] + (both >> 4) * q[16 + 4 * i + e];
            }
    return dot;
}

INLINE vi dot8(const uint8_t *w, const int8_t *q) {
    vi dot = {0};
    for (int i = 0; i < 8; i++)
        for (int c = 0; c < LANES; c++)
            for (int e = 0; e < 4; e++) dot[c] += ((int)w[64 * i + 4 * c + e] - 128) * q[4 * i + e];
    return dot;
}

INLINE void product4(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    vf acc[ROWS];
    for (int r = 0; r < n; r++) acc[r] = splat(0);
    for (int g = 0; g < a->groups; g++, w += GROUP4_BYTES, place += n) {
        vf scale = load_half((const uint16_t *)(w + 256)), offset = load_half((const uint16_t *)(w + 288));
        for (int r = 0; r < n; r++) {
            vf dot = __builtin_convertvector(dot4(w, a->q + (place + r) * GROUP), vf);
            acc[r] = fmadd(dot * scale, splat(a->scale[place + r]), acc[r]);
            acc[r] = fmadd(offset, splat(a->scaled_sum[place + r]), acc[r]);
        }
    }
    for (int r = 0; r < n; r++) store(out + LANES * r, acc[r]);
}

INLINE void product8(const int n, const uint8_t *w, const Acts *a, size_t place, float *out) {
    vf acc[ROWS];
    for (int r = 0; r < n; r++) acc[r] = splat(0);
    for (int g = 0; g < a->groups; g++, place += n) {
        vf scale = load_half((const uint16_t *)(w + scales8(g)));
        for (int r = 0; r < n; r++) {
            vf dot = __builtin_convertvector(dot8(w + codes8(g), a->q + (place + r) * GROUP), vf);
            acc[r] = fmadd(dot * scale, splat(a->scale[place + r]), acc[r]);
        }
    }
    for (int r = 0; r < n; r++) store(out + LANES * r, acc[r]);
}

#endif

typedef void (*Product)(const uint8_t *w, const Acts *a, size_t place, float *out);

#define PRODUCT(n)                                                                              \
    static void product4_##n(const uint8_t *w, const Acts *a, size_t place, float *out) {       \
        product4(n, w, a, place, out);                                                          \
    }                                                                                           \
    static void product8_##n(const uint8_t *w, const Acts *a, size_t place, float *out) {       \
        product8(n, w, a, place, out);                                                          \
    }
PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5) PRODUCT(6) PRODUCT(7) PRODUCT(8)
PRODUCT(9) PRODUCT(10) PRODUCT(11) PRODUCT(12) PRODUCT(13) PRODUCT(14) PRODUCT(15) PRODUCT(16)

static const Product PRODUCT4[ROWS + 1] = {0,           product4_1,  product4_2,  product4_3,  product4_4,  product4_5,
                                           product4_6,  product4_7,  product4_8,  product4_9,  product4_10, product4_11,
                                           product4_12, product4_13, product4_14, product4_15, product4_16};
static const Product PRODUCT8[ROWS + 1] = {0,           product8_1,  product8_2,  product8_3,  product8_4,  product8_5,
                                           product8_6,  product8_7,  product8_8,  product8_9,  product8_10, product8_11,
                                           product8_12, product8_13, product8_14, product8_15, product8_16};

/* out[row][16] of one tile for one block of rows; `out` is 64-byte aligned. */
INLINE void tile_product(const Matrix *m, int tile, const Acts *a, RowBlock block, float *out) {
    int bits;
    const uint8_t *w = tile_of(m, tile, &bits);
    (bits == 4 ? PRODUCT4 : PRODUCT8)[block.rows](w, a, (size_t)block.first * a->groups, out);
}

#endif
