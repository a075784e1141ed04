#include "tk_armv7em_dense.h"
#include "tk_armv7em_rows.h"
#include "tk_dsp.h"

#define PAIR 2

/* Factors of two channels a, b, as they stand in the stream. */
enum { MULTIPLIER_A, ADDEND_A, SHIFT_A, MULTIPLIER_B, ADDEND_B, SHIFT_B, NUM_FACTORS };

#if TK_HAS_DSP

/* Words of the stack frame that the assembly reaches through sp. */
typedef struct {
    const int32_t *columns, *columns_end;
    int8_t *y[2];
    int32_t form;
    int32_t entry, first, after, epilogue; /* where to go on; before that what these depend on */
} frame_t;

/* The output of the sum in a register, by the factors in registers, to *y++. */
#define SHIFTED(sum, addend_shift, y)                                                                                  \
    "asr.w r0, r0, " addend_shift "\n"                                                                                 \
    "ssat r0, #8, r0\n"                                                                                                \
    "strb r0, [" y "], #1\n"
#define TWO_SIDED(sum, multiplier, addend, shift, y)                                                                   \
    "smmlar r0, " sum ", " multiplier ", " addend "\n"                                                                 \
    "add r0, r0, " sum ", asr #31\n" SHIFTED(sum, shift, y)
#define ONE_SIDED(sum, multiplier, addend, shift, y)                                                                   \
    "smmlar r0, " sum ", " multiplier ", " addend "\n" SHIFTED(sum, shift, y)
#define SATURATING(sum, multiplier, addend, y)                                                                         \
    "smmla r0, " sum ", " multiplier ", " addend "\n"                                                                  \
    "ssat r0, #8, r0, asr #10\n"                                                                                       \
    "strb r0, [" y "], #1\n"

/* One word of weights times one word of one column. */
#define BOTH(sum, column, weights) "smlad " sum ", " column ", " weights ", " sum "\n"
#define LOW_ONLY(weights) "sxtb16 " weights ", " weights "\n"

#define FACTORS "ldm r1!, {r6, r7, r8, r9, r10, r11}\n"
#define LAST "cmp r11, #0\n"

/* The way through the stream, for all forms. The loop over the inputs is entered in the middle of its block of `steps`
 * steps, `step_bytes` each, so that the rest comes first; `half` takes one quad, `step` two.
 * r0 column, r1 stream, sums from r2, r6-r9 column words, r10-r12 and lr weight words; then r6-r11 factors, r12 y. */
#define WALK(steps, start, half, step, two_sided, one_sided, saturating)                                               \
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
    "str r3, %[epilogue]\n"                                                                                            \
    "ldr r4, %[after]\n"                                                                                               \
    "cbz r4, 1f\n"                                                                                                     \
    "adr r3, 5f\n"                                                                                                     \
    "orr r3, r3, #1\n"                                                                                                 \
    "1: str r3, %[after]\n"                                                                                            \
    "0:\n" start "ldr r0, %[columns]\n"                                                                                \
    "ldr pc, %[first]\n"                                                                                               \
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
    "ldr pc, %[epilogue]\n"                                                                                            \
    ".balign 4\n"                                                                                                      \
    "6:\n" two_sided LAST "bpl.w 0b\n"                                                                                 \
    "b 9f\n"                                                                                                           \
    ".balign 4\n"                                                                                                      \
    "7:\n" one_sided LAST "bpl.w 0b\n"                                                                                 \
    "b 9f\n"                                                                                                           \
    ".balign 4\n"                                                                                                      \
    "8:\n" saturating LAST "bpl.w 0b\n"                                                                                \
    "9:\n"

#define OPERANDS                                                                                                       \
    : "+r"(next), [y] "+m"(frame.y), [entry] "+m"(frame.entry), [first] "+m"(frame.first), [after] "+m"(frame.after),  \
      [epilogue] "+m"(frame.epilogue)                                                                                  \
    : [columns] "m"(frame.columns), [columns_end] "m"(frame.columns_end), [form] "m"(frame.form)                       \
    : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory"

/* Two columns: r2, r3 are 256 * B + A and A of the first, r4, r5 of the second. */
#define WORD_2(first, second, weights)                                                                                 \
    BOTH("r2", first, weights) BOTH("r4", second, weights)                                                             \
    LOW_ONLY(weights) BOTH("r3", first, weights) BOTH("r5", second, weights)
#define COLUMNS_2 "ldm r0!, {r6, r7, r8, r9}\n"
#define HALF_2                                                                                                         \
    "ldrd r10, r11, [r1], #8\n" COLUMNS_2 WORD_2("r6", "r7", "r10") WORD_2("r8", "r9", "r11")
