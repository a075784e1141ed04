#include "tk_fully_connected_groups.h"

#if TK_HAS_DSP

/* Four channels times one word of the column. */
#define TK_FOUR(column)                                                                                                \
    "ldm r1!, {r10, r11, r12, lr}\n"                                                                                   \
    "smlad r2, " column ", r10, r2\n"                                                                                  \
    "smlad r3, " column ", r11, r3\n"                                                                                  \
    "smlad r4, " column ", r12, r4\n"                                                                                  \
    "smlad r5, " column ", lr, r5\n"
#define TK_HALF "ldrd r6, r7, [r0], #8\n" TK_FOUR("r6") TK_FOUR("r7")
#define TK_STEP "ldm r0!, {r6, r7, r8, r9}\n" TK_FOUR("r6") TK_FOUR("r7") TK_FOUR("r8") TK_FOUR("r9")

static __attribute__((noinline)) const int32_t *widened_groups(const int32_t *stream, const int32_t *column,
                                                               int32_t depth, const int32_t *factors, int8_t *y,
                                                               const int8_t *end)
{
    TK_GROUPS_BODY(TK_HALF, TK_STEP, 4 * 21, "", "r2", "r3", "r4", "r5");
}

#else

static const int32_t *widened_groups(const int32_t *stream, const int32_t *column, int32_t depth,
                                     const int32_t *factors, int8_t *y, const int8_t *end)
{
    while (y != end) {
        int32_t sums[TK_GROUP];
        __builtin_memcpy(sums, stream, sizeof(sums));
        stream += TK_GROUP;
        for (int32_t i = 0; i < depth / 2; i++) {
            for (int32_t channel = 0; channel < TK_GROUP; channel++) {
                sums[channel] = tk_smlad(column[i], *stream++, sums[channel]);
            }
        }
        for (int32_t channel = 0; channel < TK_GROUP; channel++) {
            *y++ = tk_rounded(sums[channel], factors ? factors : stream);
            stream += factors ? 0 : 3;
        }
    }
    return stream;
}

#endif

void tk_fully_connected_widened(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_fully_connected_dsp(params, x, y, scratch, widened_groups);
}
