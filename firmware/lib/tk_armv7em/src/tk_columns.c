#include "tk_armv7em_convolution.h"

#include "tk_dsp.h"

/* Lines of quads in two columns: line i has `quads` of them at first + i * step and second + i * step. */
typedef struct {
    int32_t count;
    int32_t quads;
    int32_t step;
} lines_t;

/* Widens two columns into `to`, interleaved; returns where it stopped. */
static __attribute__((noinline)) int32_t *widen(int32_t *to, const int8_t *first, const int8_t *second,
                                                const lines_t *lines)
{
#if TK_HAS_DSP
    register int32_t *out __asm__("r0") = to;
    register const int8_t *p __asm__("r1") = first;
    register const int8_t *q __asm__("r2") = second;
    register const lines_t *shape __asm__("r3") = lines;
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
    __asm__ volatile(
        "ldr lr, [r3]\n"
        "1:\n"
        "ldr r12, [r3, #4]\n"
        "subs r12, r12, #4\n"
        "blt 3f\n"
        "2:\n"
        TK_TWO_QUADS
        TK_TWO_QUADS
        "subs r12, r12, #4\n"
        "bge 2b\n"
        "3:\n"
        /* 4 less than what is left: bit 1 to the carry, bit 0 to the sign. */
        "lsls r12, r12, #31\n"
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
        "ldrd r4, r5, [r3, #4]\n"
        "sub r5, r5, r4, lsl #2\n"
        "add r1, r1, r5\n"
        "add r2, r2, r5\n"
        "subs lr, lr, #1\n"
        "bne 1b\n"
        : "+r"(out), "+r"(p), "+r"(q), "+r"(shape)
        :
        : "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
    return out;
#else
    for (int32_t line = 0; line < lines->count; line++) {
        for (int32_t i = 0; i < 4 * lines->quads; i += 4, to += 4) {
            const int32_t a = tk_load4(first + i);
            const int32_t b = tk_load4(second + i);
            to[0] = tk_sxtb16(a);
            to[1] = tk_sxtb16(b);
            to[2] = tk_sxtb16_odd(a);
            to[3] = tk_sxtb16_odd(b);
        }
        first += lines->step;
        second += lines->step;
    }
    return to;
#endif
}

static inline int8_t *fill(int8_t *to, int32_t value, int32_t count)
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

static inline int8_t *copy(int8_t *to, const int8_t *from, int32_t count)
{
    for (; count >= 4; count -= 4, to += 4, from += 4) {
        tk_store4(to, tk_load4(from));
    }
    for (; count > 0; count--) {
        *to++ = *from++;
    }
    return to;
}

static inline int32_t limit(int32_t value, int32_t low, int32_t high)
{
    const int32_t raised = value < low ? low : value;
    return raised > high ? high : raised;
}

/* The window at (top, left), without gaps and with the padding filled in, at `to`. */
static void cut_window(const tk_columns_t *c, const int8_t *x, int32_t top, int32_t left, int8_t *to)
{
    const int32_t run = c->dilation_w == 1 ? c->kernel_w : 1;
    for (int32_t ky = 0; ky < c->kernel_h; ky++, top += c->dilation_h) {
        const int32_t width = top >= 0 && top < c->in_h ? c->in_w : 0;
        const int8_t *line = x + top * c->in_w * c->in_c;
        int32_t column = left;
        for (int32_t kx = 0; kx < c->kernel_w; kx += run, column += c->dilation_w) {
            const int32_t from = limit(-column, 0, run);
            const int32_t end = limit(width - column, from, run);
            to = fill(to, c->in_zero, from * c->in_c);
            to = copy(to, line + (column + from) * c->in_c, (end - from) * c->in_c);
            to = fill(to, c->in_zero, (run - end) * c->in_c);
        }
    }
}

/* The last `rest` bytes of each line of a window, those of the last line at `to`. Each is written as the last bytes of a
 * word; the word of the next line overwrites the others. */
static void keep_rests(const tk_columns_t *c, const int8_t *window, int32_t step, int8_t *to)
{
    const int8_t *end = window + 4 * c->row_quads + c->rest - 4;
    int8_t *word = to + c->kernel_h * c->rest - 4;
    for (int32_t ky = 0; ky < c->kernel_h; ky++, end += step, word -= c->rest) {
        tk_store4(word, tk_load4(end));
    }
}

void tk_columns_gather(const tk_columns_t *c, const int8_t *x, int32_t first, int32_t second, int8_t *scratch)
{
    const int32_t row_bytes = 4 * c->row_quads + c->rest;
    const int32_t positions[2] = {first, second};
    int32_t top[2], left[2], is_inside = 1;
    for (int32_t i = 0; i < 2; i++) {
        const int32_t row = positions[i] / c->out_w;
        top[i] = row * c->stride_h - c->pad_top;
        left[i] = (positions[i] - row * c->out_w) * c->stride_w - c->pad_left;
        /* keep_rests reads from 4 bytes before the end of a line on. */
        const int32_t reads_before = top[i] == 0 && left[i] * c->in_c + row_bytes < 4;
        is_inside &= (uint32_t)top[i] < c->inner_h && (uint32_t)left[i] < c->inner_w && !reads_before;
    }
    int8_t *rests = scratch + 16 * (c->kernel_h * c->row_quads + c->rest_quads);
    const int32_t rests_bytes = 4 + 4 * c->rest_quads;
    const int8_t *windows[2];
    int32_t step = c->in_w * c->in_c * c->dilation_h;
    if (is_inside) {
        for (int32_t i = 0; i < 2; i++) {
            windows[i] = x + (top[i] * c->in_w + left[i]) * c->in_c;
        }
    } else {
        step = row_bytes;
        const int32_t window_bytes = (c->kernel_h * row_bytes + 3) & ~3;
        for (int32_t i = 0; i < 2; i++) {
            int8_t *window = rests + 2 * rests_bytes + i * window_bytes;
            cut_window(c, x, top[i], left[i], window);
            windows[i] = window;
        }
    }
    int32_t *to = (int32_t *)(void *)scratch;
    if (c->row_quads > 0) {
        to = widen(to, windows[0], windows[1], &(lines_t){c->kernel_h, c->row_quads, step});
    }
    if (c->rest > 0) {
        for (int32_t i = 0; i < 2; i++) {
            keep_rests(c, windows[i], step, rests + i * rests_bytes + 4);
        }
        widen(to, rests + 4, rests + rests_bytes + 4, &(lines_t){1, c->rest_quads, 0});
    }
}
