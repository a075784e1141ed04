#include "tk_depthwise.h"

/* `lines->pairs` row pairs, byte by byte; where one of the rows is 0 it lies in the padding, and there is one pair only. */
static void widen_any(const tk_depthwise_lines_t *lines, const int8_t *upper, const int8_t *lower, int32_t *to)
{
    const tk_depthwise_t *p = lines->p;
    for (int32_t pair = 0; pair < lines->pairs; pair++, to += lines->words) {
        for (int32_t column = 0; column < p->in_w; column++) {
            const int32_t at = 2 * pair * lines->row_bytes + column * p->in_c;
            for (int32_t plane = 0; plane < lines->planes; plane++) {
                to[plane * p->columns + column] = tk_pair(upper != 0 ? upper[at + plane] : p->in_zero,
                                                          lower != 0 ? lower[at + plane] : p->in_zero);
            }
        }
    }
}

#if TK_HAS_DSP

/* Two columns of four channels at a time; the last two may contain a column again. r0 and `other` r1 inputs, r2 step, r3-r6
 * planes, r7 columns left, less 1. `upper` and `lower` load a word. */
#define PLANES(upper, lower)                                                                                           \
    "ldm r3, {r4, r7, r12}\n"                                                                                          \
    "mov r3, r2\n"                                                                                                     \
    "mov r2, r4\n"                                                                                                     \
    "add r4, r3, r12\n"                                                                                                \
    "add r5, r4, r12\n"                                                                                                \
    "add r6, r5, r12\n"                                                                                                \
    "1:\n" upper("r8") lower("r9") "add r0, r0, r2\n" upper("r10") lower("r11") "add r0, r0, r2\n"                     \
    "pkhbt r12, r8, r9, lsl #16\n"                                                                                     \
    "pkhtb r9, r9, r8, asr #16\n"                                                                                      \
    "pkhbt r8, r10, r11, lsl #16\n"                                                                                    \
    "pkhtb r11, r11, r10, asr #16\n"                                                                                   \
    "sxtb16 r10, r12\n"                                                                                                \
    "sxtb16 lr, r8\n"                                                                                                  \
    "strd r10, lr, [r3], #8\n"                                                                                         \
    "sxtb16 r12, r12, ror #8\n"                                                                                        \
    "sxtb16 r8, r8, ror #8\n"                                                                                          \
    "strd r12, r8, [r4], #8\n"                                                                                         \
    "sxtb16 r10, r9\n"                                                                                                 \
    "sxtb16 lr, r11\n"                                                                                                 \
    "strd r10, lr, [r5], #8\n"                                                                                         \
    "sxtb16 r9, r9, ror #8\n"                                                                                          \
    "sxtb16 r11, r11, ror #8\n"                                                                                        \
    "strd r9, r11, [r6], #8\n"                                                                                         \
    "subs r7, r7, #2\n"                                                                                                \
    "bgt 1b\n"                                                                                                         \
    "bmi 2f\n"                                                                                                         \
    "sub r0, r0, r2\n"                                                                                                 \
    "subs r3, r3, #4\n"                                                                                                \
    "subs r4, r4, #4\n"                                                                                                \
    "subs r5, r5, #4\n"                                                                                                \
    "subs r6, r6, #4\n"                                                                                                \
    "b 1b\n"                                                                                                           \
    "2: ldr r12, %[lines]\n"                                                                                           \
    "ldr r10, [r12, #20]\n"                                                                                            \
    "subs r10, r10, #1\n"                                                                                              \
    "str r10, [r12, #20]\n"                                                                                            \
    "beq 3f\n"                                                                                                         \
    "ldr r7, [r12, #4]\n"                                                                                              \
    "ldrd r8, r9, [r12, #12]\n"                                                                                        \
    "add r0, r0, r8\n"                                                                                                 \
    "add r3, r3, r9\n"                                                                                                 \
    "add r4, r4, r9\n"                                                                                                 \
    "add r5, r5, r9\n"                                                                                                 \
    "add r6, r6, r9\n"                                                                                                 \
    "b 1b\n"                                                                                                           \
    "3:\n"

/* Four columns of one channel at a time; the last four may contain columns again. r0 and `other` r1 inputs, r2 words, r12
 * columns left, less 4. */