#define STEP_2                                                                                                         \
    "ldm r1!, {r10, r11, r12, lr}\n" COLUMNS_2 WORD_2("r6", "r7", "r10") WORD_2("r8", "r9", "r11")                     \
        COLUMNS_2 WORD_2("r6", "r7", "r12") WORD_2("r8", "r9", "lr")
#define STEP_2_BYTES (4 * 23)
#define STEPS_2 8
#define START_2                                                                                                        \
    "ldrd r2, r3, [r1], #8\n"                                                                                          \
    "mov r4, r2\n"                                                                                                     \
    "mov r5, r3\n"
#define APART_2                                                                                                        \
    "sub r2, r2, r3\n"                                                                                                 \
    "sub r4, r4, r5\n" FACTORS "ldrd r12, lr, %[y]\n"
#define DOUBLED_2                                                                                                      \
    "asr r2, r2, #7\n"                                                                                                 \
    "asr r4, r4, #7\n"                                                                                                 \
    "lsl r3, r3, #1\n"                                                                                                 \
    "lsl r5, r5, #1\n"
#define SCALED_2                                                                                                       \
    "add r3, r8, r3, lsl #8\n"                                                                                         \
    "add r5, r8, r5, lsl #8\n"
#define STORED_2 "strd r12, lr, %[y]\n"
#define FOUR(form)                                                                                                     \
    APART_2 DOUBLED_2 form("r3", "r6", "r7", "r8", "r12") form("r2", "r9", "r10", "r11", "r12")                        \
        form("r5", "r6", "r7", "r8", "lr") form("r4", "r9", "r10", "r11", "lr") STORED_2
#define FOUR_SATURATING                                                                                                \
    APART_2 SCALED_2 SATURATING("r3", "r6", "r7", "r12") SATURATING("r2", "r9", "r10", "r12")                          \
        SATURATING("r5", "r6", "r7", "lr") SATURATING("r4", "r9", "r10", "lr") STORED_2

/* Pairs of channels of two columns until the stream says stop; returns what follows. */
static __attribute__((noinline)) const int32_t *pairs_2(const tk_rows_t *rows, const int32_t *stream,
                                                        const int32_t *columns, int8_t *y0, int8_t *y1)
{
    const int32_t steps = rows->depth / 8;
    const int32_t is_long = steps > STEPS_2;
    const int32_t at_first = is_long ? steps % STEPS_2 : steps;
    frame_t frame = {columns, columns + rows->depth, {y0, y1}, rows->form, at_first * STEP_2_BYTES, rows->depth & 4,
                     is_long, 0};
    register const int32_t *next __asm__("r1") = stream;
    __asm__ volatile(WALK("8", START_2, HALF_2, STEP_2, FOUR(TWO_SIDED), FOUR(ONE_SIDED), FOUR_SATURATING) OPERANDS);
    return next;
}

/* One column: r2, r3 are 256 * B + A and A. */
#define WORD_1(column, weights) BOTH("r2", column, weights) LOW_ONLY(weights) BOTH("r3", column, weights)
#define HALF_1                                                                                                         \
    "ldrd r10, r11, [r1], #8\n"                                                                                        \
    "ldrd r6, r7, [r0], #8\n" WORD_1("r6", "r10") WORD_1("r7", "r11")
#define STEP_1                                                                                                         \
    "ldm r1!, {r10, r11, r12, lr}\n"                                                                                   \
    "ldm r0!, {r6, r7, r8, r9}\n" WORD_1("r6", "r10") WORD_1("r7", "r11") WORD_1("r8", "r12") WORD_1("r9", "lr")
#define STEP_1_BYTES (4 * 14)
#define STEPS_1 4
#define START_1 "ldrd r2, r3, [r1], #8\n"
#define APART_1                                                                                                        \
    "sub r2, r2, r3\n" FACTORS "ldr r12, %[y]\n"
#define DOUBLED_1                                                                                                      \
    "asr r2, r2, #7\n"                                                                                                 \
    "lsl r3, r3, #1\n"
#define STORED_1 "str r12, %[y]\n"
#define TWO(form)                                                                                                      \
    APART_1 DOUBLED_1 form("r3", "r6", "r7", "r8", "r12") form("r2", "r9", "r10", "r11", "r12") STORED_1
#define TWO_SATURATING                                                                                                 \
    APART_1 "add r3, r8, r3, lsl #8\n" SATURATING("r3", "r6", "r7", "r12") SATURATING("r2", "r9", "r10", "r12")        \
        STORED_1

