/* What the depthwise convolutions share: bands, planes and the walk over a plane. */
#ifndef TK_DEPTHWISE_H
#define TK_DEPTHWISE_H

#include "tk_armv7em_depthwise.h"
#include "tk_dsp.h"

/* Planes widened at a time: the bytes of a word. */
#define TK_DEPTHWISE_PLANES 4
/* Words of a channel's record before its weights. */
#define TK_DEPTHWISE_FACTORS 4

/* Some output channels of one band. On the core this lies in the stack frame of the function with the assembly, which
 * reaches it through sp; pairs that LDRD reads stand side by side. */
typedef struct {
    const int32_t *x;                   /* the band's first row pair in the channel's plane */
    int32_t pitch;                      /* bytes from one row pair to the next */
    int32_t channels;                   /* how many; the records and the outputs of the next ones follow */
    int32_t x_step;                     /* bytes to the next channel's plane, or 0 */
    const int32_t *stream;              /* the channel's record */
    int32_t record;                     /* its bytes */
    int32_t more;                       /* strips of the band, less 1 */
    int32_t first_row;                  /* bytes to the second row of outputs of the band's first strip, */
    int32_t row, last_row;              /* of the others, of the last one; 0: it has none, and the first row is stored last */
    int32_t skip;                       /* bytes from behind a strip's last column to the next strip's first one */
    int32_t stride_pitch;               /* bytes from strip to strip */
    int32_t span;                       /* bytes from a strip's first column to the one of its last output */
    int32_t column;                     /* bytes between the inputs of neighbouring outputs */
    int8_t *y;                          /* the first output */
    int32_t kernel_w, kernel_pairs;     /* for tk_depthwise_any */
    int32_t step;                       /* bytes from output to output */
    struct {                            /* where the assembly is: */
        const int32_t *end;             /* the strip's last output column in its first row pair */
        int8_t *y;
        int32_t row;
        int32_t more;
        const int32_t *weights;
        int32_t bias;
        int32_t factor[2];              /* multiplier, addend */
        int32_t shift;
        int32_t pairs;
    } at;
} tk_depthwise_channels_t;

/* How the rows of an op become planes; the assembly knows where the first six fields stand. */
typedef struct {
    int32_t step;                       /* bytes from column to column */
    int32_t last;                       /* columns, less 1; of a single plane less 4 */
    int32_t plane;                      /* bytes from plane to plane */
    int32_t from_skip, to_skip;         /* bytes from behind a row pair to the next one */
    int32_t pairs;                      /* how many */
    int32_t row_bytes;                  /* of the input */
    int32_t words;                      /* of a row pair of all planes */
    int32_t planes;
    int32_t zeros;                      /* four zero points */
    int32_t is_any;                     /* too few channels or columns for words */
    int32_t has_one_band;               /* what is padding once, is always */
    const tk_depthwise_t *p;
} tk_depthwise_lines_t;

tk_depthwise_lines_t tk_depthwise_lines(const tk_depthwise_t *p);

/* Writes `pairs` row pairs of the planes that begin at channel x, the first one from input row `row` (negative: padding)
 * and the one below. Columns in the padding stay as they are. */
void tk_depthwise_widen(tk_depthwise_lines_t *lines, const int8_t *x, int32_t row, int32_t pairs, int32_t *to);

/* Fills words with pairs of the input's zero point. */
void tk_depthwise_clear(const tk_depthwise_t *p, int32_t *to, int32_t words);

/* Moves words to a lower address. */
void tk_depthwise_move(int32_t *to, const int32_t *from, int32_t words);

/* Limits a whole output where int8 does not do it. */
void tk_depthwise_clamp(const tk_depthwise_t *p, int8_t *y);

#if TK_HAS_DSP

/* The walk. r0, r1: sums of the first output column (first and second row), r2, r3: of the second one; r4, r5: inputs;
 * from r6: pointers into as many row pairs as a strip reads. Labels: 0 a channel, 1 a block of 2 x 2 outputs, 2 the end
 * of a strip, 3 the end of a channel. `setup` loads weights from r4 and sets the pointers, `each` repeats an instruction
 * for all pointers, `one_left` computes a strip's last column of outputs: r4 the output, r0 the step. */
