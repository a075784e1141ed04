#include "tk_depthwise.h"

/* Row pairs of one to four planes, byte by byte. The rows of the first pair: 0 in the padding, and then it is the only pair. */
static void widen_any(const tk_depthwise_t *p, const int8_t *upper, const int8_t *lower, int32_t pairs, int32_t *to)
{
    const int32_t planes = p->in_c < TK_DEPTHWISE_PLANES ? p->in_c : TK_DEPTHWISE_PLANES;
    const int32_t row_bytes = p->in_w * p->in_c;
    for (int32_t pair = 0; pair < pairs; pair++, to += planes * p->columns) {
        for (int32_t column = 0; column < p->in_w; column++) {
            const int32_t at = 2 * pair * row_bytes + column * p->in_c;
            for (int32_t plane = 0; plane < planes; plane++) {
                to[plane * p->columns + column] = tk_pair(upper != 0 ? upper[at + plane] : p->in_zero,
                                                          lower != 0 ? lower[at + plane] : p->in_zero);
            }
        }
    }
}

#if TK_HAS_DSP

/* What the assembly reaches through sp; pairs that LDRD reads stand side by side. */
typedef struct {
    const int8_t *from;                 /* the upper row; the lower one where the upper one lies in the padding */
    int32_t other;                      /* bytes to the lower row, or a word of zero points */
    int32_t from_skip, to_skip;         /* bytes from behind a row pair to the next one */
    int32_t *to;
    int32_t plane;                      /* bytes from plane to plane */
    int32_t last;                       /* columns, less 1 for four channels, less 4 for one */
    int32_t pairs;
    int32_t step;                       /* bytes from column to column */
} lines_t;

/* Two columns of four channels at a time; the last two may contain a column again. r0 and `other` r1 inputs, r2 step, r3-r6
 * planes, r7 columns left. `upper` and `lower` load a word. */
#define PLANES(upper, lower)                                                                                           \
    __asm__ volatile("ldrd r0, r1, %[from]\n"                                                                          \
    "ldr r2, %[step]\n"                                                                                                \
    "ldrd r3, r6, %[to]\n"                                                                                             \
    "add r4, r3, r6\n"                                                                                                 \
    "add r5, r4, r6\n"                                                                                                 \
    "add r6, r5, r6\n"                                                                                                 \
    "0: ldr r7, %[last]\n"                                                                                             \
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
    "2: ldrd r8, r9, %[from_skip]\n"                                                                                   \
    "add r0, r0, r8\n"                                                                                                 \
    "add r3, r3, r9\n"                                                                                                 \
    "add r4, r4, r9\n"                                                                                                 \
    "add r5, r5, r9\n"                                                                                                 \
    "add r6, r6, r9\n"                                                                                                 \
    "ldr r8, %[pairs]\n"                                                                                               \
    "subs r8, r8, #1\n"                                                                                                \
    "str r8, %[pairs]\n"                                                                                               \
    "bgt 0b\n" OPERANDS)

/* Four columns of one channel at a time; the last four may contain columns again. r0 and `other` r1 inputs, r2 words, r3
 * columns left, r11, r12 skips. */
#define PLANE(upper, lower)                                                                                            \
    __asm__ volatile("ldrd r0, r1, %[from]\n"                                                                          \
    "ldrd r11, r12, %[from_skip]\n"                                                                                    \
    "ldr r2, %[to]\n"                                                                                                  \
    "0: ldr r3, %[last]\n"                                                                                             \
    "1:\n" upper("r8") lower("r9") "adds r0, r0, #4\n"                                                                 \
    "pkhbt r10, r8, r9, lsl #16\n"                                                                                     \
    "pkhtb r9, r9, r8, asr #16\n"                                                                                      \
    "sxtb16 r4, r10\n"                                                                                                 \
    "sxtb16 r5, r10, ror #8\n"                                                                                         \
    "sxtb16 r6, r9\n"                                                                                                  \
    "sxtb16 r7, r9, ror #8\n"                                                                                          \
    "stm r2!, {r4, r5, r6, r7}\n"                                                                                      \
    "subs r3, r3, #4\n"                                                                                                \
    "bge 1b\n"                                                                                                         \
    "adds r4, r3, #4\n"                                                                                                \
    "beq 2f\n"                                                                                                         \
    "add r0, r0, r3\n"                                                                                                 \
    "add r2, r2, r3, lsl #2\n"                                                                                         \
    "movs r3, #0\n"                                                                                                    \
    "b 1b\n"                                                                                                           \
    "2: add r0, r0, r11\n"                                                                                             \
    "add r2, r2, r12\n"                                                                                                \
    "ldr r8, %[pairs]\n"                                                                                               \
    "subs r8, r8, #1\n"                                                                                                \
    "str r8, %[pairs]\n"                                                                                               \
    "bgt 0b\n" OPERANDS)

