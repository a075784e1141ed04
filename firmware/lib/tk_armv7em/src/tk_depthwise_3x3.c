#include "tk_depthwise.h"

#if TK_HAS_DSP

/* r8, r10, r12: (w0, w1) of the kernel columns 2, 1, 0; r9, r11, lr: their (w1, w2). The first row pair gives two
 * products to the first output row and one to the second, the other pair the reverse. The bias stands in r3 until the
 * last sum of the block begins. ONE: a single output column. */
#define SETUP "ldm r4, {r8, r9, r10, r11, r12, lr}\n" TK_PAIRS_2
#define MACS                                                                                                           \
    "ldr r3, %[bias]\n"                                                                                                \
    "ldrd r4, r5, [r6], #8\n"                                                                                          \
    "smlad r0, r4, r12, r3\n"                                                                                          \
    "smlatb r1, r4, r12, r3\n"                                                                                         \
    "smlad r0, r5, r10, r0\n"                                                                                          \
    "smlatb r1, r5, r10, r1\n"                                                                                         \
    "smlad r2, r5, r12, r3\n"                                                                                          \
    "smlatb r3, r5, r12, r3\n"                                                                                         \
    "ldrd r4, r5, [r6]\n"                                                                                              \
    "smlad r0, r4, r8, r0\n"                                                                                           \
    "smlatb r1, r4, r8, r1\n"                                                                                          \
    "smlad r2, r4, r10, r2\n"                                                                                          \
    "smlatb r3, r4, r10, r3\n"                                                                                         \
    "smlad r2, r5, r8, r2\n"                                                                                           \
    "smlatb r3, r5, r8, r3\n"                                                                                          \
    "ldrd r4, r5, [r7], #8\n"                                                                                          \
    "smlabt r0, r4, lr, r0\n"                                                                                          \
    "smlad r1, r4, lr, r1\n"                                                                                           \
    "smlabt r0, r5, r11, r0\n"                                                                                         \
    "smlad r1, r5, r11, r1\n"                                                                                          \
    "smlabt r2, r5, lr, r2\n"                                                                                          \
    "smlad r3, r5, lr, r3\n"                                                                                           \
    "ldrd r4, r5, [r7]\n"                                                                                              \
    "smlabt r0, r4, r9, r0\n"                                                                                          \
    "smlad r1, r4, r9, r1\n"                                                                                           \
    "smlabt r2, r4, r11, r2\n"                                                                                         \
    "smlad r3, r4, r11, r3\n"                                                                                          \
    "smlabt r2, r5, r9, r2\n"                                                                                          \
    "smlad r3, r5, r9, r3\n"
#define ONE                                                                                                            \
    "ldr r1, %[bias]\n"                                                                                                \
    "ldrd r4, r5, [r6], #4\n"                                                                                          \
    "smlad r0, r4, r12, r1\n"                                                                                          \
    "smlatb r1, r4, r12, r1\n"                                                                                         \
    "smlad r0, r5, r10, r0\n"                                                                                          \
    "smlatb r1, r5, r10, r1\n"                                                                                         \
    "ldr r4, [r6, #4]\n"                                                                                               \
    "smlad r0, r4, r8, r0\n"                                                                                           \
    "smlatb r1, r4, r8, r1\n"                                                                                          \
    "ldrd r4, r5, [r7], #4\n"                                                                                          \
    "smlabt r0, r4, lr, r0\n"                                                                                          \
    "smlad r1, r4, lr, r1\n"                                                                                           \
    "smlabt r0, r5, r11, r0\n"                                                                                         \
    "smlad r1, r5, r11, r1\n"                                                                                          \
    "ldr r4, [r7, #4]\n"                                                                                               \
    "smlabt r0, r4, r9, r0\n"                                                                                          \
    "smlad r1, r4, r9, r1\n"
#define LAST(outputs) TK_ALONE(ONE, outputs)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_TWICE(c, SETUP, MACS, TK_EACH_2, LAST)
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    (void)c;
    return tk_depthwise_odd(stream, 3, row, pair, column);
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

void tk_depthwise_3x3(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, 0, 0);
}
