#include "tk_armv7em_elementwise.h"

#include "tk_bytes.h"
#include "tk_dsp.h"

typedef struct {
    int32_t first, second, offset;
} tk_affine_t;

/* The output for one element of each operand. */
static inline int32_t add1(const tk_affine_t *p, int32_t a, int32_t b)
{
    const int32_t sum = (int32_t)((int64_t)p->first * a >> 8) + (int32_t)((int64_t)p->second * b >> 8) + p->offset;
    return tk_ssat8(sum >> TK_AFFINE_SHIFT);
}

#if TK_HAS_DSP

/* The outputs for four elements of each operand. Bytes are taken as the upper ones of int16, which makes the products of 32 by
 * 16 bits 256 times larger before their lower 16 bits are dropped. */
static inline int32_t add4(const tk_affine_t *p, int32_t a, int32_t b)
{
    int32_t a_odd, b_odd, y;
    __asm__("and    %[a_odd], %[a], #0xFF00FF00\n\t"
            "and    %[b_odd], %[b], #0xFF00FF00\n\t"
            "lsl    %[a], %[a], #8\n\t"
            "lsl    %[b], %[b], #8\n\t"
            "and    %[a], %[a], #0xFF00FF00\n\t"
            "and    %[b], %[b], #0xFF00FF00\n\t"
            "smlawb %[y], %[first], %[a], %[offset]\n\t"
            "smlawt %[a], %[first], %[a], %[offset]\n\t"
            "smlawb %[y], %[second], %[b], %[y]\n\t"
            "smlawt %[a], %[second], %[b], %[a]\n\t"
            "smlawb %[b], %[first], %[a_odd], %[offset]\n\t"
            "smlawt %[a_odd], %[first], %[a_odd], %[offset]\n\t"
            "smlawb %[b], %[second], %[b_odd], %[b]\n\t"
            "smlawt %[a_odd], %[second], %[b_odd], %[a_odd]\n\t"
            "ssat   %[y], #8, %[y], asr %[shift]\n\t"
            "ssat   %[b], #8, %[b], asr %[shift]\n\t"
            "ssat   %[a], #8, %[a], asr %[shift]\n\t"
            "ssat   %[a_odd], #8, %[a_odd], asr %[shift]\n\t"
            "bfi    %[y], %[b], #8, #8\n\t"
            "bfi    %[y], %[a], #16, #8\n\t"
            "bfi    %[y], %[a_odd], #24, #8"
            : [a] "+r"(a), [b] "+r"(b), [a_odd] "=&r"(a_odd), [b_odd] "=&r"(b_odd), [y] "=&r"(y)
            : [first] "r"(p->first), [second] "r"(p->second), [offset] "r"(p->offset), [shift] "i"(TK_AFFINE_SHIFT));
    return y;
}

#else

static inline int32_t add4(const tk_affine_t *p, int32_t a, int32_t b)
{
    int32_t y[4];
    for (int32_t i = 0; i < 4; i++) {
        y[i] = add1(p, tk_byte(a, i), tk_byte(b, i));
    }
    return tk_bytes(y[0], y[1], y[2], y[3]);
}

#endif

void tk_add_affine(const tk_add_affine_t *params, const int8_t *a, const int8_t *b, int8_t *y)
{
    const tk_affine_t p = {params->a_factor, params->b_factor, params->offset};
    const int32_t count = params->count;
    int8_t *const begin = y;
    for (int8_t *end = y + (count & ~7); y != end; a += 8, b += 8, y += 8) {
        const int32_t a_next = tk_load4(a + 4), b_next = tk_load4(b + 4);
        tk_store4(y, add4(&p, tk_load4(a), tk_load4(b)));
        tk_store4(y + 4, add4(&p, a_next, b_next));
    }
    for (int32_t i = 0; i < (count & 7); i++) {
        y[i] = (int8_t)add1(&p, a[i], b[i]);
    }
    if (params->out_min > INT8_MIN || params->out_max < INT8_MAX) {
        tk_limit(begin, count, params->out_min, params->out_max);
    }
}
