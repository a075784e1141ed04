#include "tk_fully_connected_groups.h"

#if TK_HAS_DSP

/* Two channels: `both` sums 256 * B + A, `low` sums A. */
#define TK_PAIR(both, low, column, weights)                                                                            \
    "smlad " both ", " column ", " weights ", " both "\n"                                                              \
    "sxtb16 " weights ", " weights "\n"                                                                                \
    "smlad " low ", " column ", " weights ", " low "\n"
#define TK_PAIRS(first, second)                                                                                        \
    "ldm r1!, {r10, r11, r12, lr}\n" TK_PAIR("r2", "r3", first, "r10") TK_PAIR("r4", "r5", first, "r11")               \
        TK_PAIR("r2", "r3", second, "r12") TK_PAIR("r4", "r5", second, "lr")
#define TK_HALF "ldrd r6, r7, [r0], #8\n" TK_PAIRS("r6", "r7")
#define TK_STEP "ldm r0!, {r6, r7, r8, r9}\n" TK_PAIRS("r6", "r7") TK_PAIRS("r8", "r9")
/* 2 * B = (256 * B + A - A) / 128. */
#define TK_SUMS                                                                                                        \
    "sub r2, r2, r3\n"                                                                                                 \
    "sub r4, r4, r5\n"                                                                                                 \
    "asr r2, r2, #7\n"                                                                                                 \
    "asr r4, r4, #7\n"                                                                                                 \
    "lsl r3, r3, #1\n"                                                                                                 \
    "lsl r5, r5, #1\n"

static __attribute__((noinline)) const int32_t *packed_groups(const int32_t *stream, const int32_t *column,
                                                              int32_t depth, const int32_t *factors, int8_t *y,
                                                              const int8_t *end)
{
    TK_GROUPS_BODY(TK_HALF, TK_STEP, 4 * 27, TK_SUMS, "r3", "r2", "r5", "r4");
}

#else

static const int32_t *packed_groups(const int32_t *stream, const int32_t *column, int32_t depth, const int32_t *factors,
                                    int8_t *y, const int8_t *end)
{
    while (y != end) {
        int32_t sums[TK_GROUP];
        __builtin_memcpy(sums, stream, sizeof(sums));
        stream += TK_GROUP;
        for (int32_t i = 0; i < depth / 2; i++) {
            for (int32_t channel = 0; channel < TK_GROUP; channel += 2) {
                const int32_t word = *stream++;
                sums[channel] = tk_smlad(column[i], word, sums[channel]);
                sums[channel + 1] = tk_smlad(column[i], tk_sxtb16(word), sums[channel + 1]);
            }
        }
        for (int32_t channel = 0; channel < TK_GROUP; channel += 2) {
            const int32_t *own = factors ? factors : stream;
            const int32_t *other = factors ? factors : stream + 3;
            const int32_t high = (int32_t)((uint32_t)sums[channel] - (uint32_t)sums[channel + 1]) >> 7;
            *y++ = tk_rounded((int32_t)((uint32_t)sums[channel + 1] << 1), own);
            *y++ = tk_rounded(high, other);
            stream += factors ? 0 : 6;
        }
    }
    return stream;
}

#endif

void tk_fully_connected_packed(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_fully_connected_dsp(params, x, y, scratch, packed_groups);
}