#define PLANE(upper, lower)                                                                                            \
    "0: ldr r12, [r3, #4]\n"                                                                                           \
    "1:\n" upper("r8") lower("r9") "adds r0, r0, #4\n"                                                                 \
    "pkhbt r10, r8, r9, lsl #16\n"                                                                                     \
    "pkhtb r9, r9, r8, asr #16\n"                                                                                      \
    "sxtb16 r4, r10\n"                                                                                                 \
    "sxtb16 r5, r10, ror #8\n"                                                                                         \
    "sxtb16 r6, r9\n"                                                                                                  \
    "sxtb16 r7, r9, ror #8\n"                                                                                          \
    "stm r2!, {r4, r5, r6, r7}\n"                                                                                      \
    "subs r12, r12, #4\n"                                                                                              \
    "bge 1b\n"                                                                                                         \
    "adds r4, r12, #4\n"                                                                                               \
    "beq 2f\n"                                                                                                         \
    "add r0, r0, r12\n"                                                                                                \
    "add r2, r2, r12, lsl #2\n"                                                                                        \
    "mov r12, #0\n"                                                                                                    \
    "b 1b\n"                                                                                                           \
    "2: ldrd r4, r5, [r3, #12]\n"                                                                                      \
    "add r0, r0, r4\n"                                                                                                 \
    "add r2, r2, r5\n"                                                                                                 \
    "ldr r6, [r3, #20]\n"                                                                                              \
    "subs r6, r6, #1\n"                                                                                                \
    "str r6, [r3, #20]\n"                                                                                              \
    "bgt 0b\n"

#define HERE(word) "ldr " word ", [r0]\n"
#define BELOW(word) "ldr " word ", [r0, r1]\n"
#define PADDING(word) "mov " word ", r1\n"

/* `other`: bytes to the lower row, or a word of zero points; `step` of the lines is the first of their fields. */
#define WIDEN(name, upper, lower)                                                                                      \
    static __attribute__((noinline)) void name(const int8_t *from, int32_t other, int32_t *to,                         \
                                               tk_depthwise_lines_t *lines)                                            \
    {                                                                                                                  \
        register const int8_t *r0 __asm__("r0") = from;                                                                \
        register int32_t r1 __asm__("r1") = other;                                                                     \
        register int32_t *r2 __asm__("r2") = to;                                                                       \
        register tk_depthwise_lines_t *r3 __asm__("r3") = lines;                                                       \
        if (lines->planes == 1) {                                                                                      \
            __asm__ volatile(PLANE(upper, lower) OPERANDS);                                                            \
        } else {                                                                                                       \
            __asm__ volatile(PLANES(upper, lower) OPERANDS);                                                           \
        }                                                                                                              \
    }
#define OPERANDS                                                                                                       \
    : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3)                                                                           \
    : [lines] "m"(lines)                                                                                               \
    : "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory"

WIDEN(lower_words, PADDING, HERE)
WIDEN(upper_words, HERE, PADDING)
WIDEN(both_words, HERE, BELOW)

#endif

/* The same with words where they fit. */
static inline __attribute__((always_inline)) void widen(tk_depthwise_lines_t *lines, const int8_t *upper, const int8_t *lower,
                                                        int32_t *to)
{
#if TK_HAS_DSP
    if (!lines->is_any) {
        if (upper == 0) {
            lower_words(lower, lines->zeros, to, lines);
        } else if (lower == 0) {
            upper_words(upper, lines->zeros, to, lines);
        } else {
            both_words(upper, lines->row_bytes, to, lines);
        }
        return;
    }
#endif
    widen_any(lines, upper, lower, to);
}

tk_depthwise_lines_t tk_depthwise_lines(const tk_depthwise_t *p)
{
    const int32_t planes = p->in_c < TK_DEPTHWISE_PLANES ? p->in_c : TK_DEPTHWISE_PLANES;
    const int32_t is_single = planes == 1;
    return (tk_depthwise_lines_t){.step = p->in_c,
                                  .last = p->in_w - (is_single ? 4 : 1),
                                  .plane = 4 * p->columns,
                                  .from_skip = p->in_w * p->in_c,
                                  .to_skip = 4 * (planes * p->columns - p->in_w),
                                  .row_bytes = p->in_w * p->in_c,
                                  .words = planes * p->columns,
                                  .planes = planes,
                                  .zeros = (int32_t)(0x01010101U * ((uint32_t)p->in_zero & 0xFFU)),
                                  .is_any = is_single ? p->in_w < 4 : planes < TK_DEPTHWISE_PLANES || p->in_w < 2,
                                  .has_one_band = 2 * p->strips >= p->out_h,
                                  .p = p};
}

/* `pairs` row pairs of padding. */
static int32_t *pad(const tk_depthwise_lines_t *lines, int32_t *to, int32_t pairs)
{
    if (!lines->has_one_band) {
        tk_depthwise_clear(lines->p, to - lines->p->pad_left, pairs * lines->words);
    }
    return to + pairs * lines->words;
}

