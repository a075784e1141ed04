/* Four channels of a block of positions: their sums and maxima. */
#ifndef TK_POOL_H
#define TK_POOL_H

#include <stdint.h>

#include "tk_bytes.h"
#include "tk_dsp.h"

/* Positions of a map, `step` bytes from one to the next in a row, `row_step` bytes from one row to the next. */
typedef struct {
    int32_t rows, columns, step, row_step;
} tk_block_t;

/* Sums of channels 0 and 2, 1 and 3, as pairs of int16. */
typedef struct {
    int32_t even, odd;
} tk_sums_t;

static inline void tk_add_bytes(tk_sums_t *sums, int32_t bytes)
{
#if TK_HAS_DSP
    __asm__("sxtab16 %0, %0, %1" : "+r"(sums->even) : "r"(bytes));
    __asm__("sxtab16 %0, %0, %1, ror #8" : "+r"(sums->odd) : "r"(bytes));
#else
    const int32_t even = tk_sxtb16(bytes), odd = tk_sxtb16_odd(bytes);
    sums->even = tk_pair(tk_low(sums->even) + tk_low(even), tk_high(sums->even) + tk_high(even));
    sums->odd = tk_pair(tk_low(sums->odd) + tk_low(odd), tk_high(sums->odd) + tk_high(odd));
#endif
}

/* Adds four positions at a time, from x to `end`, which it returns. */
static inline const int8_t *tk_add_fours(tk_sums_t *sums, const int8_t *x, const int8_t *end, int32_t step)
{
#if TK_HAS_DSP
    int32_t word, next;
    if (x != end) {
        __asm__ volatile("1:\n\t"
                         "ldr     %[word], [%[x]]\n\t"
                         "ldr     %[next], [%[x], %[step]]\n\t"
                         "sxtab16 %[even], %[even], %[word]\n\t"
                         "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                         "ldr     %[word], [%[x], %[step], lsl #1]\n\t"
                         "sxtab16 %[even], %[even], %[next]\n\t"
                         "sxtab16 %[odd], %[odd], %[next], ror #8\n\t"
                         "ldr     %[next], [%[x], %[three]]\n\t"
                         "add     %[x], %[x], %[step], lsl #2\n\t"
                         "sxtab16 %[even], %[even], %[word]\n\t"
                         "sxtab16 %[odd], %[odd], %[word], ror #8\n\t"
                         "cmp     %[x], %[end]\n\t"
                         "sxtab16 %[even], %[even], %[next]\n\t"
                         "sxtab16 %[odd], %[odd], %[next], ror #8\n\t"
                         "bne     1b"
                         : [even] "+r"(sums->even), [odd] "+r"(sums->odd), [x] "+r"(x), [word] "=&r"(word), [next] "=&r"(next)
                         : [end] "r"(end), [step] "r"(step), [three] "r"(3 * step)
                         : "cc", "memory");
    }
#else
    for (; x != end; x += step) {
        tk_add_bytes(sums, tk_load4(x));
    }
#endif
    return x;
}

/* Sums of four channels; x: those of the first position. */
static inline tk_sums_t tk_block_sums(const tk_block_t *block, const int8_t *x)
{
    const int32_t step = block->step;
    tk_sums_t sums = {0, 0};
    for (int32_t row = block->rows; row > 0; row--, x += block->row_step) {
        const int8_t *const end = x + block->columns * step;
        const int8_t *at = tk_add_fours(&sums, x, x + (block->columns & ~3) * step, step);
        for (; at != end; at += step) {
            tk_add_bytes(&sums, tk_load4(at));
        }
    }
    return sums;
}

/* Maxima of four channels, as bytes. */
static inline int32_t tk_block_maxima(const tk_block_t *block, const int8_t *x)
{
    const int32_t step = block->step;
    int32_t largest = tk_load4(x);
    for (int32_t row = block->rows; row > 0; row--, x += block->row_step) {
        const int8_t *const end = x + block->columns * step;
        for (const int8_t *at = x; at != end; at += step) {
            largest = tk_max4(largest, tk_load4(at));
        }
    }
    return largest;
}

/* The next four channels after those from `channel` on; the last four overlap with others where channels are no multiple. */
static inline int32_t tk_next4(int32_t channel, int32_t channels)
{
    return channel + 4 < channels && channel + 8 > channels ? channels - 4 : channel + 4;
}

#endif
