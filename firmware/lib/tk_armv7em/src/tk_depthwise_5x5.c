#include "tk_depthwise.h"

#if TK_HAS_DSP

/* One kernel column at `at` bytes, for two output columns or for one: r9 (w0, w1), r10 (w2, w3), r11 (w1, w2), r12 (w3,
 * w4); lr the next weights. `sum0` .. are what the sums begin with: themselves, or the bias in the last one. */
#define COLUMN(at, sum0, sum1, sum2)                                                                                   \
    "ldm lr!, {r9, r10, r11, r12}\n"                                                                                   \
    "ldrd r4, r5, [r6" at "\n"                                                                                         \
    "smlad r0, r4, r9, " sum0 "\n"                                                                                     \
    "smlatb r1, r4, r9, " sum1 "\n"                                                                                    \
    "smlad r2, r5, r9, " sum2 "\n"                                                                                     \
    "smlatb r3, r5, r9, r3\n"                                                                                          \
    "ldrd r4, r5, [r7" at "\n"                                                                                         \
    "smlad r0, r4, r10, r0\n"                                                                                          \
    "smlad r1, r4, r11, r1\n"                                                                                          \
    "smlad r2, r5, r10, r2\n"                                                                                          \
    "smlad r3, r5, r11, r3\n"                                                                                          \
    "ldrd r4, r5, [r8" at "\n"                                                                                         \
    "smlabt r0, r4, r12, r0\n"                                                                                         \
    "smlad r1, r4, r12, r1\n"                                                                                          \
    "smlabt r2, r5, r12, r2\n"                                                                                         \
    "smlad r3, r5, r12, r3\n"
#define COLUMN_OF_ONE(at, sum0)                                                                                        \
    "ldm lr!, {r9, r10, r11, r12}\n"                                                                                   \
    "ldr r4, [r6" at "\n"                                                                                              \
    "smlad r0, r4, r9, " sum0 "\n"                                                                                     \
    "smlatb r1, r4, r9, r1\n"                                                                                          \
    "ldr r4, [r7" at "\n"                                                                                              \
    "smlad r0, r4, r10, r0\n"                                                                                          \
    "smlad r1, r4, r11, r1\n"                                                                                          \
    "ldr r4, [r8" at "\n"                                                                                              \
    "smlabt r0, r4, r12, r0\n"                                                                                         \
    "smlad r1, r4, r12, r1\n"
#define NEXT(at) COLUMN(", #" at "]", "r0", "r1", "r2")
#define NEXT_OF_ONE(at) COLUMN_OF_ONE(", #" at "]", "r0")
#define MACS                                                                                                           \
    "ldr lr, %[weights]\n"                                                                                             \
    "ldr r3, %[bias]\n" COLUMN(", #16]", "r3", "r3", "r3")                                                             \
    NEXT("12") NEXT("8") NEXT("4")                                                                                     \
    COLUMN("], #8", "r0", "r1", "r2")
#define ONE                                                                                                            \
    "ldr lr, %[weights]\n"                                                                                             \
    "ldr r1, %[bias]\n" COLUMN_OF_ONE(", #16]", "r1")                                                                  \
    NEXT_OF_ONE("12") NEXT_OF_ONE("8") NEXT_OF_ONE("4")                                                                \
    COLUMN_OF_ONE("], #4", "r0")
#define LAST(outputs) TK_ALONE(ONE, outputs)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_ONCE(c, TK_KEEP_WEIGHTS TK_PAIRS_3, MACS, TK_EACH_3, LAST);
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    (void)c;
    return tk_depthwise_odd(stream, 5, row, pair, column);
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

static inline __attribute__((always_inline)) void expand(const int8_t *from, int32_t bits, int32_t *to)
{
    tk_depthwise_expand_odd(from, bits, 5, to);
}

void tk_depthwise_5x5(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, expand, 20);
}