#define TK_WALK(setup, macs, outputs, each, one_left)                                                                  \
    "0:\n"                                                                                                             \
    "ldr r4, %[stream]\n"                                                                                              \
    "ldm r4!, {r0, r1, r2, r3}\n"                                                                                      \
    "str r0, %[bias]\n"                                                                                                \
    "strd r1, r2, %[factor]\n"                                                                                         \
    "str r3, %[shift]\n" setup "ldrd r4, r5, %[more]\n"                                                                \
    "str r4, %[at_more]\n"                                                                                             \
    "ldr r3, %[y]\n"                                                                                                   \
    "strd r3, r5, %[at_y]\n"\
    "ldr r4, %[span]\n"                                                                                                \
    "add r4, r6, r4\n"                                                                                                 \
    "str r4, %[end]\n"                                                                                                 \
    "1:\n" macs outputs "ldrd r4, r5, %[at_y]\n"                                                                       \
    "strb r1, [r4, r5]\n"                                                                                              \
    "strb r0, [r4]\n"                                                                                                  \
    "ldrd r0, r1, %[step]\n"                                                                                           \
    "add r4, r4, r0\n"                                                                                                 \
    "strb r3, [r4, r5]\n"                                                                                              \
    "strb r2, [r4]\n"                                                                                                  \
    "add r4, r4, r0\n"                                                                                                 \
    "str r4, %[at_y]\n"                                                                                                \
    "subs r5, r1, r6\n"                                                                                                \
    "bgt.w 1b\n"                                                                                                       \
    "bmi 2f\n" one_left "2:\n"                                                                                         \
    "ldr r5, %[at_more]\n"                                                                                             \
    "subs r5, r5, #1\n"                                                                                                \
    "bmi 3f\n"                                                                                                         \
    "str r5, %[at_more]\n"                                                                                             \
    "ldr r3, %[row]\n"                                                                                                 \
    "add r4, r4, r3\n"                                                                                                 \
    "it eq\n"                                                                                                          \
    "ldreq r3, %[last_row]\n"                                                                                          \
    "strd r4, r3, %[at_y]\n"                                                                                           \
    "ldrd r4, r5, %[skip]\n" each("add", "r4") "add r0, r1, r5\n"                                                      \
    "str r0, %[end]\n"                                                                                                 \
    "b.w 1b\n"                                                                                                         \
    "3:\n"                                                                                                             \
    "ldrd r4, r5, %[channels]\n"                                                                                       \
    "ldr r3, %[x]\n"                                                                                                   \
    "add r3, r3, r5\n"                                                                                                 \
    "str r3, %[x]\n"                                                                                                   \
    "ldrd r2, r3, %[stream]\n"                                                                                         \
    "add r2, r2, r3\n"                                                                                                 \
    "str r2, %[stream]\n"                                                                                              \
    "ldr r3, %[y]\n"                                                                                                   \
    "adds r3, r3, #1\n"                                                                                                \
    "str r3, %[y]\n"                                                                                                   \
    "subs r4, r4, #1\n"                                                                                                \
    "str r4, %[channels]\n"                                                                                            \
    "bgt.w 0b\n"

#define TK_EACH_1(op, by) op " r6, r6, " by "\n"
#define TK_EACH_2(op, by) TK_EACH_1(op, by) op " r7, r7, " by "\n"
#define TK_EACH_3(op, by) TK_EACH_2(op, by) op " r8, r8, " by "\n"
#define TK_EACH_4(op, by) TK_EACH_3(op, by) op " r9, r9, " by "\n"

/* The last column of outputs: together with the one before it, again; or alone, by `macs` that sum in r0 and r1. */
#define TK_AGAIN(each)                                                                                                 \
    "sub r4, r4, r0\n"                                                                                                 \
    "str r4, %[at_y]\n"                                                                                                \
    "ldr r4, %[column]\n" each("sub", "r4") "b.w 1b\n"
#define TK_ALONE(macs, outputs)                                                                                        \
    macs outputs "ldrd r4, r5, %[at_y]\n"                                                                              \
    "strb r1, [r4, r5]\n"                                                                                              \
    "strb r0, [r4]\n"                                                                                                  \
    "ldrd r0, r1, %[step]\n"                                                                                           \
    "add r4, r4, r0\n"

/* Where the weights are, for those that read them in each block. */
#define TK_KEEP_WEIGHTS "str r4, %[weights]\n"

/* Pointers into the row pairs. */
#define TK_PAIRS_2                                                                                                     \
    "ldrd r6, r7, %[x]\n"                                                                                              \
    "add r7, r6, r7\n"
#define TK_PAIRS_3                                                                                                     \
    "ldrd r6, r8, %[x]\n"                                                                                              \
    "add r7, r6, r8\n"                                                                                                 \
    "add r8, r7, r8\n"
#define TK_PAIRS_4                                                                                                     \
    "ldrd r6, r9, %[x]\n"                                                                                              \
    "add r7, r6, r9\n"                                                                                                 \
    "add r8, r7, r9\n"                                                                                                 \
    "add r9, r8, r9\n"

