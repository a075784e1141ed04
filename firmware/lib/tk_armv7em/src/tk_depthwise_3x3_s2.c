#include "tk_depthwise.h"

#if TK_HAS_DSP

/* r9, r10, r11: (w0, w1) of the kernel columns 0, 1, 2; r12, lr: their w2. The middle one of the three row pairs ends
 * the first output row and begins the second. The bias stands in r3 until the last sum of the block begins. */
#define SETUP "ldm r4, {r9, r10, r11, r12, lr}\n" TK_PAIRS_3
#define MACS                                                                                                           \
    "ldr r3, %[bias]\n"                                                                                                \
    "ldrd r4, r5, [r6], #16\n"                                                                                         \
    "smlad r0, r4, r9, r3\n"                                                                                           \
    "smlad r0, r5, r10, r0\n"                                                                                          \
    "ldrd r4, r5, [r6, #-8]\n"                                                                                         \
    "smlad r0, r4, r11, r0\n"                                                                                          \
    "smlad r2, r4, r9, r3\n"                                                                                           \
    "smlad r2, r5, r10, r2\n"                                                                                          \
    "ldr r4, [r6]\n"                                                                                                   \
    "smlad r2, r4, r11, r2\n"                                                                                          \
    "ldrd r4, r5, [r7], #16\n"                                                                                         \
    "smlabb r0, r4, r12, r0\n"                                                                                         \
    "smlad r1, r4, r9, r3\n"                                                                                           \
    "smlabt r0, r5, r12, r0\n"                                                                                         \
    "smlad r1, r5, r10, r1\n"                                                                                          \
    "ldrd r4, r5, [r7, #-8]\n"                                                                                         \
    "smlabb r0, r4, lr, r0\n"                                                                                          \
    "smlad r1, r4, r11, r1\n"                                                                                          \
    "smlabb r2, r4, r12, r2\n"                                                                                         \
    "smlad r3, r4, r9, r3\n"                                                                                           \
    "smlabt r2, r5, r12, r2\n"                                                                                         \
    "smlad r3, r5, r10, r3\n"                                                                                          \
    "ldr r4, [r7]\n"                                                                                                   \
    "smlabb r2, r4, lr, r2\n"                                                                                          \
    "smlad r3, r4, r11, r3\n"                                                                                          \
    "ldrd r4, r5, [r8], #16\n"                                                                                         \
    "smlabb r1, r4, r12, r1\n"                                                                                         \
    "smlabt r1, r5, r12, r1\n"                                                                                         \
    "ldrd r4, r5, [r8, #-8]\n"                                                                                         \
    "smlabb r1, r4, lr, r1\n"                                                                                          \
    "smlabb r3, r4, r12, r3\n"                                                                                         \
    "smlabt r3, r5, r12, r3\n"                                                                                         \
    "ldr r4, [r8]\n"                                                                                                   \
    "smlabb r3, r4, lr, r3\n"
#define LAST(outputs) TK_AGAIN(TK_EACH_3)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_TWICE(c, SETUP, MACS, TK_EACH_3, LAST)
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    (void)c;
    if (pair == row) {
        return stream[column];
    }
    const int32_t lower = column == 1 ? tk_high(stream[3]) : tk_low(stream[3 + column / 2]);
    return pair == row + 1 ? tk_pair(lower, 0) : 0;
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

void tk_depthwise_3x3_s2(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, 0, 0);
}
