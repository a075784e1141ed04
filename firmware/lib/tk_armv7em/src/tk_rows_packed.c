#include "tk_armv7em_rows.h"
#include "tk_go.h"
#include "tk_rows.h"

/* Channels that share words. */
#define BLOCK 2

#if TK_HAS_DSP

/* What the assembly reaches through sp. The code's addresses are made in place of what they depend on. */
typedef struct {
    const int32_t *columns;
    int32_t first;                      /* where a block begins: with a single quad, or at `entry` */
    int32_t entry;                      /* into the first turn of the loop over steps */
    int32_t after;                      /* a turn: `finish`, or the check whether it was the last one */
    int32_t finish;                     /* a block: outputs */
    const int32_t *columns_end;
    int8_t *y[2];                       /* of the first and of the second column */
    const int32_t *stream;
    int32_t form, out_c, left;          /* left: pairs of columns, this one included */
} frame_t;

#define SMLAD(sum, column, weights) "smlad " sum ", " column ", " weights ", " sum "\n"
#define SXTB16(weights) "sxtb16 " weights ", " weights "\n"

/* Two outputs from doubled sums a, b, by their factors in r6 - r11. */
#define TWO_SIDED(a, b)                                                                                                \
    "smmlar r0, " a ", r6, r7\n"                                                                                       \
    "smmlar r12, " b ", r9, r10\n"                                                                                     \
    "add r0, r0, " a ", asr #31\n"                                                                                     \
    "add r12, r12, " b ", asr #31\n"                                                                                   \
    "asr " a ", r0, r8\n"                                                                                              \
    "asr " b ", r12, r11\n"                                                                                            \
    "ssat " a ", #8, " a "\n"                                                                                          \
    "ssat " b ", #8, " b "\n"
#define ONE_SIDED(a, b)                                                                                                \
    "smmlar r0, " a ", r6, r7\n"                                                                                       \
    "smmlar r12, " b ", r9, r10\n"                                                                                     \
    "asr " a ", r0, r8\n"                                                                                              \
    "asr " b ", r12, r11\n"                                                                                            \
    "ssat " a ", #8, " a "\n"                                                                                          \
    "ssat " b ", #8, " b "\n"
/* From scaled sums. */
_Static_assert(TK_ROWS_SHIFT == 10, "the shift of SSAT");
#define SATURATING(a, b)                                                                                               \
    "smmla " a ", " a ", r6, r7\n"                                                                                     \
    "smmla " b ", " b ", r9, r10\n"                                                                                    \
    "ssat " a ", #8, " a ", asr #10\n"                                                                                 \
    "ssat " b ", #8, " b ", asr #10\n"

/* The way through the stream: r0 column, r1 stream, sums from r2, r6 - r9 column words, r10 - r12 and lr weight words;
 * at the end of a block r6 - r11 are its factors.
 *
 * `half` takes one quad, a step takes two. A turn has `steps` of them; the first one is entered in the middle, so that
 * the steps that are left after whole turns come first. Where one turn is all, it goes straight on to the outputs.
 * `next_pair` prepares the next columns and branches to 0. */
