#include "tk_convolution.h"
#include "tk_dsp.h"

/* Widens `count` pairs of lines of `quads` quads into two interleaved columns; returns where it stopped. Both at least 1.
 * Lines begin `step` bytes apart. */
static __attribute__((noinline)) int32_t *widen(int32_t *to, const int8_t *first, const int8_t *second, int32_t step,
                                                int32_t quads, int32_t count)
{
#if TK_HAS_DSP
/* Two quads of each column. */
#define TK_TWO_QUADS                    \
    "ldr r6, [r1], #4\n"                \
    "ldr r10, [r1], #4\n"               \
    "ldr r7, [r2], #4\n"                \
    "ldr r11, [r2], #4\n"               \
    "sxtb16 r4, r6\n"                   \
    "sxtb16 r5, r7\n"                   \
    "sxtb16 r6, r6, ror #8\n"           \
    "sxtb16 r7, r7, ror #8\n"           \
    "sxtb16 r8, r10\n"                  \
    "sxtb16 r9, r11\n"                  \
    "sxtb16 r10, r10, ror #8\n"         \
    "sxtb16 r11, r11, ror #8\n"         \
    "stmia r0!, {r4-r11}\n"
    register int32_t *out __asm__("r0") = to;
    register const int8_t *p __asm__("r1") = first;
    register const int8_t *q __asm__("r2") = second;
    register int32_t skip __asm__("r3") = step - 4 * quads;
    register int32_t sizes __asm__("r12") = ((count - 1) << 16) | quads;
    __asm__ volatile(
        "1:\n"
        "uxth lr, r12\n"
        "subs lr, lr, #4\n"
        "blt 3f\n"
        "2:\n"
        TK_TWO_QUADS
        TK_TWO_QUADS
        "subs lr, lr, #4\n"
        "bge 2b\n"
        "3:\n"
        /* lr is 4 less than what is left: bit 1 goes to the carry, bit 0 to the sign. */
        "lsls lr, lr, #31\n"
        "bcc 4f\n"
        TK_TWO_QUADS
        "4:\n"
        "bpl 5f\n"
        "ldr r6, [r1], #4\n"
        "ldr r7, [r2], #4\n"
        "sxtb16 r4, r6\n"
        "sxtb16 r5, r7\n"
        "sxtb16 r6, r6, ror #8\n"
        "sxtb16 r7, r7, ror #8\n"
        "stmia r0!, {r4-r7}\n"
        "5:\n"
        "add r1, r1, r3\n"
        "add r2, r2, r3\n"
        "subs r12, r12, #0x10000\n"
        "bcs 1b\n"
        : "+r"(out), "+r"(p), "+r"(q), "+r"(skip), "+r"(sizes)
        :
        : "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "lr", "cc", "memory");
    return out;
#else
    for (; count > 0; count--, first += step, second += step) {
        for (int32_t i = 0; i < 4 * quads; i += 4, to += 4) {
            const int32_t a = tk_load4(first + i);
            const int32_t b = tk_load4(second + i);
            to[0] = tk_sxtb16(a);
            to[1] = tk_sxtb16(b);
            to[2] = tk_sxtb16_odd(a);
            to[3] = tk_sxtb16_odd(b);
        }
    }
    return to;
#endif
}

void tk_convolution_columns_3x9(int32_t *to, const int8_t *first, const int8_t *second, int32_t step)
{
#if TK_HAS_DSP
    register int32_t *out __asm__("r0") = to;
    register const int8_t *p __asm__("r1") = first;
    register const int8_t *q __asm__("r2") = second;
    register int32_t line __asm__("r3") = step;
/* Two quads of each column, without moving on. */
#define TK_EIGHT_BYTES                  \
    "ldr r6, [r1]\n"                    \
    "ldr r10, [r1, #4]\n"               \
    "ldr r7, [r2]\n"                    \
    "ldr r11, [r2, #4]\n"               \
    "sxtb16 r4, r6\n"                   \
    "sxtb16 r5, r7\n"                   \
    "sxtb16 r6, r6, ror #8\n"           \
    "sxtb16 r7, r7, ror #8\n"           \
    "sxtb16 r8, r10\n"                  \
    "sxtb16 r9, r11\n"                  \
    "sxtb16 r10, r10, ror #8\n"         \
    "sxtb16 r11, r11, ror #8\n"         \
    "stmia r0!, {r4-r11}\n"
    __asm__ volatile(
        TK_EIGHT_BYTES
        "ldrsb r12, [r1, #8]\n"
        "ldrsb lr, [r2, #8]\n"
        "add r1, r1, r3\n"
        "add r2, r2, r3\n"
        TK_EIGHT_BYTES
        "ldrsb r4, [r1, #8]\n"
        "ldrsb r5, [r2, #8]\n"
        "pkhbt r12, r4, r12, lsl #16\n"
        "pkhbt lr, r5, lr, lsl #16\n"
        "add r1, r1, r3\n"
        "add r2, r2, r3\n"
        TK_EIGHT_BYTES
        "ldrsb r4, [r1, #8]\n"
        "ldrsb r5, [r2, #8]\n"
        "pkhbt r4, r4, r12\n"
        "pkhbt r5, r5, lr\n"
        /* r12 and lr: the last bytes of rows 1 and 0. */
        "stmia r0, {r4, r5, r12, lr}\n"
        : "+r"(out), "+r"(p), "+r"(q), "+r"(line)
        :
        : "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "memory");
#else
    to = widen(to, first, second, step, 2, 3);
    to[0] = tk_pair(first[2 * step + 8], first[8]);
    to[1] = tk_pair(second[2 * step + 8], second[8]);
    to[2] = tk_pair(first[step + 8], first[8]);
    to[3] = tk_pair(second[step + 8], second[8]);
#endif
}

static int8_t *fill(int8_t *to, int32_t value, int32_t count)
{
    const int32_t word = (int32_t)((uint32_t)(uint8_t)value * 0x01010101U);
    for (; count >= 4; count -= 4, to += 4) {
        tk_store4(to, word);
    }
    for (; count > 0; count--) {
        *to++ = (int8_t)value;
    }
    return to;
}

static int8_t *copy(int8_t *to, const int8_t *from, int32_t count)
{
    for (; count >= 16; count -= 16, to += 16, from += 16) {
        const int32_t a = tk_load4(from), b = tk_load4(from + 4), c = tk_load4(from + 8), d = tk_load4(from + 12);
        tk_store4(to, a);
        tk_store4(to + 4, b);
        tk_store4(to + 8, c);
        tk_store4(to + 12, d);
    }
    for (; count > 0; count--) {
        *to++ = *from++;
    }
    return to;
}

tk_band_t tk_convolution_band(const tk_convolution_t *p, const int8_t *x, int32_t row, int32_t rows, int8_t *scratch)
{
    const int32_t in_c = p->in_c;
    const int32_t lines = (rows - 1) * p->stride_h + (p->kernel_h - 1) * p->dilation_h + 1;
    const int32_t top = row * p->stride_h - p->pad_top;
    /* keep_rests reads up to 3 bytes before a kernel row that is shorter than a quad. */
    const int32_t is_inside = p->band_left + p->band_right == 0 && top >= 0 && top + lines <= p->in_h;
    if (is_inside && (top > 0 || p->row_quads > 0)) {
        return (tk_band_t){x + top * p->in_w * in_c, p->in_w * in_c, scratch};
    }
    const int32_t taps_bytes = p->dilation_w == 1 ? 0 : 2 * ((p->kernel_h * p->kernel_w * in_c + 3) & ~3);
    int8_t *const band = scratch + 8 * (1 + p->rest_quads) + taps_bytes;
    const int32_t row_bytes = (p->band_left + p->band_inner + p->band_right) * in_c;
    int8_t *to = band;
    for (int32_t line = top; line < top + lines; line++) {
        if (line < 0 || line >= p->in_h) {
            to = fill(to, p->in_zero, row_bytes);
            continue;
        }
        to = fill(to, p->in_zero, p->band_left * in_c);
        to = copy(to, x + line * p->in_w * in_c, p->band_inner * in_c);
        to = fill(to, p->in_zero, p->band_right * in_c);
    }
    return (tk_band_t){band, row_bytes, scratch};
}

/* The last `rest` bytes of each kernel row, those of the last row at `to`. Each is written as the last bytes of a word; the
 * word of the next row overwrites the others. */
static void keep_rests(const tk_convolution_t *p, const int8_t *window, int32_t step, int8_t *to)
{
    const int32_t rest = p->rest;
    const int8_t *from = window + 4 * p->row_quads + rest - 4;
    to += p->kernel_h * rest - 4;
    for (int32_t ky = p->kernel_h; ky > 0; ky--, from += step, to -= rest) {
        tk_store4(to, tk_load4(from));
    }
}

/* The taps of a window with gaps, without them. */
static void close_gaps(const tk_convolution_t *p, const int8_t *window, int32_t row_bytes, int8_t *to)
{
    for (int32_t ky = 0; ky < p->kernel_h; ky++, window += p->dilation_h * row_bytes) {
        const int8_t *tap = window;
        for (int32_t kx = 0; kx < p->kernel_w; kx++, tap += p->dilation_w * p->in_c) {
            to = copy(to, tap, p->in_c);
        }
    }
}

void tk_convolution_columns(const tk_convolution_t *p, const tk_band_t *band, const int8_t *first, const int8_t *second,
                            int32_t *columns)
{
    int32_t step = p->dilation_h * band->row_bytes;
    int8_t *const rests0 = band->scratch + 4;
    int8_t *const rests1 = rests0 + 4 + 4 * p->rest_quads;
    if (p->dilation_w != 1) {
        int8_t *const taps0 = rests1 + 4 * p->rest_quads;
        step = 4 * p->row_quads + p->rest;
        int8_t *const taps1 = taps0 + ((p->kernel_h * step + 3) & ~3);
        close_gaps(p, first, band->row_bytes, taps0);
        close_gaps(p, second, band->row_bytes, taps1);
        first = taps0;
        second = taps1;
    }
    if (p->row_quads > 0) {
        columns = widen(columns, first, second, step, p->row_quads, p->kernel_h);
    }
    if (p->rest > 0) {
        keep_rests(p, first, step, rests0);
        keep_rests(p, second, step, rests1);
        widen(columns, rests0, rests1, 0, p->rest_quads, 1);
    }
}
