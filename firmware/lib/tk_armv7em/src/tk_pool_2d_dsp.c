#include "tk_armv7em_pooling.h"

#include "tk_pool.h"

typedef struct {
    int32_t first, count;   /* input positions */
} span_t;

/* The part of window `index` that lies inside an axis with `size` positions: never empty. */
static span_t inside(int32_t index, int32_t stride, int32_t pad, int32_t kernel, int32_t size)
{
    const int32_t origin = index * stride - pad;
    const int32_t first = origin < 0 ? 0 : origin;
    const int32_t last = origin + kernel > size ? size : origin + kernel;
    return (span_t){first, last - first};
}

/* A window of full width is one row. */
static tk_block_t block(const tk_pool_2d_t *p, span_t rows, span_t columns)
{
    if (columns.count == p->in_w) {
        return (tk_block_t){1, rows.count * columns.count, p->channels, 0};
    }
    return (tk_block_t){rows.count, columns.count, p->channels, (p->in_w - columns.count) * p->channels};
}

/* sum / count rounded to nearest, halves away from zero; C's division drops the fraction. */
static inline int8_t rounded_mean(int32_t sum, int32_t count, int32_t half)
{
    const int32_t sign = sum >> 31;
    return (int8_t)((sum + (half ^ sign) - sign) / count);
}

static void mean_of(const tk_block_t *window, int32_t channels, const int8_t *x, int8_t *y)
{
    const int32_t count = window->rows * window->columns, half = count / 2;
    for (int32_t c = 0; c < channels; c = tk_next4(c, channels)) {
        const tk_sums_t sums = tk_block_sums(window, x + c);
        y[c] = rounded_mean(tk_low(sums.even), count, half);
        y[c + 1] = rounded_mean(tk_low(sums.odd), count, half);
        y[c + 2] = rounded_mean(tk_high(sums.even), count, half);
        y[c + 3] = rounded_mean(tk_high(sums.odd), count, half);
    }
}

static void maximum_of(const tk_block_t *window, int32_t channels, const int8_t *x, int8_t *y)
{
    for (int32_t c = 0; c < channels; c = tk_next4(c, channels)) {
        tk_store4(y + c, tk_block_maxima(window, x + c));
    }
}

typedef void pool_t(const tk_block_t *window, int32_t channels, const int8_t *x, int8_t *y);

static inline void pool(const tk_pool_2d_t *p, const int8_t *x, int8_t *y, pool_t *of)
{
    int8_t *const begin = y;
    for (int32_t row = 0; row < p->out_h; row++) {
        const span_t rows = inside(row, p->stride_h, p->pad_top, p->kernel_h, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++, y += p->channels) {
            const span_t columns = inside(column, p->stride_w, p->pad_left, p->kernel_w, p->in_w);
            const tk_block_t window = block(p, rows, columns);
            of(&window, p->channels, x + (rows.first * p->in_w + columns.first) * p->channels, y);
        }
    }
    if (p->out_min > INT8_MIN || p->out_max < INT8_MAX) {
        tk_limit(begin, p->out_h * p->out_w * p->channels, p->out_min, p->out_max);
    }
}

void tk_average_pool_2d_dsp(const tk_pool_2d_t *params, const int8_t *x, int8_t *y)
{
    pool(params, x, y, mean_of);
}

void tk_max_pool_2d_dsp(const tk_pool_2d_t *params, const int8_t *x, int8_t *y)
{
    pool(params, x, y, maximum_of);
}
