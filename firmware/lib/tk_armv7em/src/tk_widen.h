/* int8 inputs -> columns of int16 quads, as tk_armv7em_rows.h describes them.
 *
 * `count` inputs give (count + 3) / 4 quads; the excess of the last one is 0. Nothing beyond `count` inputs is read.
 * Inputs may stand at any address, `to` is aligned to 4 bytes. Each function returns where the next quad belongs.
 */
#ifndef TK_WIDEN_H
#define TK_WIDEN_H

#include <stdint.h>

#include "tk_dsp.h"

/* The last count % 4 inputs as a word, filled up with 0. */
static inline int32_t tk_widen_tail(const int8_t *x, int32_t count)
{
    int32_t word = 0;
    __builtin_memcpy(&word, x, (uint32_t)count & 3U);
    return word;
}

/* One column. */
static inline int32_t *tk_widen_1(int32_t *to, const int8_t *x, int32_t count)
{
    for (const int8_t *end = x + (count & ~3); x != end; x += 4) {
        const int32_t word = tk_load4(x);
        *to++ = tk_sxtb16(word);
        *to++ = tk_sxtb16_odd(word);
    }
    if (count & 3) {
        const int32_t word = tk_widen_tail(x, count);
        *to++ = tk_sxtb16(word);
        *to++ = tk_sxtb16_odd(word);
    }
    return to;
}

/* One quad of two interleaved columns. */
static inline int32_t *tk_widen_quad_2(int32_t *to, int32_t word0, int32_t word1)
{
    to[0] = tk_sxtb16(word0);
    to[1] = tk_sxtb16(word1);
    to[2] = tk_sxtb16_odd(word0);
    to[3] = tk_sxtb16_odd(word1);
    return to + 4;
}

/* Two interleaved columns from x0 and x1. */
static inline int32_t *tk_widen_2(int32_t *to, const int8_t *x0, const int8_t *x1, int32_t count)
{
    int32_t quads = count / 4;
#if TK_HAS_DSP
#define TK_WIDEN_QUAD_2                                                                                                \
    "ldr r12, [%[x0]], #4\n\t"                                                                                         \
    "ldr lr, [%[x1]], #4\n\t"                                                                                          \
    "sxtb16 r4, r12\n\t"                                                                                               \
    "sxtb16 r5, lr\n\t"                                                                                                \
    "sxtb16 r6, r12, ror #8\n\t"                                                                                       \
    "sxtb16 r8, lr, ror #8\n\t"                                                                                        \
    "stmia %[to]!, {r4, r5, r6, r8}\n\t"
    __asm__ volatile("lsrs %[quads], %[quads], #1\n\t"
                     "bcc 1f\n\t" TK_WIDEN_QUAD_2
                     "1:\n\t"
                     "cbz %[quads], 3f\n"
                     "2:\n\t" TK_WIDEN_QUAD_2 TK_WIDEN_QUAD_2
                     "subs %[quads], %[quads], #1\n\t"
                     "bne 2b\n"
                     "3:"
                     : [to] "+r"(to), [x0] "+r"(x0), [x1] "+r"(x1), [quads] "+l"(quads)
                     :
                     : "r4", "r5", "r6", "r8", "r12", "lr", "memory", "cc");
#undef TK_WIDEN_QUAD_2
#else
    for (; quads > 0; quads--, x0 += 4, x1 += 4) {
        to = tk_widen_quad_2(to, tk_load4(x0), tk_load4(x1));
    }
#endif
    if (count & 3) {
        to = tk_widen_quad_2(to, tk_widen_tail(x0, count), tk_widen_tail(x1, count));
    }
    return to;
}

#endif