#define WALK(steps, start, half, step, two_sided, one_sided, saturating, next_pair)                                    \
    "adr r2, 4f\n"                                                                                                     \
    "ldr r3, %[entry]\n"                                                                                               \
    "sub r3, r2, r3\n"                                                                                                 \
    "orr r3, r3, #1\n"                                                                                                 \
    "str r3, %[entry]\n"                                                                                               \
    "ldr r4, %[first]\n"                                                                                               \
    "cbz r4, 1f\n"                                                                                                     \
    "adr r3, 2f\n"                                                                                                     \
    "orr r3, r3, #1\n"                                                                                                 \
    "1: str r3, %[first]\n"                                                                                            \
    "ldr r4, %[form]\n"                                                                                                \
    "adr r3, 6f\n"                                                                                                     \
    "cbz r4, 1f\n"                                                                                                     \
    "adr r3, 7f\n"                                                                                                     \
    "cmp r4, #1\n"                                                                                                     \
    "beq 1f\n"                                                                                                         \
    "adr r3, 8f\n"                                                                                                     \
    "1: orr r3, r3, #1\n"                                                                                              \
    "str r3, %[finish]\n"                                                                                              \
    "ldr r4, %[after]\n"                                                                                               \
    "cbz r4, 1f\n"                                                                                                     \
    "adr r3, 5f\n"                                                                                                     \
    "orr r3, r3, #1\n"                                                                                                 \
    "1: str r3, %[after]\n"                                                                                            \
    "0:\n" start TK_GO("%[columns]", "%[first]")                                                                       \
    ".balign 4\n"                                                                                                      \
    "2:\n" half "ldr pc, %[entry]\n"                                                                                   \
    "3:\n"                                                                                                             \
    ".rept " steps "\n" step ".endr\n"                                                                                 \
    ".balign 4\n"                                                                                                      \
    "4: ldr pc, %[after]\n"                                                                                            \
    ".balign 4\n"                                                                                                      \
    "5: ldr r6, %[columns_end]\n"                                                                                      \
    "cmp r0, r6\n"                                                                                                     \
    "bne.w 3b\n"                                                                                                       \
    "ldr pc, %[finish]\n"                                                                                              \
    ".balign 4\n"                                                                                                      \
    "6:\n" two_sided "cmp r11, #0\n"                                                                                   \
    "bge.w 0b\n"                                                                                                       \
    "b 9f\n"                                                                                                           \
    ".balign 4\n"                                                                                                      \
    "7:\n" one_sided "cmp r11, #0\n"                                                                                   \
    "bge.w 0b\n"                                                                                                       \
    "b 9f\n"                                                                                                           \
    ".balign 4\n"                                                                                                      \
    "8:\n" saturating "cmp r11, #0\n"                                                                                  \
    "bge.w 0b\n"                                                                                                       \
    "9:\n" next_pair

#define OPERANDS                                                                                                       \
    : "+r"(next), [columns] "+m"(frame.columns), [first] "+m"(frame.first), [entry] "+m"(frame.entry),                 \
      [after] "+m"(frame.after), [finish] "+m"(frame.finish), [columns_end] "+m"(frame.columns_end),                   \
      [y] "+m"(frame.y), [left] "+m"(frame.left)                                                                       \
    : [stream] "m"(frame.stream), [form] "m"(frame.form), [out_c] "m"(frame.out_c)                                     \
    : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory"

#define FACTORS "ldm r1!, {r6, r7, r8, r9, r10, r11}\n"

/* Two columns: r2, r3 are 256 * B + A and A of the first, r4, r5 of the second; then B, A, B, A. */
#define START_2                                                                                                        \
    "ldrd r2, r3, [r1]\n"                                                                                              \
    "ldrd r4, r5, [r1], #8\n"
#define WORD_2(first, second, weights)                                                                                 \
    SMLAD("r2", first, weights) SMLAD("r4", second, weights)                                                           \
    SXTB16(weights) SMLAD("r3", first, weights) SMLAD("r5", second, weights)
#define QUAD_2(even, odd) "ldm r0!, {r6, r7, r8, r9}\n" WORD_2("r6", "r7", even) WORD_2("r8", "r9", odd)
#define HALF_2 "ldrd r10, r11, [r1], #8\n" QUAD_2("r10", "r11")
#define STEP_2 "ldm r1!, {r10, r11, r12, lr}\n" QUAD_2("r10", "r11") QUAD_2("r12", "lr")
#define STEP_2_BYTES (4 * 23)
#define STEPS_2 18                      /* a 3x3 window of 16 channels */
#define DOUBLED_2                                                                                                      \
    "sub r2, r2, r3\n"                                                                                                 \
    "sub r4, r4, r5\n"                                                                                                 \
    "lsl r3, r3, #1\n"                                                                                                 \
    "lsl r5, r5, #1\n"                                                                                                 \
    "asr r2, r2, #7\n"                                                                                                 \
    "asr r4, r4, #7\n" FACTORS
#define SCALED_2                                                                                                       \
    "sub r2, r2, r3\n"                                                                                                 \
    "sub r4, r4, r5\n" FACTORS                                                                                         \
    "add r3, r8, r3, lsl #8\n"                                                                                         \
    "add r5, r8, r5, lsl #8\n"
#define STORED_2                                                                                                       \
    "ldrd r6, r7, %[y]\n"                                                                                              \
    "strb r3, [r6], #1\n"                                                                                              \
    "strb r2, [r6], #1\n"                                                                                              \
    "strb r5, [r7], #1\n"                                                                                              \
    "strb r4, [r7], #1\n"                                                                                              \
    "strd r6, r7, %[y]\n"
