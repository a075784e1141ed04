/* What both forms of a fully connected layer share: what is around the loop over inputs, and the way from sums to
 * outputs.
 *
 * Registers of the loop: r0 column, r1 stream, r2-r5 sums, r6-r9 column words, r10-r12 and lr weight words. What else
 * is needed lies in the stack frame, which the assembly reaches through sp.
 */
#ifndef TK_FULLY_CONNECTED_GROUPS_H
#define TK_FULLY_CONNECTED_GROUPS_H

#include "tk_armv7em_dense.h"
#include "tk_dsp.h"
#include "tk_go.h"
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

/* What the assembly reaches through sp. The code's addresses are made in place of what they depend on. */
typedef struct {
    const int32_t *column;
    int32_t first;                      /* where a group begins: with a single quad, or at `entry` */
    int32_t entry;                      /* into the first turn of the loop over steps */
    const int32_t *column_end;
    int8_t *y;
    const int8_t *y_end;                /* right behind y */
    const int32_t *factors;
    int32_t unused;                     /* makes this the stack's end */
} tk_groups_frame_t;

#define TK_STEPS 8

/* Two outputs from doubled sums a, b, whose products with their multipliers are in r0 and r12. */
#define TK_ROUNDED(a, b, shift_a, shift_b)                                                                             \
    "add r0, r0, " a ", asr #31\n"                                                                                     \
    "add r12, r12, " b ", asr #31\n"                                                                                   \
    "asr " a ", r0, " shift_a "\n"                                                                                     \
    "asr " b ", r12, " shift_b "\n"                                                                                    \
    "ssat " a ", #8, " a "\n"                                                                                          \
    "ssat " b ", #8, " b "\n"
/* By the factors in r6 - r8. */
#define TK_SHARED(a, b)                                                                                                \
    "smmlar r0, " a ", r6, r7\n"                                                                                       \
    "smmlar r12, " b ", r6, r7\n" TK_ROUNDED(a, b, "r8", "r8")
/* By their own, which are next in the stream. */
#define TK_OWN(a, b)                                                                                                   \
    "ldm r1!, {r6, r7, r8, r9, r10, r11}\n"                                                                            \
    "smmlar r0, " a ", r6, r7\n"                                                                                       \
    "smmlar r12, " b ", r9, r10\n" TK_ROUNDED(a, b, "r8", "r11")

/* The body of a function of the type above: `half` takes one quad, `step` takes two (`step_bytes` of code), `sums`
 * turns r2 - r5 into the doubled sums of channels whose registers are a, b, c, d. A turn of the loop over the column
 * has TK_STEPS steps; the first one is entered in the middle, so that what is left after whole turns comes first. */
#define TK_GROUPS_BODY(half, step, step_bytes, sums, a, b, c, d)                                                       \
    const int32_t first_steps = depth < 8 ? 0 : (depth / 8 - 1) % TK_STEPS + 1;                                        \
    tk_groups_frame_t frame = {column, depth & 4, first_steps * step_bytes, column + depth / 2, y, end, factors, 0};   \
    register const int32_t *next __asm__("r1") = stream;                                                               \
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
                     "0: ldm r1!, {r2, r3, r4, r5}\n" TK_GO("%[column]", "%[first]")                                   \
                     ".balign 4\n"                                                                                     \
                     "2:\n" half "ldr pc, %[entry]\n"                                                                  \
                     "3:\n"                                                                                            \
                     ".rept %c[steps]\n" step ".endr\n"                                                                \
                     ".balign 4\n"                                                                                     \
                     "4: ldr r6, %[column_end]\n"                                                                      \
                     "cmp r0, r6\n"                                                                                    \
                     "bne.w 3b\n" sums "ldr r0, %[factors]\n"                                                          \
                     "cbz r0, 5f\n"                                                                                    \
                     "ldm r0, {r6, r7, r8}\n" TK_SHARED(a, b) TK_SHARED(c, d)                                          \
                     "b 6f\n"                                                                                          \
                     "5:\n" TK_OWN(a, b) TK_OWN(c, d)                                                                  \
                     "6: ldrd r6, r7, %[y]\n"                                                                          \
                     "strb " a ", [r6], #1\n"                                                                          \
                     "strb " b ", [r6], #1\n"                                                                          \
                     "strb " c ", [r6], #1\n"                                                                          \
                     "strb " d ", [r6], #1\n"                                                                          \
                     "str r6, %[y]\n"                                                                                  \
                     "cmp r6, r7\n"                                                                                    \
                     "bne.w 0b\n"                                                                                      \
                     : "+r"(next), [y] "+m"(frame.y), [entry] "+m"(frame.entry), [first] "+m"(frame.first)             \
                     : [column] "m"(frame.column), [column_end] "m"(frame.column_end), [y_end] "m"(frame.y_end),       \
                       [factors] "m"(frame.factors), [steps] "i"(TK_STEPS)                                             \
                     : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc",          \
                       "memory");                                                                                      \
    return next

#endif

#endif
