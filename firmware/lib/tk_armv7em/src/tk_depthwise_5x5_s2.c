#include "tk_depthwise.h"

#if TK_HAS_DSP

/* The two sums of an output row from the row pair at r7; r8 .. r12 its weights. `first_sum` and `second_sum` are what
 * the sums begin with: themselves, or the bias in r3. */
#define ROW(first, second, first_sum, second_sum)                                                                      \
    "ldrd r4, r5, [r7]\n"                                                                                              \
    "smlad " first ", r4, r8, " first_sum "\n"                                                                         \
    "smlad " first ", r5, r9, " first "\n"                                                                             \
    "ldrd r4, r5, [r7, #8]\n"                                                                                          \
    "smlad " first ", r4, r10, " first "\n"                                                                            \
    "smlad " second ", r4, r8, " second_sum "\n"                                                                       \
    "smlad " first ", r5, r11, " first "\n"                                                                            \
    "smlad " second ", r5, r9, " second "\n"                                                                           \
    "ldrd r4, r5, [r7, #16]\n"                                                                                         \
    "smlad " first ", r4, r12, " first "\n"                                                                            \
    "smlad " second ", r4, r10, " second "\n"                                                                          \
    "smlad " second ", r5, r11, " second "\n"                                                                          \
    "ldr r4, [r7, #24]\n"                                                                                              \
    "smlad " second ", r4, r12, " second "\n"

/* Two kernel rows: for the first output row, and in the next row pair for the second one. lr the next weights. */
#define ROWS(sum0, sum1, sum2)                                                                                         \
    "ldm lr!, {r8, r9, r10, r11, r12}\n" ROW("r0", "r2", sum0, sum2)                                                   \
    "ldr r4, %[pitch]\n"                                                                                               \
    "add r7, r7, r4\n" ROW("r1", "r3", sum1, "r3")
#define MACS                                                                                                           \
    "ldr lr, %[weights]\n"                                                                                             \
    "ldr r3, %[bias]\n"                                                                                                \
    "mov r7, r6\n" ROWS("r3", "r3", "r3") ROWS("r0", "r1", "r2") ROWS("r0", "r1", "r2") "adds r6, r6, #16\n"
#define SETUP "ldr r6, %[x]\n"
#define LAST(outputs) TK_AGAIN(TK_EACH_1)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_ONCE(c, TK_KEEP_WEIGHTS SETUP, MACS, TK_EACH_1, LAST);
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    (void)c;
    return pair >= row && pair < row + 3 ? stream[(pair - row) * 5 + column] : 0;
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

static inline __attribute__((always_inline)) void expand(const int8_t *from, int32_t bits, int32_t *to)
{
    tk_depthwise_expand_rows(from, bits, 5, 5, to);
}

void tk_depthwise_5x5_s2(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, expand, 15);
}
