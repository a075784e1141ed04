/* What both forms of a fully connected layer share: the frame around the loop over inputs, and the way from sums to outputs.
 *
 * Registers of the loop: r0 column, r1 stream, r2-r5 sums, r6-r9 column words, r10-r12 and lr weight words. What else
 * is needed lies in the stack frame, which the assembly reaches through sp.
 */
#ifndef TK_FULLY_CONNECTED_GROUPS_H
#define TK_FULLY_CONNECTED_GROUPS_H

#include "tk_armv7em_dense.h"
#include "tk_dsp.h"
#include "tk_widen.h"

#define TK_GROUP 4

/* Computes channels from `y` up to `end`, a multiple of TK_GROUP of them; returns what follows them in the stream. */
typedef const int32_t *tk_groups_t(const int32_t *stream, const int32_t *column, int32_t depth, const int32_t *factors,
                                   int8_t *y, const int8_t *end);

/* One output from a doubled sum. */
static inline int8_t tk_rounded(int32_t sum, const int32_t *factors)
{
    return (int8_t)tk_ssat8((tk_smmlar(sum, factors[0], factors[1]) + (sum >> 31)) >> factors[2]);
}

/* Whole groups first, then the rest of the channels by way of a group beside y. */
static inline __attribute__((always_inline)) void tk_fully_connected_dsp(const tk_fully_connected_dsp_t *p,
                                                                         const int8_t *x, int8_t *y, int8_t *scratch,
                                                                         tk_groups_t *groups)
{
    int32_t *column = (int32_t *)(void *)scratch;
    const int32_t depth = (p->in_c + 3) & ~3;
    const int32_t *factors = p->has_shared_factors ? p->factors : 0;
    const int32_t *stream = p->stream;
    const int32_t whole = p->out_c & ~(TK_GROUP - 1);
    tk_widen_1(column, x, p->in_c);
    if (whole) {
        stream = groups(stream, column, depth, factors, y, y + whole);
    }
    if (whole < p->out_c) {
        int8_t last[TK_GROUP];
        groups(stream, column, depth, factors, last, last + TK_GROUP);
        for (int32_t channel = whole; channel < p->out_c; channel++) {
            y[channel] = last[channel - whole];
        }
    }
    if (p->out_min > INT8_MIN || p->out_max < INT8_MAX) {
        for (int32_t channel = 0; channel < p->out_c; channel++) {
            const int8_t low = y[channel] < p->out_min ? p->out_min : y[channel];
            y[channel] = low > p->out_max ? p->out_max : low;
        }
    }
}

#if TK_HAS_DSP

typedef struct {
    const int32_t *column, *column_end;
    int8_t *y;
    const int8_t *y_end;
    const int32_t *factors;
} tk_groups_frame_t;

/* One output from the doubled sum in `sum`, with r6 multiplier, r7 addend, r8 shift, r10 y. */
#define TK_STORE(sum)                                                                                                  \
    "smmlar r9, " sum ", r6, r7\n"                                                                                     \
    "add r9, r9, " sum ", asr #31\n"                                                                                   \
    "asr.w r9, r9, r8\n"                                                                                               \
    "ssat r9, #8, r9\n"                                                                                                \
    "strb r9, [r10], #1\n"
#define TK_STORE_OWN(sum) "ldm r1!, {r6, r7, r8}\n" TK_STORE(sum)

/* The function body: `half` takes one quad, `step` takes two (of `step_words` instructions, all of 4 bytes), `sums` turns
 * r2-r5 into the doubled sums of channels a, b, c, d: their registers are named from first to fourth. The loop over
 * the column is entered in the middle of its block, so that the rest of the steps comes first. */
#define TK_GROUPS_BODY(half, step, step_words, sums, a, b, c, d)                                     \
    tk_groups_frame_t frame = {column, column + depth / 2, y, end, factors};                                           \
    register const int32_t *next __asm__("r1") = stream;                                                               \
    const int32_t skipped = (depth / 8 % 8) * (4 * step_words);                                                        \
    int32_t entry[2] = {skipped, depth & 4};                                                                           \
    __asm__ volatile("adr r2, 4f\n"                                                                                    \
                     "ldr r3, %[entry]\n"                                                                              \
                     "sub r3, r2, r3\n"                                                                                \
                     "orr r3, r3, #1\n"                                                                                \
                     "str r3, %[entry]\n"                                                                              \
                     "ldr r4, %[first]\n"                                                                              \
                     "cbz r4, 1f\n"                                                                                    \
                     "adr r3, 2f\n"                                                                                    \
                     "orr r3, r3, #1\n"                                                                                \
                     "1: str r3, %[first]\n"                                                                           \
                     "0: ldr r0, %[column]\n"                                                                          \
                     "ldm r1!, {r2, r3, r4, r5}\n"                                                                     \
                     "ldr pc, %[first]\n"                                                                              \
                     ".balign 4\n"                                                                                     \
                     "2:\n" half "ldr pc, %[entry]\n"                                                                  \
                     "3:\n"                                                                                            \
                     ".rept 8\n" step ".endr\n"                                                                        \
                     ".balign 4\n"                                                                                     \
                     "4: ldr r6, %[column_end]\n"                                                                      \
                     "cmp r0, r6\n"                                                                                    \
                     "bne.w 3b\n" sums "ldr r10, %[y]\n"                                                               \
                     "ldr r0, %[factors]\n"                                                                            \
                     "cbz r0, 5f\n"                                                                                    \
                     "ldm r0, {r6, r7, r8}\n" TK_STORE(a) TK_STORE(b) TK_STORE(c) TK_STORE(d)        \
                     "b 6f\n"                                                                                          \
                     "5:\n" TK_STORE_OWN(a) TK_STORE_OWN(b) TK_STORE_OWN(c) TK_STORE_OWN(d)          \
                     "6: str r10, %[y]\n"                                                                              \
                     "ldr r6, %[y_end]\n"                                                                              \
                     "cmp r10, r6\n"                                                                                   \
                     "bne.w 0b\n"                                                                                      \
                     : "+r"(next), [y] "+m"(frame.y), [entry] "+m"(entry[0]), [first] "+m"(entry[1])                   \
                     : [column] "m"(frame.column), [column_end] "m"(frame.column_end), [y_end] "m"(frame.y_end),       \
                       [factors] "m"(frame.factors)                                                                    \
                     : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc",          \
                       "memory");                                                                                      \
    return next

#endif

#endif