#define FINISH_2(sums, form) sums form("r3", "r2") form("r5", "r4") STORED_2
#define NEXT_PAIR                                                                                                      \
    "ldr r2, %[left]\n"                                                                                                \
    "subs r2, r2, #1\n"                                                                                                \
    "beq 1f\n"                                                                                                         \
    "str r2, %[left]\n"                                                                                                \
    "ldr r2, %[columns]\n"                                                                                             \
    "ldr r3, %[columns_end]\n"                                                                                         \
    "str r3, %[columns]\n"                                                                                             \
    "sub r2, r3, r2\n"                                                                                                 \
    "add r3, r3, r2\n"                                                                                                 \
    "str r3, %[columns_end]\n"                                                                                         \
    "ldr r2, %[out_c]\n"                                                                                               \
    "add r2, r7, r2\n"                                                                                                 \
    "strd r7, r2, %[y]\n"                                                                                              \
    "ldr r1, %[stream]\n"                                                                                              \
    "b.w 0b\n"                                                                                                         \
    "1:\n"

/* Blocks of channels of `pairs` pairs of columns, until the stream says stop; returns what follows in the stream.
 * The outputs of the second pair follow those of the first pair's second column. */
static __attribute__((noipa)) const int32_t *packed_blocks_2(const tk_rows_t *rows, const int32_t *stream,
                                                         const int32_t *columns, int8_t *y0, int8_t *y1, int32_t pairs)
{
    const int32_t steps = rows->depth / 8;
    const int32_t is_long = steps > STEPS_2;
    const int32_t at_first = is_long ? steps % STEPS_2 : steps;
    frame_t frame = {columns, rows->depth & 4, at_first * STEP_2_BYTES, is_long, 0, columns + rows->depth, {y0, y1},
                     stream, rows->form, rows->out_c, pairs};
    register const int32_t *next __asm__("r1") = stream;
    __asm__ volatile(WALK("18", START_2, HALF_2, STEP_2, FINISH_2(DOUBLED_2, TWO_SIDED), FINISH_2(DOUBLED_2, ONE_SIDED),
                          FINISH_2(SCALED_2, SATURATING), NEXT_PAIR) OPERANDS);
    return next;
}

/* One column: r2, r3 are 256 * B + A and A, then B and A. */
#define START_1 "ldrd r2, r3, [r1], #8\n"
#define WORD_1(column, weights) SMLAD("r2", column, weights) SXTB16(weights) SMLAD("r3", column, weights)
#define HALF_1                                                                                                         \
    "ldrd r10, r11, [r1], #8\n"                                                                                        \
    "ldrd r6, r7, [r0], #8\n" WORD_1("r6", "r10") WORD_1("r7", "r11")
#define STEP_1                                                                                                         \
    "ldm r1!, {r10, r11, r12, lr}\n"                                                                                   \
    "ldm r0!, {r6, r7, r8, r9}\n" WORD_1("r6", "r10") WORD_1("r7", "r11") WORD_1("r8", "r12") WORD_1("r9", "lr")
#define STEP_1_BYTES (4 * 14)
#define STEPS_1 8
#define DOUBLED_1                                                                                                      \
    "sub r2, r2, r3\n"                                                                                                 \
    "lsl r3, r3, #1\n"                                                                                                 \
    "asr r2, r2, #7\n" FACTORS
#define SCALED_1 "sub r2, r2, r3\n" FACTORS "add r3, r8, r3, lsl #8\n"
#define STORED_1                                                                                                       \
    "ldr r6, %[y]\n"                                                                                                   \
    "strb r3, [r6], #1\n"                                                                                              \
    "strb r2, [r6], #1\n"                                                                                              \
    "str r6, %[y]\n"
#define FINISH_1(sums, form) sums form("r3", "r2") STORED_1