void tk_depthwise_widen(tk_depthwise_lines_t *lines, const int8_t *x, int32_t row, int32_t pairs, int32_t *to)
{
    const int32_t row_bytes = lines->row_bytes;
    const int32_t words = lines->words;
    to += lines->p->pad_left;
    if (row < -1) {
        const int32_t above = -row >> 1 < pairs ? -row >> 1 : pairs;
        to = pad(lines, to, above);
        row += 2 * above;
        pairs -= above;
    }
    if (row < 0 && pairs > 0) {
        lines->pairs = 1;
        widen(lines, 0, x + (row + 1) * row_bytes, to);
        to += words;
        row += 2;
        pairs--;
    }
    int32_t whole = (lines->p->in_h - row) >> 1;
    whole = whole < pairs ? whole : pairs;
    if (whole > 0) {
        lines->pairs = whole;
        widen(lines, x + row * row_bytes, x + (row + 1) * row_bytes, to);
        to += whole * words;
        row += 2 * whole;
        pairs -= whole;
    }
    if (pairs > 0 && row == lines->p->in_h - 1) {
        lines->pairs = 1;
        widen(lines, x + row * row_bytes, 0, to);
        to += words;
        pairs--;
    }
    if (pairs > 0) {
        (void)pad(lines, to, pairs);
    }
}

void tk_depthwise_clear(const tk_depthwise_t *p, int32_t *to, int32_t words)
{
    const int32_t zeros = tk_pair(p->in_zero, p->in_zero);
    for (; words >= 4; words -= 4, to += 4) {
        to[0] = zeros;
        to[1] = zeros;
        to[2] = zeros;
        to[3] = zeros;
    }
    for (; words > 0; words--) {
        *to++ = zeros;
    }
}

void tk_depthwise_move(int32_t *to, const int32_t *from, int32_t words)
{
    for (; words >= 4; words -= 4) {
#if TK_HAS_DSP
        __asm__ volatile("ldm %0!, {r4, r5, r6, r8}\nstm %1!, {r4, r5, r6, r8}"
                         : "+r"(from), "+r"(to)
                         :
                         : "r4", "r5", "r6", "r8", "memory");
#else
        for (int32_t i = 0; i < 4; i++) {
            *to++ = *from++;
        }
#endif
    }
    for (; words > 0; words--) {
        *to++ = *from++;
    }
}

void tk_depthwise_clamp(const tk_depthwise_t *p, int8_t *y)
{
    const int8_t *const end = y + p->out_h * p->out_w * p->in_c * p->multiplier;
    for (; y < end; y++) {
        *y = *y < p->out_min ? (int8_t)p->out_min : *y > p->out_max ? (int8_t)p->out_max : *y;
    }
}

#if !TK_HAS_DSP

static int8_t output(const int32_t *record, int32_t sum)
{
    const int32_t shift = record[3] & 0xFF;
    if (shift == 0) {
        return (int8_t)tk_ssat8(tk_smmla(sum, record[1], record[2]) >> 10);
    }
    const int32_t scaled = tk_smmlar(sum, record[1], 0);
    return (int8_t)tk_ssat8((scaled + (scaled >> 31) + record[2]) >> shift);
}

static void one_channel(const tk_depthwise_channels_t *c, const int32_t *x, const int32_t *record, int8_t *y,
                        tk_depthwise_weights_t *weights)
{
    for (int32_t strip = 0; strip <= c->more; strip++, x += c->stride_pitch / 4, y += 2 * c->row) {
        const int32_t row = strip == c->more ? c->last_row : c->row;
        for (int32_t column = 0; column <= c->span / c->column; column++) {
            int32_t sums[2] = {record[0], record[0]};
            for (int32_t at = 0; at < c->kernel_pairs * c->kernel_w; at++) {
                const int32_t pair = at / c->kernel_w;
                const int32_t k = at % c->kernel_w;
                const int32_t value = x[(pair * c->pitch + column * c->column) / 4 + k];
                for (int32_t i = 0; i < 2; i++) {
                    sums[i] = tk_smlad(value, weights(c, record + TK_DEPTHWISE_FACTORS, i, pair, k), sums[i]);
                }
            }
            y[column * c->step + row] = output(record, sums[1]);
            y[column * c->step] = output(record, sums[0]);
        }
    }
}

void tk_depthwise_walk(const tk_depthwise_channels_t *c, tk_depthwise_weights_t *weights)
{
    for (int32_t i = 0; i < c->channels; i++) {
        one_channel(c, c->x + i * c->x_step / 4, c->stream + i * c->record / 4, c->y + i, weights);
    }
}

#endif
