#include "tk_armv7em_pooling.h"

#include "tk_pool.h"

static inline int8_t mean(const tk_mean_dsp_t *p, int32_t sum)
{
    const int32_t acc = sum - p->zero_sum;
    return (int8_t)tk_ssat8((tk_smmlar(2 * acc, p->multiplier, p->addend) + (acc >> 31)) >> p->shift);
}

void tk_mean_dsp(const tk_mean_dsp_t *params, const int8_t *x, int8_t *y)
{
    const tk_mean_dsp_t p = *params;
    const tk_block_t rows = {1, p.area, p.channels, 0};
    for (int32_t c = 0; c < p.channels; c = tk_next4(c, p.channels)) {
        const tk_sums_t sums = tk_block_sums(&rows, x + c);
        y[c] = mean(&p, tk_low(sums.even));
        y[c + 1] = mean(&p, tk_low(sums.odd));
        y[c + 2] = mean(&p, tk_high(sums.even));
        y[c + 3] = mean(&p, tk_high(sums.odd));
    }
}
