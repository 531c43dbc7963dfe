/* Vectors of 16 floats for three kinds of machine: AVX-512, AVX2 (two halves, by the compiler), and plain C.

   Written with the vector extensions of GCC and Clang, so that one text serves all three; intrinsics only where a
   compiler does not find the instruction. Every sum has one fixed order. */
#ifndef MIDWATCH_SIMD_H
#define MIDWATCH_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define USE_AVX512 1
#define ISA_NAME "avx512"
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define USE_AVX2 1
#define ISA_NAME "avx2"
#include <immintrin.h>
#else
#define ISA_NAME "portable"
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float vf __attribute__((vector_size(64), may_alias));
typedef int32_t vi __attribute__((vector_size(64), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), may_alias));
typedef float vf_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t vb_any __attribute__((vector_size(16), aligned(1), may_alias));

/* As wide as the machine's registers, for the innermost loops: compilers cut a wider vector through memory. */
#if defined(USE_AVX512)
#define NATIVE 16
#elif defined(USE_AVX2)
#define NATIVE 8
#else
#define NATIVE 4
#endif
typedef float vn __attribute__((vector_size(4 * NATIVE), may_alias));
typedef int32_t vni __attribute__((vector_size(4 * NATIVE), may_alias));
typedef uint32_t vnu __attribute__((vector_size(4 * NATIVE), may_alias));
typedef float vn_any __attribute__((vector_size(4 * NATIVE), aligned(4), may_alias));
typedef uint16_t vnh_any __attribute__((vector_size(2 * NATIVE), aligned(2), may_alias));
typedef int8_t vnb_any __attribute__((vector_size(NATIVE), aligned(1), may_alias));

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }

INLINE vf splat(float x) {
#ifdef USE_AVX512
    return (vf)_mm512_set1_ps(x);
#else
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}

/* a * b + c, rounded once where the machine can. */
INLINE vf fmadd(vf a, vf b, vf c) {
#ifdef USE_AVX512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* The larger; b if one of them is no number. */
INLINE vf vmax(vf a, vf b) {
#ifdef USE_AVX512
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE int any_lane(vi mask) {
#ifdef USE_AVX512
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    int32_t any = 0;
    for (int i = 0; i < LANES; i++) any |= mask[i];
    return any;
#endif
}

INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

INLINE float sum_lanes(vf v) {
    float a[LANES];
    store(a, v);
    for (int step = 8; step; step >>= 1)
        for (int i = 0; i < step; i++) a[i] += a[i + step];
    return a[0];
}

INLINE float max_lanes(vf v) {
#ifdef USE_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#else
    float a[LANES];
    store(a, v);
    for (int step = 8; step; step >>= 1)
        for (int i = 0; i < step; i++) a[i] = a[i] > a[i + step] ? a[i] : a[i + step];
    return a[0];
#endif
}

/* e^x to about 2 units in the last place; exactly 1 at 0, exactly 0 at minus infinity and wherever a float cannot say
   it (-87 without AVX-512, where the last numbers before 0 are left out). Cephes' reduction: x = n ln 2 + r. */
INLINE vf vexp(vf x) {
    x = vmax(splat(-105.0f), x);
#ifdef USE_AVX512
    vf scaled = x * splat(1.44269504f);
    vf whole = (vf)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vi tiny = x < splat(-87.0f);
    vf high = splat(88.3f);
    x = choose(x > high, high, x);
    vf shifted = fmadd(x, splat(1.44269504f), splat(12582912.0f)); /* 1.5 * 2^23: the fraction falls off */
    vf whole = shifted - splat(12582912.0f);
#endif
    vf r = fmadd(whole, splat(-0.693359375f), x);
    r = fmadd(whole, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fmadd(p, r, splat(1.3981999507e-3f));
    p = fmadd(p, r, splat(8.3334519073e-3f));
    p = fmadd(p, r, splat(4.1665795894e-2f));
    p = fmadd(p, r, splat(1.6666665459e-1f));
    p = fmadd(p, r, splat(5.0000001201e-1f));
    vf value = fmadd(p, r * r, r) + splat(1.0f);
#ifdef USE_AVX512
    return (vf)_mm512_scalef_ps((__m512)value, (__m512)whole);
#else
    value = value * (vf)(((vi)shifted - 0x4b400000 + 127) << 23);
    return (vf)(~tiny & (vi)value);
#endif
}

INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
    if (exponent == 0) {
        float tiny = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
        return sign ? -tiny : tiny;
    }
    bits = exponent == 31 ? sign | 0x7f800000u | mantissa << 13 : sign | (exponent + 112) << 23 | mantissa << 13;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* Round to nearest, ties to even; what is too large becomes the largest finite half. */
INLINE uint16_t float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7bff);
    if (magnitude < 0x38800000) { /* subnormal in half precision */
        float scaled;
        memcpy(&scaled, &magnitude, 4);
        return (uint16_t)(sign | (uint32_t)lrintf(scaled * 16777216.0f));
    }
    return (uint16_t)(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

INLINE vf load_half(const uint16_t *p) {
#ifdef USE_AVX512
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(USE_AVX2)
    float a[LANES] __attribute__((aligned(64)));
    _mm256_store_ps(a, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
    _mm256_store_ps(a + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
    return *(vf *)a;
#else
    float a[LANES];
    for (int i = 0; i < LANES; i++) a[i] = half_to_float(p[i]);
    return load(a);
#endif
}

INLINE vn load_bf16(const uint16_t *p) { return (vn)(__builtin_convertvector(*(const vnh_any *)p, vnu) << 16); }
INLINE vn load_int8(const int8_t *p) {
    return __builtin_convertvector(__builtin_convertvector(*(const vnb_any *)p, vni), vn);
}
INLINE vn load_native(const float *p) { return *(const vn_any *)p; }
INLINE void store_native(float *p, vn v) { *(vn_any *)p = v; }

INLINE vn splat_native(float x) {
#if defined(USE_AVX512)
    return (vn)_mm512_set1_ps(x);
#elif defined(USE_AVX2)
    return (vn)_mm256_set1_ps(x);
#else
    return (vn){x, x, x, x};
#endif
}

INLINE vn fmadd_native(vn a, vn b, vn c) {
#if defined(USE_AVX512)
    return (vn)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(USE_AVX2)
    return (vn)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* To the nearest bfloat16, ties to even; what is no number stays none. */
INLINE void store_bf16(uint16_t *p, vf v) {
    vu bits = (vu)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    vu odd = (vu)((bits & 0x7fffffff) > 0x7f800000);
    *(vh_any *)p = __builtin_convertvector((odd & quiet) | (~odd & rounded), vh);
}

/* Sixteen floats, already within -127..127, to the nearest int8; returns their sum. */
INLINE int32_t store_int8(int8_t *p, vf v) {
#ifdef USE_AVX512
    __m512i whole = _mm512_cvtps_epi32((__m512)v);
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(whole));
    return _mm512_reduce_add_epi32(whole);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) {
        vf shifted = v + splat(12582912.0f);
        int32_t code = ((vi)shifted)[i] - 0x4b400000;
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        p[i] = (int8_t)code;
        sum += code;
    }
    return sum;
#endif
}

#endif
