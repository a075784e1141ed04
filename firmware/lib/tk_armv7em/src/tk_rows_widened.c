#include "tk_armv7em_rows.h"

#include "tk_dsp.h"

#define BLOCK 2

/* The output of one channel, from its sum and its constants. */
static int8_t requantized(const tk_rows_t *rows, int32_t sum, const int32_t *constants)
{
    int32_t y = rows->form == TK_ROWS_SATURATING ? tk_smmla(sum, constants[0], constants[1]) >> TK_ROWS_SHIFT
                                                 : tk_smmlar(sum, constants[0], constants[1]);
    if (rows->form != TK_ROWS_SATURATING) {
        y = (rows->form == TK_ROWS_TWO_SIDED ? y + (sum >> 31) : y) >> (constants[2] & 31);
    }
    y = y < rows->out_min ? rows->out_min : y;
    return (int8_t)(y > rows->out_max ? rows->out_max : y);
}

/* Channels of one column, whose words stand `step` apart. */
static void column(const tk_rows_t *rows, const int32_t *x, int32_t step, int8_t *y)
{
    const int32_t pairs = rows->depth / 2;
    const int32_t *w = rows->stream;
    for (int32_t c = 0; c < rows->out_c; c += BLOCK) {
        int32_t sums[BLOCK] = {w[0], w[1]};
        w += BLOCK;
        for (int32_t i = 0; i < pairs; i++, w += BLOCK) {
            sums[0] = tk_smlad(x[i * step], w[0], sums[0]);
            sums[1] = tk_smlad(x[i * step], w[1], sums[1]);
        }
        for (int32_t i = 0; i < BLOCK; i++, w += rows->form == TK_ROWS_SATURATING ? 2 : 3) {
            if (c + i < rows->out_c) {
                y[c + i] = requantized(rows, sums[i], w);
            }
        }
        w += rows->form == TK_ROWS_SATURATING;
    }
}

void tk_rows_widened_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1)
{
    column(rows, columns, 2, y0);
    column(rows, columns + 1, 2, y1);
}

void tk_rows_widened_1(const tk_rows_t *rows, const int32_t *column_words, int8_t *y)
{
    column(rows, column_words, 1, y);
}
