/* From the rows of a file to tiles: GGML's 4- and 8-bit blocks as they are, floats by rounding.

   Row n of a part goes to column n % 16 of tile `first + step * (n / 16)`; step 2 interleaves gate and up. The
   destination is zero to begin with: a column that no row fills has scale 0, so its weights are 0.
   Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h */
#ifndef MIDWATCH_PACK_H
#define MIDWATCH_PACK_H

#include "gemm.h"

enum { FROM_F32 = 0, FROM_Q4_0 = 2, FROM_Q4_1 = 3, FROM_Q8_0 = 8, FROM_Q4_K = 12 };

INLINE void put4(uint8_t *group, int column, const uint8_t codes[32], uint16_t scale, uint16_t offset) {
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < 4; e++)
            group[64 * i + 4 * column + e] = (uint8_t)(codes[4 * i + e] | codes[16 + 4 * i + e] << 4);
    ((uint16_t *)(group + 256))[column] = scale;
    ((uint16_t *)(group + 288))[column] = offset;
}

INLINE void put8(uint8_t *tile, int g, int column, const int8_t codes[32], uint16_t scale) {
    uint8_t *group = tile + codes8(g);
    for (int i = 0; i < 8; i++)
        for (int e = 0; e < 4; e++) group[64 * i + 4 * column + e] = (uint8_t)(codes[4 * i + e] + 128);
    ((uint16_t *)(tile + scales8(g)))[column] = scale;
}

INLINE uint16_t half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

static void pack_nibbles(uint8_t *tile, int column, const uint8_t *src, int type, int groups) {
    int header = type == FROM_Q4_0 ? 2 : 4;
    for (int g = 0; g < groups; g++, src += header + 16) {
        uint8_t *group = tile + (size_t)g * GROUP4_BYTES;
        for (int i = 0; i < 4; i++) memcpy(group + 64 * i + 4 * column, src + header + 4 * i, 4); /* the same halves */
        uint16_t scale = half_at(src);
        ((uint16_t *)(group + 256))[column] = scale;
        ((uint16_t *)(group + 288))[column] =
            type == FROM_Q4_1 ? half_at(src + 2) : float_to_half(-8.0f * half_to_float(scale));
    }
}

static void pack_q4_k(uint8_t *tile, int column, const uint8_t *src, int groups) {
    for (int g = 0; g < groups; g++) {
        const uint8_t *block = src + (size_t)(g / 8) * 144, *six = block + 4, *packed = block + 16 + 32 * (g % 8 / 2);
        int k = g % 8, shift = 4 * (g % 2);
        int factor = k < 4 ? six[k] & 63 : (six[k + 4] & 15) | six[k - 4] >> 6 << 4;
        int minimum = k < 4 ? six[k + 4] & 63 : six[k + 4] >> 4 | six[k] >> 6 << 4;
        uint8_t codes[32];
        for (int e = 0; e < 32; e++) codes[e] = packed[e] >> shift & 15;
        put4(tile + (size_t)g * GROUP4_BYTES, column, codes, float_to_half(half_to_float(half_at(block)) * factor),
             float_to_half(-half_to_float(half_at(block + 2)) * minimum));
    }
}

static void pack_q8_0(uint8_t *tile, int column, const uint8_t *src, int groups) {
    for (int g = 0; g < groups; g++, src += 34)
        put8(tile, g, column, (const int8_t *)src + 2, half_at(src));
}

static void pack_float(uint8_t *tile, int column, const float *src, int bits, int groups, int columns) {
    for (int g = 0; g < groups; g++) {
        float x[32] = {0};
        int count = columns - 32 * g < 32 ? columns - 32 * g : 32;
        memcpy(x, src + 32 * g, sizeof(float) * (size_t)count);
        if (bits == 8) {
            float largest = 0;
            for (int e = 0; e < 32; e++) largest = fmaxf(largest, fabsf(x[e]));
            uint16_t scale = float_to_half(largest / 127.0f);
            float rounded = half_to_float(scale), inverse = rounded > 0 ? 1.0f / rounded : 0;
            int8_t codes[32];
            for (int e = 0; e < 32; e++) codes[e] = (int8_t)fmaxf(-127, fminf(127, rintf(x[e] * inverse)));
            put8(tile, g, column, codes, scale);
        } else {
            float low = x[0], high = x[0];
            for (int e = 1; e < count; e++) low = fminf(low, x[e]), high = fmaxf(high, x[e]);
            uint16_t offset = float_to_half(low), scale = float_to_half((high - half_to_float(offset)) / 15.0f);
            float rounded = half_to_float(scale), inverse = rounded > 0 ? 1.0f / rounded : 0;
            uint8_t codes[32];
            for (int e = 0; e < 32; e++)
                codes[e] = (uint8_t)fmaxf(0, fminf(15, rintf((x[e] - half_to_float(offset)) * inverse)));
            put4(tile + (size_t)g * GROUP4_BYTES, column, codes, scale, offset);
        }
    }
}

/* Pack `rows` rows of `columns` weights; `type` is GGML's number, `groups` are the matrix's. Returns 0, or -1 for a
   type that is not packed as it is. */
int mw_pack(uint8_t *dst, int bits, int groups, int first, int step, int row0, const uint8_t *src, int type, int rows,
            int columns, int64_t row_bytes) {
    int own = (columns + 31) / 32;
    for (int r = 0; r < rows; r++, src += row_bytes) {
        int n = row0 + r, column = n % 16;
        uint8_t *tile = dst + (size_t)(first + step * (n / 16)) * tile_bytes(bits, groups);
        if ((type == FROM_Q4_0 || type == FROM_Q4_1) && bits == 4)
            pack_nibbles(tile, column, src, type, own);
        else if (type == FROM_Q4_K && bits == 4)
            pack_q4_k(tile, column, src, own);
        else if (type == FROM_Q8_0 && bits == 8)
            pack_q8_0(tile, column, src, own);
        else if (type == FROM_F32)
            pack_float(tile, column, (const float *)src, bits, groups, columns);
        else
            return -1;
    }
    return 0;
}

#endif
