#include "tk_depthwise.h"

#if TK_HAS_DSP

/* r6 the block's first input, r7 the row pair, r8 the input; r9, r10 the weights of both rows; r11 kernel columns left,
 * r12 bytes from one output's input to the next one's. */
#define SETUP "ldr r6, %[x]\nldr r12, %[column]\n"
#define MACS                                                                                                           \
    "ldr lr, %[weights]\n"                                                                                             \
    "ldr r3, %[bias]\n"                                                                                                \
    "mov r0, r3\n"                                                                                                     \
    "mov r1, r3\n"                                                                                                     \
    "mov r2, r3\n"                                                                                                     \
    "mov r7, r6\n"                                                                                                     \
    "ldr r4, %[kernel_pairs]\n"                                                                                        \
    "6: str r4, %[pairs]\n"                                                                                            \
    "mov r8, r7\n"                                                                                                     \
    "ldr r11, %[kernel_w]\n"                                                                                           \
    "7: ldr r5, [r8, r12]\n"                                                                                           \
    "ldr r4, [r8], #4\n"                                                                                               \
    "ldrd r9, r10, [lr], #8\n"                                                                                         \
    "smlad r0, r4, r9, r0\n"                                                                                           \
    "smlad r1, r4, r10, r1\n"                                                                                          \
    "smlad r2, r5, r9, r2\n"                                                                                           \
    "smlad r3, r5, r10, r3\n"                                                                                          \
    "subs r11, r11, #1\n"                                                                                              \
    "bgt 7b\n"                                                                                                         \
    "ldr r4, %[pitch]\n"                                                                                               \
    "add r7, r7, r4\n"                                                                                                 \
    "ldr r4, %[pairs]\n"                                                                                               \
    "subs r4, r4, #1\n"                                                                                                \
    "bgt 6b\n"                                                                                                         \
    "add r6, r6, r12, lsl #1\n"
#define LAST(outputs) TK_AGAIN(TK_EACH_1)

static inline __attribute__((always_inline)) void channels(tk_depthwise_channels_t *c)
{
    TK_CHANNELS_ONCE(c, TK_KEEP_WEIGHTS SETUP, MACS, TK_EACH_1, LAST);
}

#else

static int32_t weights(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair, int32_t column)
{
    return stream[2 * (pair * c->kernel_w + column) + row];
}

static void channels(tk_depthwise_channels_t *c)
{
    tk_depthwise_walk(c, weights);
}

#endif

void tk_depthwise_any(const tk_depthwise_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_depthwise_run(p, x, y, scratch, channels, 0, 0);
}