/* Blocks of channels of one column, until the stream says stop; returns what follows in the stream. */
static __attribute__((noipa)) const int32_t *packed_blocks_1(const tk_rows_t *rows, const int32_t *stream,
                                                         const int32_t *column, int8_t *y)
{
    const int32_t steps = rows->depth / 8;
    const int32_t is_long = steps > STEPS_1;
    const int32_t at_first = is_long ? steps % STEPS_1 : steps;
    frame_t frame = {column, rows->depth & 4, at_first * STEP_1_BYTES, is_long, 0, column + rows->depth / 2, {y, y},
                     stream, rows->form, rows->out_c, 1};
    register const int32_t *next __asm__("r1") = stream;
    __asm__ volatile(WALK("8", START_1, HALF_1, STEP_1, FINISH_1(DOUBLED_1, TWO_SIDED), FINISH_1(DOUBLED_1, ONE_SIDED),
                          FINISH_1(SCALED_1, SATURATING), "") OPERANDS);
    return next;
}

#else

/* Blocks of channels of one column, whose words stand `step` apart, until the stream says stop; returns what follows.
 */
static const int32_t *blocks(const tk_rows_t *rows, const int32_t *stream, const int32_t *column, int32_t step,
                             int8_t *y)
{
    for (;;) {
        uint32_t both = (uint32_t)*stream++;
        uint32_t low = (uint32_t)*stream++;
        for (int32_t i = 0; i < rows->depth / 2; i++) {
            both = (uint32_t)tk_smlad(column[i * step], *stream, (int32_t)both);
            low = (uint32_t)tk_smlad(column[i * step], tk_sxtb16(*stream++), (int32_t)low);
        }
        if (rows->form == TK_ROWS_SATURATING) {
            *y++ = tk_rows_output(rows, (int32_t)((low << 8) + (uint32_t)stream[2]), stream);
            *y++ = tk_rows_output(rows, (int32_t)(both - low), stream + 3);
        } else {
            *y++ = tk_rows_output(rows, (int32_t)(low << 1), stream);
            *y++ = tk_rows_output(rows, (int32_t)(both - low) >> 7, stream + 3);
        }
        stream += 6;
        if (stream[-1] < 0) {
            return stream;
        }
    }
}

static const int32_t *packed_blocks_1(const tk_rows_t *rows, const int32_t *stream, const int32_t *column, int8_t *y)
{
    return blocks(rows, stream, column, 1, y);
}

static const int32_t *packed_blocks_2(const tk_rows_t *rows, const int32_t *stream, const int32_t *columns, int8_t *y0,
                               int8_t *y1, int32_t pairs)
{
    const int32_t *next = stream;
    for (int32_t pair = 0; pair < pairs; pair++, columns += rows->depth) {
        blocks(rows, stream, columns, 2, y0 + 2 * pair * rows->out_c);
        next = blocks(rows, stream, columns + 1, 2, y1 + 2 * pair * rows->out_c);
    }
    return next;
}

#endif

void tk_rows_packed_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1)
{
    const int32_t *stream = rows->stream;
    if (rows->out_c >= BLOCK) {
        stream = packed_blocks_2(rows, stream, columns, y0, y1, 1);
    }
    if (rows->out_c % BLOCK) {
        int8_t last[2][BLOCK];
        packed_blocks_2(rows, stream, columns, last[0], last[1], 1);
        y0[rows->out_c - 1] = last[0][0];
        y1[rows->out_c - 1] = last[1][0];
    }
    tk_rows_clamp(rows, y0, rows->out_c);
    tk_rows_clamp(rows, y1, rows->out_c);
}

void tk_rows_packed_pairs(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs)
{
    const int32_t out_c = rows->out_c;
    if (out_c % BLOCK) {
        for (; pairs > 0; pairs--, columns += rows->depth, y += 2 * out_c) {
            tk_rows_packed_2(rows, columns, y, y + out_c);
        }
        return;
    }
    packed_blocks_2(rows, rows->stream, columns, y, y + out_c, pairs);
    tk_rows_clamp(rows, y, 2 * pairs * out_c);
}

void tk_rows_packed_1(const tk_rows_t *rows, const int32_t *column, int8_t *y)
{
    const int32_t *stream = rows->stream;
    if (rows->out_c >= BLOCK) {
        stream = packed_blocks_1(rows, stream, column, y);
    }
    if (rows->out_c % BLOCK) {
        int8_t last[BLOCK];
        packed_blocks_1(rows, stream, column, last);
        y[rows->out_c - 1] = last[0];
    }
    tk_rows_clamp(rows, y, rows->out_c);
}