#define OPERANDS                                                                                                       \
    : "+m"(lines)                                                                                                      \
    : [from] "m"(lines.from), [from_skip] "m"(lines.from_skip), [to] "m"(lines.to), [last] "m"(lines.last),            \
    [pairs] "m"(lines.pairs), [step] "m"(lines.step)                                                                   \
    : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory"

#define HERE(word) "ldr " word ", [r0]\n"
#define BELOW(word) "ldr " word ", [r0, r1]\n"
#define PADDING(word) "mov " word ", r1\n"

/* `pairs` row pairs, all of which have the upper, the lower or both rows (0: in the padding); the function's two forms keep
 * only one block of assembly. */
static inline __attribute__((always_inline)) void widen(const tk_depthwise_t *p, const int8_t *upper, const int8_t *lower,
                                                        int32_t pairs, int32_t *to, int32_t is_single)
{
    const int32_t row_bytes = p->in_w * p->in_c;
    const int32_t planes = is_single ? 1 : TK_DEPTHWISE_PLANES;
    lines_t lines = {.from = upper != 0 ? upper : lower,
                     .other = (int32_t)(0x01010101U * ((uint32_t)p->in_zero & 0xFFU)),
                     .from_skip = row_bytes,
                     .to_skip = 4 * (planes * p->columns - p->in_w),
                     .to = to,
                     .plane = 4 * p->columns,
                     .last = p->in_w - (is_single ? 4 : 1),
                     .pairs = pairs,
                     .step = p->in_c};
    if (upper == 0) {
        if (is_single) {
            PLANE(PADDING, HERE);
        } else {
            PLANES(PADDING, HERE);
        }
    } else if (lower == 0) {
        if (is_single) {
            PLANE(HERE, PADDING);
        } else {
            PLANES(HERE, PADDING);
        }
    } else {
        lines.other = row_bytes;
        if (is_single) {
            PLANE(HERE, BELOW);
        } else {
            PLANES(HERE, BELOW);
        }
    }
}

static void widen_lines(const tk_depthwise_t *p, const int8_t *upper, const int8_t *lower, int32_t pairs, int32_t *to)
{
    if (p->in_c >= TK_DEPTHWISE_PLANES && p->in_w >= 2) {
        widen(p, upper, lower, pairs, to, 0);
    } else if (p->in_c == 1 && p->in_w >= 4) {
        widen(p, upper, lower, pairs, to, 1);
    } else {
        widen_any(p, upper, lower, pairs, to);
    }
}

#else

static void widen_lines(const tk_depthwise_t *p, const int8_t *upper, const int8_t *lower, int32_t pairs, int32_t *to)
{
    widen_any(p, upper, lower, pairs, to);
}

#endif

void tk_depthwise_widen(const tk_depthwise_t *p, const int8_t *x, int32_t row, int32_t pairs, int32_t *to)
{
    const int32_t row_bytes = p->in_w * p->in_c;
    const int32_t words = (p->in_c < TK_DEPTHWISE_PLANES ? p->in_c : TK_DEPTHWISE_PLANES) * p->columns;
    int32_t run = 1;
    for (; pairs > 0; pairs -= run, row += 2 * run, to += run * words) {
        const int8_t *upper = row >= 0 && row < p->in_h ? x + row * row_bytes : 0;
        const int8_t *lower = row + 1 >= 0 && row + 1 < p->in_h ? x + (row + 1) * row_bytes : 0;
        run = 1;
        if (upper != 0 && lower != 0) {
            run = (p->in_h - row) / 2 < pairs ? (p->in_h - row) / 2 : pairs;
        }
        if (upper == 0 && lower == 0) {
            tk_depthwise_clear(p, to, words);
        } else {
            widen_lines(p, upper, lower, run, to + p->pad_left);
        }
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
    if (record[3] == 0) {
        return (int8_t)tk_ssat8(tk_smmla(sum, record[1], record[2]) >> 10);
    }
    return (int8_t)tk_ssat8(tk_smmlar(sum, record[1], record[2] + (sum >> 31)) >> record[3]);
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
        one_channel(c, c->x + i * c->x_step / 4, c->stream + i * c->record / 4, c->y - c->step + i, weights);
    }
}

#endif