/* Sums to outputs, of two columns or of one. */
#define TK_SATURATING_ONE                                                                                              \
    "ldrd r4, r5, %[factor]\n"                                                                                         \
    "smmla r0, r0, r4, r5\n"                                                                                           \
    "smmla r1, r1, r4, r5\n"                                                                                           \
    "ssat r0, #8, r0, asr #10\n"                                                                                       \
    "ssat r1, #8, r1, asr #10\n"
#define TK_SATURATING                                                                                                  \
    TK_SATURATING_ONE                                                                                                  \
    "smmla r2, r2, r4, r5\n"                                                                                           \
    "smmla r3, r3, r4, r5\n"                                                                                           \
    "ssat r2, #8, r2, asr #10\n"                                                                                       \
    "ssat r3, #8, r3, asr #10\n"
#define TK_ROUNDING_ONE                                                                                                \
    "ldrd r4, r5, %[factor]\n"                                                                                         \
    "smmulr r0, r0, r4\n"                                                                                              \
    "smmulr r1, r1, r4\n"                                                                                              \
    "ldr r4, %[shift]\n"                                                                                               \
    TK_ROUND("r0") TK_ROUND("r1")
#define TK_ROUNDING                                                                                                    \
    "ldrd r4, r5, %[factor]\n"                                                                                         \
    "smmulr r0, r0, r4\n"                                                                                              \
    "smmulr r1, r1, r4\n"                                                                                              \
    "smmulr r2, r2, r4\n"                                                                                              \
    "smmulr r3, r3, r4\n"                                                                                              \
    "ldr r4, %[shift]\n"                                                                                               \
    TK_ROUND("r0") TK_ROUND("r1") TK_ROUND("r2") TK_ROUND("r3")
#define TK_ROUND(sum)                                                                                                  \
    "add " sum ", " sum ", " sum ", asr #31\n"                                                                         \
    "add " sum ", " sum ", r5\n"                                                                                       \
    "asr " sum ", " sum ", r4\n"                                                                                       \
    "ssat " sum ", #8, " sum "\n"
#define TK_EITHER(saturating, rounding)                                                                                \
    "ldr r4, %[shift]\n"                                                                                               \
    "cbnz r4, 8f\n" saturating "b 9f\n"                                                                                \
    "8:\n" rounding "9:\n"

#define TK_WALK_OPERANDS(c)                                                                                            \
    : "+m"(*(c))                                                                                                       \
    : [x] "m"((c)->x), [pitch] "m"((c)->pitch), [channels] "m"((c)->channels), [stream] "m"((c)->stream),              \
      [more] "m"((c)->more), [row] "m"((c)->row), [last_row] "m"((c)->last_row), [skip] "m"((c)->skip),                \
      [span] "m"((c)->span), [column] "m"((c)->column), [step] "m"((c)->step), [y] "m"((c)->y),                        \
      [kernel_w] "m"((c)->kernel_w), [kernel_pairs] "m"((c)->kernel_pairs), [end] "m"((c)->at.end),                      \
      [at_y] "m"((c)->at.y), [at_more] "m"((c)->at.more), [weights] "m"((c)->at.weights), [bias] "m"((c)->at.bias),    \
      [factor] "m"((c)->at.factor), [shift] "m"((c)->at.shift), [pairs] "m"((c)->at.pairs)                             \
    : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory"

/* The channels of one call: the body of a function `channels` of tk_depthwise_run. Either one walk for each run of
 * channels that round in the same way, or one for all with a branch in each block. `last` takes what makes outputs of
 * one column's sums. */
#define TK_CHANNELS_TWICE(c, setup, macs, each, last)                                                                  \
    for (int32_t left = (c)->channels; left > 0;) {                                                                    \
        (c)->channels = (c)->stream[3] >> 8;                                                                           \
        left -= (c)->channels;                                                                                         \
        if (((c)->stream[3] & 0xFF) == 0) {                                                                            \
            __asm__ volatile(TK_WALK(setup, macs, TK_SATURATING, each, last(TK_SATURATING_ONE)) TK_WALK_OPERANDS(c));  \
        } else {                                                                                                       \
            __asm__ volatile(TK_WALK(setup, macs, TK_ROUNDING, each, last(TK_ROUNDING_ONE)) TK_WALK_OPERANDS(c));      \
        }                                                                                                              \
    }
