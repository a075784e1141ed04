#include "tk_depthwise.h"

#if TK_HAS_DSP

/* The two sums of an output row from the row pair at r7: kernel columns 0 .. 3 and 4 .. 6, whose weights stand from r8.
 * `first_sum` and `second_sum` are what the sums begin with: themselves, or the bias in r3. */
#define LEFT(first, second, first_sum, second_sum)                                                                     \
    "ldrd r4, r5, [r7]\n"                                                                                              \
    "smlad " first ", r4, r8, " first_sum "\n"                                                                         \
    "smlad " first ", r5, r9, " first "\n"                                                                             \
    "ldrd r4, r5, [r7, #8]\n"                                                                                          \
    "smlad " first ", r4, r10, " first "\n"                                                                            \
    "smlad " second ", r4, r8, " second_sum "\n"                                                                       \
    "smlad " first ", r5, r11, " first "\n"                                                                            \
    "smlad " second ", r5, r9, " second "\n"                                                                           \
    "ldrd r4, r5, [r7, #16]\n"                                                                                         \
    "smlad " second ", r4, r10, " second "\n"                                                                          \
    "smlad " second ", r5, r11, " second "\n"
#define RIGHT(first, second)                                                                                           \
    "ldrd r4, r5, [r7, #16]\n"                                                                                         \
    "smlad " first ", r4, r8, " first "\n"                                                                             \
    "smlad " first ", r5, r9, " first "\n"                                                                             \
    "ldrd r4, r5, [r7, #24]\n"                                                                                         \
    "smlad " first ", r4, r10, " first "\n"                                                                            \
    "smlad " second ", r4, r8, " second "\n"                                                                           \
    "smlad " second ", r5, r9, " second "\n"                                                                           \
    "ldr r4, [r7, #32]\n"                                                                                              \
    "smlad " second ", r4, r10, " second "\n"

/* Two kernel rows: for the first output row, and in the next row pair for the second one. lr the next weights, r12 the
 * pitch. */
#define LEFT_ROWS(sum0, sum1, sum2)                                                                                    \
    "ldm lr!, {r8, r9, r10, r11}\n" LEFT("r0", "r2", sum0, sum2)                                                       \
    "add r7, r7, r12\n" LEFT("r1", "r3", sum1, "r3")
#define RIGHT_ROWS                                                                                                     \
    "ldm lr!, {r8, r9, r10}\n" RIGHT("r0", "r2") "add r7, r7, r12\n" RIGHT("r1", "r3")
#define NEXT_LEFT LEFT_ROWS("r0", "r1", "r2")
#define MACS                                                                                                           \
    "ldr lr, %[weights]\n"                                                                                             \
    "ldr r3, %[bias]\n"                                                                                                \
    "mov r7, r6\n" LEFT_ROWS("r3", "r3", "r3") NEXT_LEFT NEXT_LEFT NEXT_LEFT                                           \
    "mov r7, r6\n" RIGHT_ROWS RIGHT_ROWS RIGHT_ROWS RIGHT_ROWS "adds r6, r6, #16\n"
#define SETUP "ldrd r6, r12, %[x]\n"
#define LAST(outputs) TK_AGAIN(TK_EACH_1)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_ONCE(c, TK_KEEP_WEIGHTS SETUP, MACS, TK_EACH_1, LAST);
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    (void)c;
    const int32_t i = pair - row;
    if (i < 0 || i > 3) {
        return 0;
    }
    return column < 4 ? stream[4 * i + column] : stream[16 + 3 * i + column - 4];
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

static inline __attribute__((always_inline)) void expand(const int8_t *from, int32_t bits, int32_t *to)
{
    tk_depthwise_expand_rows(from, bits, 7, 4, to);
    tk_depthwise_expand_rows(from + 4 * 7, bits, 7, 3, to + 16);
}

void tk_depthwise_7x7_s2(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, expand, 28);
}