/* Pairs of channels of one column until the stream says stop; returns what follows. */
static __attribute__((noinline)) const int32_t *pairs_1(const tk_rows_t *rows, const int32_t *stream,
                                                        const int32_t *column, int8_t *y)
{
    const int32_t steps = rows->depth / 8;
    const int32_t is_long = steps > STEPS_1;
    const int32_t at_first = is_long ? steps % STEPS_1 : steps;
    frame_t frame = {column, column + rows->depth / 2, {y, y}, rows->form, at_first * STEP_1_BYTES, rows->depth & 4,
                     is_long, 0};
    register const int32_t *next __asm__("r1") = stream;
    __asm__ volatile(WALK("4", START_1, HALF_1, STEP_1, TWO(TWO_SIDED), TWO(ONE_SIDED), TWO_SATURATING) OPERANDS);
    return next;
}

#else

static int8_t output(int32_t form, int32_t sum, int32_t multiplier, int32_t addend, int32_t shift)
{
    if (form == TK_ROWS_SATURATING) {
        return (int8_t)tk_ssat8(tk_smmla(sum, multiplier, addend) >> TK_ROWS_SHIFT);
    }
    const int32_t n = form == TK_ROWS_TWO_SIDED ? sum >> 31 : 0;
    return (int8_t)tk_ssat8((tk_smmlar(sum, multiplier, addend) + n) >> (shift & 31));
}

/* Pairs of channels of one column, whose words stand `step` apart, until the stream says stop; returns what follows. */
static const int32_t *pairs(const tk_rows_t *rows, const int32_t *stream, const int32_t *column, int32_t step, int8_t *y)
{
    const int32_t is_scaled = rows->form == TK_ROWS_SATURATING;
    for (;;) {
        uint32_t both = (uint32_t)*stream++;
        uint32_t low = (uint32_t)*stream++;
        for (int32_t i = 0; i < rows->depth / 2; i++) {
            both = (uint32_t)tk_smlad(column[i * step], *stream, (int32_t)both);
            low = (uint32_t)tk_smlad(column[i * step], tk_sxtb16(*stream++), (int32_t)low);
        }
        const int32_t a = (int32_t)(is_scaled ? (low << 8) + (uint32_t)stream[SHIFT_A] : low << 1);
        const int32_t b = is_scaled ? (int32_t)(both - low) : (int32_t)(both - low) >> 7;
        *y++ = output(rows->form, a, stream[MULTIPLIER_A], stream[ADDEND_A], stream[SHIFT_A]);
        *y++ = output(rows->form, b, stream[MULTIPLIER_B], stream[ADDEND_B], stream[SHIFT_B]);
        stream += NUM_FACTORS;
        if (stream[-1] < 0) {
            return stream;
        }
    }
}

static const int32_t *pairs_1(const tk_rows_t *rows, const int32_t *stream, const int32_t *column, int8_t *y)
{
    return pairs(rows, stream, column, 1, y);
}

static const int32_t *pairs_2(const tk_rows_t *rows, const int32_t *stream, const int32_t *columns, int8_t *y0,
                              int8_t *y1)
{
    pairs(rows, stream, columns, 2, y0);
    return pairs(rows, stream, columns + 1, 2, y1);
}

#endif

static void limit(const tk_rows_t *rows, int8_t *y)
{
    for (const int8_t *end = y + rows->out_c; y != end; y++) {
        const int8_t low = *y < rows->out_min ? rows->out_min : *y;
        *y = low > rows->out_max ? rows->out_max : low;
    }
}

static int32_t is_limited(const tk_rows_t *rows)
{
    return rows->out_min > INT8_MIN || rows->out_max < INT8_MAX;
}

void tk_rows_packed_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1)
{
    const int32_t *stream = rows->stream;
    if (rows->out_c >= PAIR) {
        stream = pairs_2(rows, stream, columns, y0, y1);
    }
    if (rows->out_c % PAIR) {
        int8_t last[2][PAIR];
        pairs_2(rows, stream, columns, last[0], last[1]);
        y0[rows->out_c - 1] = last[0][0];
        y1[rows->out_c - 1] = last[1][0];
    }
    if (is_limited(rows)) {
        limit(rows, y0);
        limit(rows, y1);
    }
}

void tk_rows_packed_1(const tk_rows_t *rows, const int32_t *column, int8_t *y)
{
    const int32_t *stream = rows->stream;
    if (rows->out_c >= PAIR) {
        stream = pairs_1(rows, stream, column, y);
    }
    if (rows->out_c % PAIR) {
        int8_t last[PAIR];
        pairs_1(rows, stream, column, last);
        y[rows->out_c - 1] = last[0];
    }
    if (is_limited(rows)) {
        limit(rows, y);
    }
}