#define TK_CHANNELS_ONCE(c, setup, macs, each, last)                                                                   \
    __asm__ volatile(TK_WALK(setup, macs, TK_EITHER(TK_SATURATING, TK_ROUNDING), each,                                 \
                             last(TK_EITHER(TK_SATURATING_ONE, TK_ROUNDING_ONE))) TK_WALK_OPERANDS(c))

#else

/* The weights of the first (row 0) or the second (row 1) output row for a row pair and a kernel column. */
typedef int32_t tk_depthwise_weights_t(const tk_depthwise_channels_t *c, const int32_t *stream, int32_t row, int32_t pair,
                                       int32_t column);

/* The same walk in C, for the kernels' twins. */
void tk_depthwise_walk(const tk_depthwise_channels_t *c, tk_depthwise_weights_t *weights);

/* What the walk reads for a square kernel of odd size with stride 1. */
static inline int32_t tk_depthwise_odd(const int32_t *stream, int32_t size, int32_t row, int32_t pair, int32_t column)
{
    const int32_t *words = stream + (size - 1 - column) * (size - 1);
    const int32_t last = words[size - 2];
    if (row == 0) {
        return pair == 0 ? words[0] : 2 * pair == size - 1 ? tk_pair(tk_high(last), 0) : words[2 * pair - 1];
    }
    return pair == 0 ? tk_pair(0, words[0]) : 2 * pair == size - 1 ? last : words[2 * pair];
}

#endif

/* Writes a channel's weights as its record has them: `from` bytes, column by column, times 2^bits. */
typedef void tk_depthwise_expand_t(const int8_t *from, int32_t bits, int32_t *to);

/* Two weights times 2^bits: of what leaves the lower one nothing may stay in the upper one. */
static inline int32_t tk_depthwise_scaled(int32_t pair, int32_t bits)
{
    const uint32_t spilled = ((1U << bits) - 1U) << 16;
    return (int32_t)(((uint32_t)pair << bits) & ~spilled);
}

/* One kernel column of 5 or 7 weights: (w0, w2), (w1, w3), (w4, w6), (w5, -); of 5 weights (w4, 0), 0. */
typedef struct {
    int32_t even[2], odd[2];
} tk_depthwise_column_t;

static inline __attribute__((always_inline)) tk_depthwise_column_t tk_depthwise_column(const int8_t *from, int32_t bits,
                                                                                       int32_t size)
{
    const int32_t upper = tk_load4(from);
    const int32_t lower = size == 7 ? tk_load4(from + 4) : from[4];
    return (tk_depthwise_column_t){
        .even = {tk_depthwise_scaled(tk_sxtb16(upper), bits),
                 size == 7 ? tk_depthwise_scaled(tk_sxtb16(lower), bits) : tk_pair(lower * (1 << bits), 0)},
        .odd = {tk_depthwise_scaled(tk_sxtb16_odd(upper), bits),
                size == 7 ? tk_depthwise_scaled(tk_sxtb16_odd(lower), bits) : 0},
    };
}

/* The weights for stride 1, size 5 or 7: their order is that of tk_armv7em_depthwise.h. */
static inline __attribute__((always_inline)) void tk_depthwise_expand_odd(const int8_t *from, int32_t bits, int32_t size,
                                                                          int32_t *to)
{
    for (int32_t column = 0; column < size; column++, from += size, to += size - 1) {
        const tk_depthwise_column_t w = tk_depthwise_column(from, bits, size);
        const int32_t across = tk_pack_low(tk_high(w.odd[0]), w.even[1]);
        to[0] = tk_pack_low(w.even[0], w.odd[0]);
        to[1] = tk_pack_high(w.even[0], w.odd[0]);
        to[2] = tk_pack_mixed(w.odd[0], w.even[0]);
        if (size == 5) {
            to[3] = across;
        } else {
            to[3] = tk_pack_low(w.even[1], w.odd[1]);
            to[4] = across;
            to[5] = tk_pack_mixed(w.odd[1], w.even[1]);
        }
    }
}

/* Some columns of the weights for stride 2, size 5 or 7, as rows of pairs. */
static inline __attribute__((always_inline)) void tk_depthwise_expand_rows(const int8_t *from, int32_t bits, int32_t size,
                                                                           int32_t columns, int32_t *to)
{
    for (int32_t column = 0; column < columns; column++, from += size, to++) {
        const tk_depthwise_column_t w = tk_depthwise_column(from, bits, size);
        to[0] = tk_pack_low(w.even[0], w.odd[0]);
        to[columns] = tk_pack_high(w.even[0], w.odd[0]);
        to[2 * columns] = tk_pack_low(w.even[1], w.odd[1]);
        if (size == 7) {
            to[3 * columns] = tk_pair(tk_high(w.even[1]), 0);
        }
    }
}

/* Records of some channels of the stream, their weights as bytes, as the walk reads them. */
static inline __attribute__((always_inline)) void tk_depthwise_records(const int32_t *from, int32_t from_words, int32_t *to,
                                                                       int32_t to_words, int32_t channels,
                                                                       tk_depthwise_expand_t *expand)
{
    for (; channels > 0; channels--, from += from_words, to += to_words) {
        to[0] = from[0];
        to[1] = from[1];
        to[2] = from[2];
        to[3] = from[3] & 0xFF;
        expand((const int8_t *)(from + TK_DEPTHWISE_FACTORS), from[3] >> 8, to + TK_DEPTHWISE_FACTORS);
    }
}

/* Runs `channels` for each band, for four planes or for the output channels of one. `expand`, where it is not 0, makes
 * `expanded` words of a channel's weights, once for all bands. */
static inline __attribute__((always_inline)) void tk_depthwise_run(const tk_depthwise_t *p, const int8_t *x, int8_t *y,
                                                                   int8_t *scratch,
                                                                   void (*channels)(tk_depthwise_channels_t *),
                                                                   tk_depthwise_expand_t *expand, int32_t expanded)
{
    int32_t *const planes = (int32_t *)(void *)scratch;
    const int32_t in_c = p->in_c;
    tk_depthwise_lines_t lines = tk_depthwise_lines(p);
    const int32_t num_planes = lines.planes;
    const int32_t words = lines.words;
    const int32_t stride_words = words * p->stride_h;
    const int32_t strips = (p->out_h + 1) / 2;
    const int32_t kept = p->kernel_pairs - p->stride_h;
    const int32_t stored = TK_DEPTHWISE_FACTORS + p->weight_words;
    const int32_t record = expand != 0 ? TK_DEPTHWISE_FACTORS + expanded : stored;
    const int32_t plane_words = (p->strips - 1) * stride_words + p->kernel_pairs * words;
    const int32_t out_c = in_c * p->multiplier;
    tk_depthwise_channels_t c;
    c.pitch = 4 * words;
    c.record = 4 * record;
    c.row = out_c * p->out_w;
    c.skip = 4 * (stride_words - p->stride_w * p->out_w);
    c.stride_pitch = 4 * stride_words;
    c.span = 4 * p->stride_w * (p->out_w - 1);
    c.column = 4 * p->stride_w;
    c.kernel_w = p->kernel_w;
    c.kernel_pairs = p->kernel_pairs;
    c.step = out_c;
    tk_depthwise_clear(p, planes, plane_words);
    for (int32_t first = 0; first < in_c; first += TK_DEPTHWISE_PLANES) {
        /* The last four channels may be some of the ones before. */
        const int32_t begin = first + num_planes > in_c ? in_c - num_planes : first;
        const int32_t *records = p->stream + first * p->multiplier * stored;
        if (expand != 0) {
            tk_depthwise_records(records, stored, planes + plane_words, record,
                                 (begin + num_planes - first) * p->multiplier, expand);
            records = planes + plane_words;
        }
        for (int32_t strip = 0; strip < strips; strip += p->strips) {
            const int32_t count = strips - strip < p->strips ? strips - strip : p->strips;
            const int32_t present = strip == 0 ? 0 : kept;
            if (strip != 0) {
                tk_depthwise_move(planes, planes + p->strips * stride_words, kept * words);
            }
            tk_depthwise_widen(&lines, x + begin, 2 * (strip * p->stride_h + present) - p->pad_top,
                               (count - 1) * p->stride_h + p->kernel_pairs - present, planes + present * words);
            c.more = count - 1;
            c.last_row = 2 * (strip + count) > p->out_h ? 0 : c.row;
            c.first_row = count == 1 ? c.last_row : c.row;
            int32_t plane = first - begin;
            const int32_t *stream = records;
            int8_t *to = y + 2 * strip * c.row + first * p->multiplier;
            while (plane < num_planes) {
                const int32_t is_single = p->multiplier == 1;
                c.x = planes + plane * p->columns;
                c.channels = is_single ? num_planes - plane : p->multiplier;
                c.x_step = is_single ? 4 * p->columns : 0;
                c.stream = stream;
                c.y = to;
                stream += c.channels * record;
                to += c.channels;
                plane += is_single ? num_planes : 1;
                channels(&c);
            }
        }
    }
    if (p->out_min != -128 || p->out_max != 127) {
        tk_depthwise_clamp(p, y);
    }
}

#endif
